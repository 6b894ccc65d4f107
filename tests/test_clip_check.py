from dataclasses import replace

import numpy as np
import pytest
from synthetic_clip import make_clip, write_image

from neural_sim.clips.check import check_clip, require_duration, require_sound
from neural_sim.clips.frame_selection import resize_frames, select_frames
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import DATASETS, ingest
from neural_sim.errors import InputError
from neural_sim.trajectory import Trajectory


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path)


def moved(clip, index, offset_m):
    poses = clip.ego.T_world_rig.copy()
    poses[index:, 0, 3] += offset_m
    return replace(clip, ego=Trajectory(clip.ego.t_us, poses))


def test_a_sound_clip_has_no_problems(clip):
    assert check_clip(clip, decode_images=True) == []
    assert check_clip(clip, decode_images=False) == []
    require_sound(clip)


@pytest.mark.parametrize("decode_images", [True, False])
def test_missing_frame(clip, decode_images):
    path = clip.cameras["camera_front"].paths[4]
    path.unlink()
    (problem,) = check_clip(clip, decode_images=decode_images)
    assert problem == (
        f"camera camera_front, frame 4 ({path}): the image file is missing; restore it or ingest a range without it"
    )


@pytest.mark.parametrize("name", ["camera_front", "camera_tele"])
def test_truncated_image_is_found_by_decoding(clip, name):
    path = clip.cameras[name].paths[1]
    path.write_bytes(path.read_bytes()[:-200])
    assert check_clip(clip, decode_images=False) == []
    (problem,) = check_clip(clip, decode_images=True)
    assert f"camera {name}, frame 1 ({path}): the image does not decode" in problem


@pytest.mark.parametrize("decode_images", [True, False])
def test_image_of_another_size(clip, decode_images):
    write_image(clip.cameras["camera_front"].paths[0], 0, size=(16, 10))
    (problem,) = check_clip(clip, decode_images=decode_images)
    assert "frame 0" in problem
    assert "image is 16x10 but the calibration says 32x20" in problem


def test_frame_times(clip):
    frames = clip.cameras["camera_front"]
    late = replace(frames, t_us=frames.t_us + 9_500_000)
    repeated = replace(frames, t_us=np.concatenate([frames.t_us[:3], frames.t_us[2:3], frames.t_us[4:]]))
    late_problems = check_clip(replace(clip, cameras={"c": late}), decode_images=False)
    assert (
        "9 of 10 frames lie outside the ego poses, first frame 1 at 10501000 us (poses: 1000 to 9901000 us)"
        in (late_problems[0])
    )
    (problem,) = check_clip(replace(clip, cameras={"c": repeated}), decode_images=False)
    assert "frame times must increase, but frame 3 (2001000 us) does not come after frame 2 (2001000 us)" in problem


def test_speed_and_jumps(clip):
    poses = clip.ego.T_world_rig.copy()
    poses[:, :3, 3] *= 10
    (problem,) = check_clip(replace(clip, ego=Trajectory(clip.ego.t_us, poses)), decode_images=False)
    assert "ego: moves at 70.0 m/s (limit 60 m/s) between 1000 and 101000 us, 99 such steps" in problem
    assert check_clip(moved(clip, 50, 4.9), decode_images=False) == []
    (problem,) = check_clip(moved(clip, 50, 5.2), decode_images=False)
    assert "ego: jumps by 5.2 m off its course (limit 5 m) between 4901000 and 5001000 us, 1 such steps" in problem
    assert any("jumps by 5.2" in problem for problem in check_clip(moved(clip, 1, 5.2), decode_images=False))


def test_slow_sampling_is_not_a_jump(clip):
    sparse = Trajectory(clip.ego.t_us[::10], clip.ego.T_world_rig[::10])
    assert np.diff(sparse.planar[:, 0]).min() > 5.0
    assert check_clip(replace(clip, ego=sparse), decode_images=False) == []


