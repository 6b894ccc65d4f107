import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from neural_sim.frames import R_RIG_FORWARD_CAMERA, invert_pose, pose_from_planar
from neural_sim.reconstruction.pose_refinement import PoseCorrection, RigImages, refine_poses
from neural_sim.reconstruction.tracks import FeatureTracks
from neural_sim.reconstruction.triangulation import project_tracks, triangulate
from neural_sim.trajectory import Trajectory

COUNT = 24
TIMES_US = 100_000 * np.arange(COUNT)
K = np.array([[300.0, 0.0, 200.0], [0.0, 310.0, 90.0], [0.0, 0.0, 1.0]])


def drive() -> np.ndarray:
    return pose_from_planar(np.stack([0.8 * np.arange(COUNT), np.zeros(COUNT), np.zeros(COUNT)], axis=-1))


def camera_on_rig() -> np.ndarray:
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R_RIG_FORWARD_CAMERA, (1.0, 0.2, 1.6)
    return T


def swaying() -> PoseCorrection:
    """A recorder that sways by 5 mrad and 5 cm within two seconds."""
    phase = 2 * np.pi * TIMES_US[:, None] / 2e6 + np.arange(6)
    return PoseCorrection(TIMES_US, np.sin(phase) * np.repeat([0.005, 0.05], 3))


def rig_images(t_us: np.ndarray, T_world_rig: np.ndarray) -> RigImages:
    count = len(t_us)
    return RigImages(t_us, np.tile(K, (count, 1, 1)), np.tile(camera_on_rig(), (count, 1, 1)), T_world_rig)


def observe(points: np.ndarray, T_camera_world: np.ndarray) -> FeatureTracks:
    """Every point in every image that has it in front and in view."""
    local = np.einsum("vij,pj->pvi", T_camera_world[:, :3, :3], points) + T_camera_world[:, :3, 3]
    pixels = local @ K.T
    xy = pixels[..., :2] / np.where(np.abs(pixels[..., 2:]) < 1e-6, 1e-6, pixels[..., 2:])
    track, image = np.meshgrid(np.arange(len(points)), np.arange(len(T_camera_world)), indexing="ij")
    seen = (local[..., 2] > 2.0) & (xy >= 0).all(axis=-1) & (xy < [400, 180]).all(axis=-1)
    whole = FeatureTracks(track.ravel(), image.ravel(), xy.reshape(-1, 2))
    return whole.keep(seen.ravel())


def world_points() -> np.ndarray:
    rng = np.random.default_rng(0)
    points = rng.uniform((5.0, 2.0, 0.0), (45.0, 9.0, 5.0), (700, 3))
    points[:, 1] *= rng.choice([-1.0, 1.0], 700)
    return points


def heading_error_rad(T_a: np.ndarray, T_b: np.ndarray) -> np.ndarray:
    return Rotation.from_matrix(np.swapaxes(T_a[:, :3, :3], 1, 2) @ T_b[:, :3, :3]).magnitude()


def test_swaying_poses_are_mended_and_images_between_take_their_neighbours_correction():
    true = drive()
    recorded = true @ invert_pose(swaying().at(TIMES_US))
    training = np.arange(COUNT) % 8 != 4
    images = rig_images(TIMES_US[training], recorded[training])
    tracks = observe(world_points(), invert_pose(true[training] @ camera_on_rig()))
    found = triangulate(tracks, images.K, images.T_camera_world(PoseCorrection.none(TIMES_US)))
    correction = refine_poses(images, tracks)
    after = triangulate(tracks, images.K, images.T_camera_world(correction))
    assert len(after.points_m) > len(found.points_m)
    assert np.median(after.reprojection_px) < 0.1 * np.median(found.reprojection_px)
    held_out = ~training
    mended = recorded[held_out] @ correction.at(TIMES_US[held_out])
    # What a rigid shift of the whole world cannot explain is what neighbours say about each other.
    steps = invert_pose(mended[:-1]) @ mended[1:], invert_pose(true[held_out][:-1]) @ true[held_out][1:]
    before = invert_pose(recorded[held_out][:-1]) @ recorded[held_out][1:]
    assert heading_error_rad(*steps).max() < 0.25 * heading_error_rad(before, steps[1]).max()


def test_true_poses_stay():
    true = drive()
    images = rig_images(TIMES_US, true)
    tracks = observe(world_points(), invert_pose(true @ camera_on_rig()))
    correction = refine_poses(images, tracks)
    assert np.abs(correction.twists).max() < 1e-4


def test_derivative_of_a_twist_is_that_of_the_projection():
    from neural_sim.reconstruction.pose_refinement import _by_twist

    images = rig_images(TIMES_US, drive())
    points = world_points()[:40]
    tracks = observe(points, images.T_camera_world(PoseCorrection.none(TIMES_US)))
    points = points[: len(tracks)]
    start = swaying()
    _, by_point, _ = project_tracks(tracks, images.K, images.T_camera_world(start), points)
    analytic = _by_twist(images, tracks, points, by_point, start)
    for axis in range(6):
        moved = []
        for sign in (-1, 1):
            step = np.zeros((4, 4))
            shift = 1e-6 * sign
            if axis < 3:
                step[:3, :3] = np.cross(np.eye(3), np.eye(3)[axis]) * shift
            else:
                step[axis - 3, 3] = shift
            T_rig_world = invert_pose(images.T_world_rig @ start.at(images.t_us))
            T = invert_pose(camera_on_rig()) @ (np.eye(4) + step) @ T_rig_world
            moved.append(project_tracks(tracks, images.K, T, points)[0])
        np.testing.assert_allclose((moved[1] - moved[0]) / 2e-6, analytic[..., axis], rtol=1e-3, atol=1e-2)


def test_correction_is_linear_between_knots_and_held_beyond():
    knots = PoseCorrection(np.array([0, 100]), np.array([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0.2, 0, -0.4]]))
    np.testing.assert_allclose(knots.at(np.array([-5, 50, 500]))[:, :3, 3], [[0, 0, 0], [-0.1, 0, 0.2], [-0.2, 0, 0.4]])
    ego = Trajectory(np.array([0, 50]), np.tile(np.eye(4), (2, 1, 1)))
    assert knots.applied(ego).T_world_rig[1, 0, 3] == pytest.approx(-0.1)
