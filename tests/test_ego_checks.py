"""Ego poses against images, against each other, and smoothed."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from synthetic_clip import make_camera, make_clip

from neural_sim.clips.check import check_clip
from neural_sim.clips.clip import CameraFrames
from neural_sim.clips.ego_smoothing import smooth_ego
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.clips.time_offset import estimate_time_offset
from neural_sim.frames import pose_from_planar
from neural_sim.trajectory import Trajectory

KITTI = Path(__file__).parents[2] / "shared" / "data" / "kitti_odometry"


def weaving(t_s):
    """A car that weaves: (x, y, yaw)."""
    return np.stack([8 * t_s, 0 * t_s, 0.2 * np.sin(1.3 * t_s) + 0.05 * np.sin(3.1 * t_s)], axis=-1)


def panning_frames(folder, offset_s):
    """Images of a far wall, turned as the car was `offset_s` after the time they carry."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    wall = cv2.GaussianBlur(rng.integers(0, 256, (100, 900), np.uint8), (0, 0), 2)
    camera = replace(make_camera("front", (320, 200)), fx_px=400.0, fy_px=400.0, cx_px=160.0, cy_px=100.0)
    t_us = np.arange(60) * 100_000
    yaw = weaving(t_us * 1e-6 + offset_s)[:, 2]
    for i, angle in enumerate(yaw):
        shifted = cv2.warpAffine(wall, np.array([[1, 0, 400 * angle - 290], [0, 1, 0]]), (320, 100))
        Image.fromarray(np.vstack([shifted, shifted])).save(folder / f"{i}.png")
    return CameraFrames(camera, t_us, tuple(folder / f"{i}.png" for i in range(60)))


@pytest.mark.parametrize("offset_s", [0.0, 0.15, -0.2])
def test_time_offset_of_a_camera(tmp_path, offset_s):
    t_us = np.arange(-100, 800) * 10_000
    ego = Trajectory(t_us, pose_from_planar(weaving(t_us * 1e-6)))
    found = estimate_time_offset(panning_frames(tmp_path / "x", offset_s), ego)
    assert found is not None
    assert found.correlation > 0.95
    assert found.offset_us * 1e-6 == pytest.approx(offset_s, abs=0.02)


def test_no_offset_without_turns(tmp_path):
    clip = make_clip(tmp_path)
    straight = Trajectory(clip.ego.t_us, pose_from_planar(clip.ego.planar * [1, 0, 0]))
    assert estimate_time_offset(clip.cameras["camera_front"], straight) is None


def test_heading_in_other_axes_is_told(tmp_path):
    clip = make_clip(tmp_path)
    assert check_clip(clip, decode_images=False) == []
    planar = clip.ego.planar.copy()
    planar[:, 2] = 4.0 * planar[:, 0]
    problems = check_clip(replace(clip, ego=Trajectory(clip.ego.t_us, pose_from_planar(planar))), decode_images=False)
    assert any("per m, a radius of 3.3 m) after" in problem for problem in problems)


def test_smoothing_keeps_constant_acceleration_and_turn_rate(tmp_path):
    clip = make_clip(tmp_path)
    t_s = (clip.ego.t_us - clip.ego.t_us[0]) * 1e-6
    planar = np.stack([3 * t_s + 0.5 * t_s**2, 0.2 * t_s**2, 0.1 * t_s], axis=-1)
    clip = replace(clip, ego=Trajectory(clip.ego.t_us, pose_from_planar(planar)))
    smooth, told = smooth_ego(clip, 1.0)
    np.testing.assert_allclose(smooth.ego.T_world_rig, clip.ego.T_world_rig, atol=1e-9)
    assert told.startswith("ego poses smoothed over 1.0 s: moved by 0.0 m on average")


@pytest.mark.shared_data
@pytest.mark.skipif(not KITTI.is_dir(), reason="needs the real drive")
def test_kitti_clocks_agree(tmp_path):
    clip = ingest("kitti-odometry", IngestOptions(root=KITTI, start_s=8.0, duration_s=9.0), tmp_path / "clip")
    found = estimate_time_offset(clip.cameras["image_0"], clip.ego)
    assert found is not None
    assert found.correlation > 0.9
    assert abs(found.offset_us) <= 50_000