def test_tracks(clip):
    car, walker = clip.tracks
    twins = replace(clip, tracks=(car, walker, replace(walker, size_m=(0.5, 0.0, 1.7))))
    problems = check_clip(twins, decode_images=False)
    assert problems == [
        "track '7': the id is used by several tracks; give every road user its own",
        "track '7': box size (0.5, 0.0, 1.7) m must be positive; mend the annotation",
    ]


def test_lidar(clip, tmp_path):
    np.save(tmp_path / "wrong.npy", np.zeros((3, 3)))
    (tmp_path / "broken.npy").write_bytes(b"not numpy")
    paths = {1: tmp_path / "wrong.npy", 2: tmp_path / "broken.npy"}
    wrong, broken = check_clip(replace(clip, lidar_paths=paths), decode_images=False)
    assert "float64 [3, 3], expected float32 [N, 4]" in wrong
    assert "not a readable .npy file" in broken


def test_too_short(tmp_path):
    short = make_clip(tmp_path, steps=41)
    with pytest.raises(InputError, match=r"4\.00 s long, but 8\.00 s are required \(1\.6 s history and 6\.4 s plan\)"):
        require_duration(short)
    require_duration(short, history_s=1.0, horizon_s=3.0)
    with pytest.raises(InputError, match=r"^clip synthetic-1: 4\.00 s long, but 8\.00 s are required"):
        require_sound(short)


def test_require_sound_counts_the_others_and_reads_no_image(clip):
    for path in clip.cameras["camera_front"].paths:
        path.unlink()
    require_sound(clip)
    twins = replace(clip, tracks=(*clip.tracks, clip.tracks[0]), ego=moved(clip, 50, 5.2).ego)
    with pytest.raises(InputError, match=r"^clip synthetic-1: ego: jumps by 5\.2 m .* \(and 1 more problems\)$"):
        require_sound(twins)


def test_selection_by_time_and_rate():
    t_us = np.array([0, 104_000, 207_000, 311_000, 415_000, 518_000], np.int64)
    assert select_frames(t_us, IngestOptions(), "x").tolist() == [0, 1, 2, 3, 4, 5]
    assert select_frames(t_us, IngestOptions(start_s=0.104, duration_s=0.207), "x").tolist() == [1, 2, 3]
    assert select_frames(t_us, IngestOptions(rate_hz=4.8), "x").tolist() == [0, 2, 4]
    with pytest.raises(InputError, match=r"x: 0 frames between 3\.0 and inf s, .* the drive is 0\.52 s long"):
        select_frames(t_us, IngestOptions(start_s=3.0), "x")
    with pytest.raises(InputError, match=r"x: rate_hz is 30, but the drive has 9\.65 frames/s; ask for less"):
        select_frames(t_us, IngestOptions(rate_hz=30), "x")


def test_resizing_keeps_the_field_of_view(clip, tmp_path):
    frames = clip.cameras["camera_front"]
    resized = resize_frames(frames, 0.5, tmp_path / "small")
    assert resized.load(3).shape == (10, 16, 3)
    assert (resized.camera.fx_px, resized.camera.cx_px, resized.camera.cy_px) == (15.0, 8.25, 5.125)
    blocks = frames.load(3).reshape(10, 2, 16, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resized.load(3), blocks, atol=1.0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("start_s", -1.0, "start_s is -1.0, expected 0 or more"),
        ("duration_s", 0.0, "duration_s is 0.0, expected a positive"),
        ("rate_hz", float("nan"), "rate_hz is nan, expected a positive"),
        ("scale", 1.5, r"scale is 1.5, expected a factor in \(0, 1\]"),
    ],
)
def test_bad_options(field, value, message):
    with pytest.raises(InputError, match=message):
        IngestOptions(**{field: value})


def test_unknown_dataset_is_answered_with_the_closest(tmp_path):
    with pytest.raises(
        InputError, match=r"dataset 'kitti-odo' is not known; did you mean 'kitti-odometry'\? available: "
    ):
        ingest("kitti-odo", IngestOptions(), tmp_path)
    assert {"kitti-odometry", "town"} <= set(DATASETS)
