import json
from pathlib import Path

import numpy as np
import pytest
from scenarionet_log import write_log
from synthetic_clip import write_image

from neural_sim.clips.nuscenes_scene import keyframe_times
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.errors import InputError

DATA = Path(__file__).parents[2] / "shared" / "data" / "nuscenes_scene0103"
START_US = 1_533_151_603_512_404
CALIBRATION = {
    "native_size": [64, 40],
    "video_size": [32, 20],
    "intrinsic_native": [[50, 0, 33], [0, 50, 18], [0, 0, 1]],
    "ego_from_cam_translation_m": [1.7, 0.0, 1.5],
    "ego_from_cam_quat_wxyz": [0.5, -0.5, 0.5, -0.5],
}
# Keyframes 20 ms nearer to each other than the half second of the log's steps.
TIMES = START_US + 480_000 * np.arange(21)


def write_layout(tmp_path):
    folder = tmp_path / "nuscenes_scene0042"
    write_log(tmp_path / "scenarionet")
    for i in range(len(TIMES)):
        write_image(folder / "frames" / f"{i:06d}.jpg", i)
    (folder / "calib_cam_front.json").write_text(json.dumps(CALIBRATION))
    (folder / "cam_front_timestamps_us.txt").write_text("".join(f"{t}\n" for t in TIMES))
    return folder


@pytest.fixture
def root(tmp_path):
    return write_layout(tmp_path)


def read(root, tmp_path, **options):
    return ingest("nuscenes-scene", IngestOptions(root=root, **options), tmp_path / "clip")


def test_times_are_paired(root, tmp_path):
    clip = read(root, tmp_path)
    # Ego step s lies 0.1 s x s after the first frame, in true time.
    assert clip.ego.start_us == START_US
    assert set(np.diff(clip.ego.t_us)) == {100_000}
    # The car drives 5 m/s in log steps: at keyframe k it is at step 5 k, which is 0.48 k s in true time.
    car = next(track for track in clip.tracks if track.track_id == "car")
    x = car.trajectory.planar_at(TIMES[:19])[:, 0]
    np.testing.assert_allclose(x, 30.0 + 2.5 * np.arange(19), atol=1e-4)


def test_frames_after_the_ego_track_are_dropped(root, tmp_path):
    clip = read(root, tmp_path)
    # The ego ends 9.6 s after the first frame; frame 20 is at 9.6 s, so it stays.
    assert len(clip.cameras["CAM_FRONT"].t_us) == 21
    (root / "cam_front_timestamps_us.txt").write_text("".join(f"{t}\n" for t in START_US + 500_000 * np.arange(21)))
    clip = ingest("nuscenes-scene", IngestOptions(root=root), tmp_path / "later")
    assert len(clip.cameras["CAM_FRONT"].t_us) == 20
    assert clip.source["notes"][-1] == "last 1 frames dropped: the ego track ends before them"


def test_calibration_is_resized_from_native(root, tmp_path):
    camera = read(root, tmp_path).cameras["CAM_FRONT"].camera
    assert (camera.fx_px, camera.cx_px, camera.cy_px) == (25.0, 16.75, 9.25)
    np.testing.assert_allclose(camera.T_rig_camera[:3, 2], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(camera.T_rig_camera[:3, 3], [1.7, 0.0, 1.5])


def test_keyframe_times_by_hand():
    keyframes = np.array([0, 480_000, 1_000_000])
    times = keyframe_times(np.array([0, 100_000, 500_000, 750_000, 1_000_000, 1_100_000]), keyframes)
    assert times.tolist() == [0, 96_000, 480_000, 740_000, 1_000_000, 1_100_000]


def replace_line(path, line, text):
    rows = path.read_text().splitlines()
    rows[line] = text
    path.write_text("\n".join(rows))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "calib_cam_front.json").unlink(), "calib_cam_front.json: the file is missing"),
        (
            lambda r: (r / "calib_cam_front.json").write_text(json.dumps(CALIBRATION | {"intrinsic_native": [1]})),
            r"intrinsic_native has shape \[1\], expected \[3, 3\] finite",
        ),
        (
            lambda r: (r / "calib_cam_front.json").write_text(
                json.dumps(CALIBRATION | {"ego_from_cam_quat_wxyz": [2, 0, 0, 0]})
            ),
            "ego_from_cam_quat_wxyz has norm 2, expected 1",
        ),
        (lambda r: replace_line(r / "cam_front_timestamps_us.txt", 3, "x"), "not one whole number of microseconds"),
        (
            lambda r: replace_line(r / "cam_front_timestamps_us.txt", 3, "5"),
            "line 4 does not come after the line before",
        ),
        (lambda r: (r / "frames" / "000003.jpg").unlink(), "000003.jpg.*the image file is missing"),
        (lambda r: (r / "frames" / "000003.jpg").write_bytes(b"\xff\xd8"), "000003.jpg.*does not decode"),
        (lambda r: next((r.parent / "scenarionet").iterdir()).unlink(), r"no log sd_\*scene-0042.pkl in"),
    ],
)
def test_bad_folders(root, tmp_path, damage, message):
    damage(root)
    with pytest.raises(InputError, match=message):
        read(root, tmp_path)
    assert not (tmp_path / "clip").exists()


@pytest.mark.shared_data
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real frames")
def test_real_scene(tmp_path):
    clip = read(DATA, tmp_path, scale=0.25)
    frames = clip.cameras["CAM_FRONT"]
    assert len(frames.t_us) == 39
    # The car ahead at frame 22, a dark saloon: its box falls on pixels darker than the road around it.
    image = frames.load(22).astype(float).mean(axis=2)
    assert image[61:68, 111:121].mean() < image[76:86, 105:123].mean() - 30
    pose = clip.ego.poses_at(frames.t_us[22:23])[0] @ frames.camera.T_rig_camera
    ahead = [
        frames.camera.project((track.trajectory.poses_at(frames.t_us[22:23])[0, :3, 3] - pose[:3, 3]) @ pose[:3, :3])[0]
        for track in clip.tracks
        if track.category == "vehicle" and track.is_present(int(frames.t_us[22]))
    ]
    assert any(abs(x - 116) < 2 and abs(y - 65) < 4 for x, y in ahead)
