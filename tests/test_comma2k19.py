import shutil

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from video_fixture import frame_number, write_video

from neural_sim.clips import comma2k19
from neural_sim.clips.comma2k19 import enu_from_ecef
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.errors import InputError

SEGMENT = "b0c9d2329ad1606b|2018-08-02--08-34-47/10"
FRAMES = 90
SIZE = (64, 48)
# San Francisco, ECEF.
START = np.array([-2_706_000.0, -4_261_000.0, 3_885_000.0])


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    monkeypatch.setattr(comma2k19, "WIDTH_PX", SIZE[0])
    monkeypatch.setattr(comma2k19, "HEIGHT_PX", SIZE[1])


def save(path, array):
    """A `.npy` file without extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, array)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """One video of all frames, one too short, one of another size; HEVC is slow to encode."""
    folder = tmp_path_factory.mktemp("videos")
    options = {"codec": "libx265", "container": "hevc"}
    return {
        "whole": write_video(folder / "whole.hevc", FRAMES, SIZE, **options),
        "short": write_video(folder / "short.hevc", 10, SIZE, **options),
        "narrow": write_video(folder / "narrow.hevc", 10, (32, 48), **options),
    }


def write_layout(tmp_path, video):
    """10 m/s, heading 30 degrees north of east, level."""
    segment = tmp_path / "comma" / SEGMENT
    heading = np.deg2rad(30)
    to_ecef = enu_from_ecef(START).T
    velocity = to_ecef @ [np.cos(heading), np.sin(heading), 0.0]
    seconds = 1234.5 + 0.05 * np.arange(FRAMES)
    # Device x forward, y right, z down.
    device = np.array([[np.cos(heading), np.sin(heading), 0], [np.sin(heading), -np.cos(heading), 0], [0, 0, -1]])
    xyzw = Rotation.from_matrix(to_ecef @ device).as_quat()
    save(segment / "global_pose" / "frame_times", seconds)
    save(segment / "global_pose" / "frame_positions", START + 10.0 * (seconds - seconds[0])[:, None] * velocity)
    save(segment / "global_pose" / "frame_orientations", np.tile(xyzw[[3, 0, 1, 2]], (FRAMES, 1)))
    shutil.copyfile(video, segment / "video.hevc")
    return tmp_path / "comma"


@pytest.fixture
def root(tmp_path, videos):
    return write_layout(tmp_path, videos["whole"])


@pytest.fixture(autouse=True)
def short_is_enough(monkeypatch):
    monkeypatch.setattr("neural_sim.clips.check.HISTORY_S", 0.5)
    monkeypatch.setattr("neural_sim.clips.check.HORIZON_S", 2.0)


def read(root, tmp_path, **options):
    return ingest("comma2k19", IngestOptions(root=root, **options), tmp_path / "clip")


def test_poses_and_frames(root, tmp_path):
    clip = read(root, tmp_path, sequence=SEGMENT)
    frames = clip.cameras["front"]
    assert [frame_number(frames.load(i)) for i in (0, 17, 80)] == [0, 17, 80]
    assert frames.t_us[17] == 1_234_500_000 + 850_000
    np.testing.assert_allclose(clip.ego.speed_mps_at(clip.ego.t_us), 10.0, rtol=1e-6)
    np.testing.assert_allclose(clip.ego.planar[:, 2], np.deg2rad(30), atol=1e-9)
    np.testing.assert_allclose(clip.ego.T_world_rig[:, 2, 2], 1.0)
    np.testing.assert_allclose(frames.camera.T_rig_camera[:3, :3], [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], atol=1e-12)
    assert np.abs(clip.ego.T_world_rig[0, :3, 3]).max() < 3


def test_a_range_at_a_lower_rate(root, tmp_path):
    frames = read(root, tmp_path, start_s=1.0, duration_s=3.0, rate_hz=5.0).cameras["front"]
    assert [frame_number(frames.load(i)) for i in range(3)] == [20, 24, 28]
    assert len(frames.t_us) == 16


def test_axes_of_east_north_up():
    np.testing.assert_allclose(enu_from_ecef(np.array([6_378_137.0, 0, 0])), [[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    axes = enu_from_ecef(START)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) > 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: (s / "video.hevc").unlink(), "video.hevc: the video is missing"),
        (lambda s: (s / "video.hevc").write_bytes(b"not a video"), "video.hevc: the video does not decode"),
        (
            lambda s: save(s / "global_pose/frame_times", np.arange(FRAMES + 9.0)),
            r"shape \[90, 3\], expected \[99, 3\]",
        ),
        (
            lambda s: save(s / "global_pose/frame_times", np.zeros(FRAMES)),
            "frame_times: expected at least two increasi",
        ),
        (lambda s: save(s / "global_pose/frame_positions", np.full((FRAMES, 3), np.nan)), "frame_positions: shape"),
        (lambda s: save(s / "global_pose/frame_orientations", np.ones((FRAMES, 4))), "orientations: row 0 is no unit"),
        (lambda s: save(s / "global_pose/frame_times", np.array([{}])), "frame_times: not a whole array of numbers"),
        (lambda s: (s / "global_pose/frame_positions").write_bytes(b"\x93NUMPY"), "frame_positions: not a whole array"),
    ],
)
def test_bad_segments(root, tmp_path, damage, message):
    damage(root / SEGMENT)
    with pytest.raises(InputError, match=message):
        read(root, tmp_path)
    assert not (tmp_path / "clip").exists()


def test_a_video_shorter_than_its_times(root, tmp_path, videos):
    shutil.copyfile(videos["short"], root / SEGMENT / "video.hevc")
    with pytest.raises(InputError, match="the video ends after 10 frames, but frame 89 is timed"):
        read(root, tmp_path)


def test_a_video_of_another_size(root, tmp_path, videos):
    shutil.copyfile(videos["narrow"], root / SEGMENT / "video.hevc")
    with pytest.raises(InputError, match="frame 0: 32x48, but the calibration says 64x48"):
        read(root, tmp_path)
