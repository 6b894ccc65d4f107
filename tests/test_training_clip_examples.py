from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_fixtures import CAMERA, HEIGHT_PX, WIDTH_PX, make_clip

from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.clips.kitti_odometry import ingest_kitti_odometry
from neural_sim.clips.options import IngestOptions
from neural_sim.errors import InputError
from neural_sim.simulation.observation import ImageFormat
from neural_sim.trajectory import Trajectory
from pipelines.training.clip_examples import clip_examples
from pipelines.training.images import resize_image


def windows(clip: Clip, stride_us: int = 1_000_000, frames: int = 3) -> list:
    return list(clip_examples(clip, ImageFormat((CAMERA,), frames, 100_000, WIDTH_PX, HEIGHT_PX), stride_us))


def test_windows_of_a_straight_drive(tmp_path: Path) -> None:
    found = windows(make_clip(tmp_path))
    # History starts 1.5 s and the horizon ends 6.4 s from the window: 1.5 s to 5.6 s of 12 s.
    assert [example.t_us for example in found] == [1_500_000, 2_500_000, 3_500_000, 4_500_000, 5_500_000]
    example = found[0]
    steps = np.arange(1, 65)
    expected = np.stack([0.8 * steps, np.zeros(64), np.zeros(64)], axis=-1)
    np.testing.assert_allclose(example.target, expected, atol=1e-5)
    np.testing.assert_array_equal(example.plan, example.target)
    behind = np.stack([0.8 * np.arange(-15, 1), np.zeros(16), np.zeros(16), np.full(16, 8.0)], axis=-1)
    np.testing.assert_allclose(example.ego_history, behind, atol=1e-5)
    assert example.image_times_us[CAMERA].tolist() == [1_300_000, 1_400_000, 1_500_000]
    assert example.images[CAMERA].shape == (3, HEIGHT_PX, WIDTH_PX, 3)
    assert example.images[CAMERA][:, 5, 5, 0].tolist() == [13, 14, 15]
    assert [e.navigation for e in found] == ["", "", "", "turn left", "turn left"]
    assert example.key == "straight-clip-w00000"
    assert example.meta["source"] == "clip"
    assert len(example.candidate_distances) == 0
    assert not example.recovered


def test_a_turn_points_left_in_the_rig_frame(tmp_path: Path) -> None:
    clip = make_clip(tmp_path)
    t_s = clip.ego.t_us * 1e-6
    yaw = np.pi / 2 + 0.1 * t_s
    poses = clip.ego.T_world_rig.copy()
    poses[:, 0, 0], poses[:, 0, 1], poses[:, 1, 0], poses[:, 1, 1] = np.cos(yaw), -np.sin(yaw), np.sin(yaw), np.cos(yaw)
    radius_m = 80.0
    poses[:, 0, 3], poses[:, 1, 3] = radius_m * np.sin(yaw), -radius_m * np.cos(yaw)
    example = windows(replace(clip, ego=Trajectory(clip.ego.t_us, poses)))[0]
    angle = 0.01 * np.arange(1, 65)
    expected = np.stack([radius_m * np.sin(angle), radius_m * (1 - np.cos(angle)), angle], axis=-1)
    np.testing.assert_allclose(example.target, expected, atol=2e-3)


def test_the_latest_frame_at_or_before_is_taken(tmp_path: Path) -> None:
    clip = make_clip(tmp_path, frame_us=40_000)
    example = windows(clip, frames=2)[0]
    assert example.t_us == 1_520_000
    assert example.image_times_us[CAMERA].tolist() == [1_400_000, 1_520_000]


def test_stride_is_kept_within_half_a_frame(tmp_path: Path) -> None:
    clip = make_clip(tmp_path)
    jittered = clip.cameras[CAMERA].t_us * 103 // 100
    frames = replace(clip.cameras[CAMERA], t_us=jittered)
    times = np.array([e.t_us for e in windows(replace(clip, cameras={CAMERA: frames}), stride_us=500_000, frames=1)])
    assert np.abs(np.diff(times) - 500_000).max() <= 103_000
    assert np.abs(times - (times[0] + 500_000 * np.arange(len(times)))).max() <= 51_500


