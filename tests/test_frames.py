"""Coordinate conventions: round trips and interpolation against scipy's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from neural_sim.errors import InputError
from neural_sim.frames import (
    interpolate_poses,
    invert_pose,
    planar_from_pose,
    planar_to_local,
    planar_to_world,
    pose_from_planar,
    pose_from_translation_quaternion,
    translation_quaternion_from_pose,
    wrap_angle,
)
from neural_sim.trajectory import Trajectory

coordinates = st.floats(-1e3, 1e3)
planar_poses = st.tuples(coordinates, coordinates, st.floats(-3.1, 3.1)).map(np.array)


@given(planar_poses, planar_poses)
def test_local_and_world_are_inverse(pose, origin):
    np.testing.assert_allclose(planar_to_world(planar_to_local(pose, origin), origin), pose, atol=1e-9)


@given(planar_poses)
def test_planar_poses_survive_the_matrix(planar):
    matrix = pose_from_planar(planar, 2.5)
    np.testing.assert_allclose(planar_from_pose(matrix), planar, atol=1e-12)
    np.testing.assert_allclose(invert_pose(matrix) @ matrix, np.eye(4), atol=1e-9)


def test_ahead_is_x_and_left_is_y():
    np.testing.assert_allclose(
        planar_to_local(np.array([1.0, 3.0, np.pi / 2]), np.array([1.0, 1.0, np.pi / 2])), [2, 0, 0], atol=1e-12
    )
    np.testing.assert_allclose(
        planar_to_local(np.array([0.0, 1.0, 0.0]), np.array([1.0, 1.0, np.pi / 2])), [0, 1, -np.pi / 2], atol=1e-12
    )


def test_quaternions_are_xyzw():
    pose = pose_from_translation_quaternion(np.zeros(3), np.array([0, 0, np.sin(0.25), np.cos(0.25)]))
    assert planar_from_pose(pose)[2] == pytest.approx(0.5)
    np.testing.assert_allclose(translation_quaternion_from_pose(pose)[1], [0, 0, np.sin(0.25), np.cos(0.25)])


def test_angles_wrap_to_the_half_open_interval():
    assert wrap_angle(np.array([np.pi, -np.pi, 3 * np.pi, 0.1])).tolist() == pytest.approx(
        [-np.pi, -np.pi, -np.pi, 0.1]
    )


def test_interpolation_is_linear_and_slerp():
    random = np.random.default_rng(0)
    t_us = np.array([0, 100_000, 250_000, 1_000_000])
    rotations = Rotation.random(4, rng=random)
    pose = np.tile(np.eye(4), (4, 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = rotations.as_matrix(), random.normal(size=(4, 3))
    query_us = np.array([-5, 0, 1, 50_000, 100_000, 249_999, 600_000, 1_000_000, 2_000_000])
    found = interpolate_poses(t_us, pose, query_us)
    inside_us = np.clip(query_us, 0, 1_000_000)
    np.testing.assert_allclose(found[:, :3, :3], Slerp(t_us, rotations)(inside_us).as_matrix(), atol=1e-9)
    for axis in range(3):
        np.testing.assert_allclose(found[:, axis, 3], np.interp(inside_us, t_us, pose[:, axis, 3]), atol=1e-12)
    np.testing.assert_array_equal(found[:, 3], np.tile([0, 0, 0, 1], (9, 1)))


def test_a_trajectory_of_one_pose_stands_still():
    only = Trajectory(np.array([7]), pose_from_planar(np.array([[1.0, 2.0, 0.3]])))
    np.testing.assert_allclose(only.planar_at(np.array([0, 99])), [[1, 2, 0.3]] * 2)


@pytest.mark.parametrize(
    ("t_us", "message"),
    [([0, 5, 5], r"entry 2 \(5 us\) does not come after entry 1 \(5 us\)"), ([0, 5], "2 times but poses of shape")],
)
def test_unsound_trajectories_are_refused(t_us, message):
    with pytest.raises(InputError, match=message):
        Trajectory(np.array(t_us), np.tile(np.eye(4), (3, 1, 1)))


def test_speed_is_the_distance_over_time():
    t_us = np.arange(0, 2_000_001, 100_000)
    path = Trajectory(t_us, pose_from_planar(np.stack([t_us * 5e-6, 0 * t_us, 0 * t_us], axis=-1)))
    np.testing.assert_allclose(path.speed_mps_at(np.array([0, 1_000_000, 2_000_000])), 5.0)
    assert path.path_length_m == pytest.approx(10.0)