def test_no_window_across_gaps(tmp_path: Path) -> None:
    clip = make_clip(tmp_path, duration_s=24.0)
    keep = (clip.ego.t_us < 10_000_000) | (clip.ego.t_us > 11_000_000)
    ego = Trajectory(clip.ego.t_us[keep], clip.ego.T_world_rig[keep])
    times = [e.t_us for e in windows(replace(clip, ego=ego), stride_us=100_000, frames=1)]
    assert max(t for t in times if t < 10_000_000) == 3_500_000
    assert min(t for t in times if t > 10_000_000) == 12_600_000
    frames = clip.cameras[CAMERA]
    holes = CameraFrames(frames.camera, frames.t_us[keep], tuple(np.array(frames.paths)[keep]))
    times = [e.t_us for e in windows(replace(clip, cameras={CAMERA: holes}), stride_us=100_000)]
    assert all(t < 10_000_000 or t > 11_200_000 for t in times)
    assert min(t for t in times if t > 10_000_000) == 11_300_000


def test_a_short_clip_has_no_windows(tmp_path: Path) -> None:
    assert windows(make_clip(tmp_path, duration_s=7.8)) == []


def test_a_missing_camera_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"clip straight\.clip: no camera rear; it has {CAMERA}"):
        list(clip_examples(make_clip(tmp_path), ImageFormat(("rear",), 1, 100_000, 64, 32), 100_000))


def test_resize_averages_the_area_it_shrinks() -> None:
    checker = np.zeros((64, 64, 3), np.uint8)
    checker[::2, ::2] = checker[1::2, 1::2] = 255
    small = resize_image(checker, 16, 8)
    assert small.shape == (8, 16, 3)
    assert np.abs(small.astype(int) - 127).max() <= 2
    assert resize_image(checker, 64, 64) is checker


def test_resize_keeps_the_field_of_view(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(128, dtype=np.uint8)[None, :, None], (64, 1, 3))
    small = resize_image(ramp, 32, 16)
    # Pixel i of the small image stands for pixels 4i to 4i+3, whose mean is 4i + 1.5, as Camera.resized has it.
    np.testing.assert_allclose(small[8, 2:-2, 0], 4 * np.arange(2, 30) + 1.5, atol=0.6)
    camera = Camera("c", 128, 64, 50.0, 50.0, 64.0, 32.0, np.eye(4)).resized(32, 16)
    assert camera.cx_px == 16.0


def test_gray_frames_become_rgb(tmp_path: Path) -> None:
    clip = make_clip(tmp_path)
    for path in clip.cameras[CAMERA].paths:
        Image.open(path).convert("L").save(path)
    assert windows(clip)[0].images[CAMERA][2, 5, 5].tolist() == [15, 15, 15]


KITTI = Path(__file__).parents[2] / "shared" / "data" / "kitti_odometry"


@pytest.mark.shared_data
@pytest.mark.skipif(not KITTI.is_dir(), reason="needs the real drive")
def test_windows_of_a_real_drive_are_plausible(tmp_path: Path) -> None:
    clip = ingest_kitti_odometry(IngestOptions(root=KITTI, sequence="00"), tmp_path / "clip")
    found = list(clip_examples(clip, ImageFormat(("image_0",), 2, 100_000, 320, 96), 1_000_000))
    # 200 frames at 103.7 ms are 20.6 s; 1.5 s of history and 6.4 s of horizon leave 12.7 s.
    assert len(found) == 13
    for example in found:
        speed_mps = example.ego_history[-1, 3]
        assert 3 < speed_mps < 15
        np.testing.assert_array_equal(example.ego_history[-1, :3], 0)
        # The first 0.1 s continues at the present speed, nearly straight ahead: 2 cm to the side in the tight turn.
        assert example.target[0, 0] == pytest.approx(0.1 * speed_mps, rel=0.1)
        assert abs(example.target[0, 1]) < 0.04
        step_m = np.linalg.norm(np.diff(example.target[:, :2], axis=0), axis=1)
        assert np.abs(np.diff(step_m)).max() / 0.1**2 < 8, "more than 8 m/s^2"
        assert example.t_us == example.image_times_us["image_0"][-1]
