from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from synthetic_clip import write_image

from neural_sim.clips.kitti_odometry import camera_tilt, ingest_kitti_odometry, mounting, rig_poses
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.registry import ingest
from neural_sim.clips.storage import read_clip
from neural_sim.errors import InputError
from neural_sim.frames import R_RIG_FORWARD_CAMERA, invert_pose, pose_from_planar, pose_from_translation_quaternion

KITTI = Path(__file__).parents[2] / "shared" / "data" / "kitti_odometry"
FRAMES = 90
STEP_S = 0.104
P0 = "P0: 30 0 16 0 0 30 10 0 0 0 1 0"
P1 = "P1: 30 0 16 -15 0 30 10 0 0 0 1 0"
P2 = "P2: 30 0 16 1.5 0 30 10 -0.3 0 0 1 0.01"


def camera_poses(tilt_rad=0.0, slope_rad=0.0):
    """cam0 poses of a rig that drives a left turn at 8 m/s up a constant slope, level across."""
    distance = 8.0 * STEP_S * np.arange(FRAMES)
    yaw = 0.01 * distance
    planar = np.stack([np.sin(yaw) / 0.01, (1 - np.cos(yaw)) / 0.01, yaw], axis=-1)
    tilt_world = np.eye(4)
    tilt_world[:3, :3] = Rotation.from_euler("y", -slope_rad).as_matrix()
    T_world_cam = tilt_world @ pose_from_planar(planar) @ mounting(tilt_rad)
    return invert_pose(T_world_cam[0]) @ T_world_cam


def write_layout(root, poses=None):
    folder = root / "sequences" / "07"
    folder.mkdir(parents=True)
    (root / "poses").mkdir()
    poses = camera_poses() if poses is None else poses
    (root / "poses" / "07.txt").write_text("".join(" ".join(f"{v:.6e}" for v in p[:3].ravel()) + "\n" for p in poses))
    (folder / "times.txt").write_text("".join(f"{STEP_S * i:.6e}\n" for i in range(FRAMES)))
    (folder / "calib.txt").write_text(f"{P0}\n{P1}\n{P2}\nTr: {' '.join(['0'] * 12)}\n")
    for i in range(FRAMES):
        write_image(folder / "image_0" / f"{i:06d}.png", i, gray=True)
        write_image(folder / "image_2" / f"{i:06d}.png", 1000 + i)
    return root


@pytest.fixture
def root(tmp_path):
    return write_layout(tmp_path / "kitti")


def read(root, tmp_path, **options):
    return ingest_kitti_odometry(IngestOptions(root=root, **options), tmp_path / "clip")


def lines(path, change):
    rows = path.read_text().splitlines()
    path.write_text("\n".join(change(rows)) + "\n")


def test_clip_is_written_and_read_back(root, tmp_path):
    clip = ingest("kitti-odometry", IngestOptions(root=root), tmp_path / "clip")
    assert clip.clip_id == "clip"
    assert list(clip.cameras) == ["image_2"]
    assert clip.cameras["image_2"].paths[5] == tmp_path / "clip" / "frames" / "image_2" / "520000.png"
    assert read_clip(tmp_path / "clip").cameras["image_2"].load(5).shape == (20, 32, 3)
    assert clip.source["assumed"]["camera_height_m"] == 1.65
    np.testing.assert_array_equal(clip.ego.t_us, np.arange(FRAMES) * 104_000)


def test_gray_images_become_three_equal_channels(root, tmp_path):
    pixels = read(root, tmp_path, cameras=("image_0",)).cameras["image_0"].load(0)
    assert (pixels == pixels[..., :1]).all()


def test_world_starts_at_the_first_rig_pose_and_turns_left(root, tmp_path):
    ego = read(root, tmp_path).ego
    np.testing.assert_allclose(ego.T_world_rig[0], np.eye(4), atol=1e-6)
    end = 8.0 * STEP_S * (FRAMES - 1)
    expected = [np.sin(0.01 * end) / 0.01, (1 - np.cos(0.01 * end)) / 0.01, 0.01 * end]
    np.testing.assert_allclose(ego.planar[-1], expected, atol=1e-3)
    np.testing.assert_allclose(ego.T_world_rig[:, 2, 3], 0.0, atol=1e-3)


@pytest.mark.parametrize("slope_rad", [0.0, 0.05])
@pytest.mark.parametrize("tilt_rad", [-0.01, 0.02])
def test_camera_tilt_is_told_from_the_slope(tilt_rad, slope_rad):
    assert camera_tilt(camera_poses(tilt_rad, slope_rad)) == pytest.approx(tilt_rad, abs=1e-4)


def test_positive_tilt_looks_down():
    optical_axis = mounting(0.02)[:3, 2]
    np.testing.assert_allclose(optical_axis, [np.cos(0.02), 0.0, -np.sin(0.02)], atol=1e-12)
    np.testing.assert_allclose(mounting(0.0)[:3, :3], R_RIG_FORWARD_CAMERA)


def test_a_short_path_counts_as_level():
    assert camera_tilt(camera_poses(tilt_rad=0.02)[:10]) == 0.0


def test_rig_poses_are_rotations_in_spite_of_rounding():
    rounded = np.round(camera_poses(0.02), 6)
    rotation = rig_poses(rounded, mounting(0.02))[:, :3, :3]
    np.testing.assert_allclose(rotation @ np.swapaxes(rotation, 1, 2), np.tile(np.eye(3), (FRAMES, 1, 1)), atol=1e-12)


def test_stereo_baselines(root, tmp_path):
    (root / "sequences/07/image_0").rename(root / "sequences/07/image_1")
    clip = read(root, tmp_path, cameras=("image_1", "image_2"))
    tilt = mounting(clip.source["assumed"]["camera_tilt_rad"])
    right = invert_pose(tilt) @ clip.cameras["image_1"].camera.T_rig_camera
    np.testing.assert_allclose(right[:3, 3], [0.5, 0.0, 0.0], atol=1e-12)
    # P2 t = (1.5, -0.3, 0.01): K^-1 t with the depth offset taken out, negated.
    left = invert_pose(tilt) @ clip.cameras["image_2"].camera.T_rig_camera
    np.testing.assert_allclose(left[:3, 3], [-(1.5 - 16 * 0.01) / 30, (0.3 + 10 * 0.01) / 30, -0.01], atol=1e-12)


def test_a_later_range_starts_its_own_world(root, tmp_path):
    clip = read(root, tmp_path, start_s=0.52, duration_s=8.112, cameras=("image_0",))
    assert clip.clip_id == "clip"
    assert (clip.source["first_frame"], clip.source["last_frame"]) == (5, 83)
    assert len(clip.cameras["image_0"].t_us) == 79
    np.testing.assert_allclose(clip.ego.planar[0], 0.0, atol=1e-9)
    assert clip.ego.start_us == 520_000


def test_rate_thins_images_but_not_poses(root, tmp_path):
    clip = read(root, tmp_path, rate_hz=4.8)
    assert len(clip.cameras["image_2"].t_us) == 45
    assert len(clip.ego.t_us) == 89


def test_scale(root, tmp_path):
    frames = read(root, tmp_path, scale=0.5, cameras=("image_0",)).cameras["image_0"]
    assert (frames.camera.width_px, frames.camera.fx_px, frames.camera.cx_px) == (16, 15.0, 8.25)
    with Image.open(frames.paths[0]) as image:
        assert (image.size, image.mode) == ((16, 10), "L")


def bad(name, change, message, **options):
    return pytest.param(change, message, options, id=name)


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    ("change", "message", "options"),
    [
        bad(
            "missing frame",
            lambda root: (root / "sequences/07/image_2/000041.png").unlink(),
            r"image_2/000041\.png: the frame is missing \(1 of 90 are\); restore it, or choose a range without it",
        ),
        bad(
            "missing last frame",
            lambda root: (root / "sequences/07/image_2/000089.png").unlink(),
            r"image_2/000089\.png: the frame is missing",
        ),
        bad(
            "truncated image",
            lambda root: truncate(root / "sequences/07/image_2/000041.png", 900),
            r"camera image_2, frame 41 \(.*000041\.png\): the image does not decode .*; restore the file",
        ),
        bad(
            "truncated first image",
            lambda root: truncate(root / "sequences/07/image_2/000000.png", 9),
            r"000000\.png: the image does not decode .*; restore the file",
        ),
        bad(
            "short poses",
            lambda root: lines(root / "poses/07.txt", lambda rows: rows[:50]),
            r"poses/07\.txt: 50 poses, but times\.txt has 90 frames; use the pose file of the whole sequence",
        ),
        bad(
            "repeated time",
            lambda root: lines(root / "sequences/07/times.txt", lambda rows: [*rows[:8], rows[7], *rows[9:]]),
            r"times\.txt: line 9 \(0\.728000 s\) does not come after line 8 \(0\.728000 s\)",
        ),
        bad(
            "short times",
            lambda root: lines(root / "sequences/07/times.txt", lambda rows: rows[:80]),
            r"times\.txt: 80 times, but image_2 has frames up to 000089\.png",
        ),
        bad(
            "calib without P0",
            lambda root: lines(root / "sequences/07/calib.txt", lambda rows: rows[1:]),
            r"calib\.txt: no line P0; use the calib\.txt of this sequence",
        ),
        bad(
            "calib with a short row",
            lambda root: lines(root / "sequences/07/calib.txt", lambda rows: [rows[0][:-2], *rows[1:]]),
            r"calib\.txt: line 1: found 11 values, expected 12 finite ones",
        ),
        bad(
            "pose that is no number",
            lambda root: lines(root / "poses/07.txt", lambda rows: ["a" + rows[0], *rows[1:]]),
            r"07\.txt: line 1: could not convert string to float",
        ),
        bad(
            "pose that is no rotation",
            lambda root: lines(root / "poses/07.txt", lambda rows: ["2 " + rows[0].split(" ", 1)[1], *rows[1:]]),
            r"07\.txt: line 1 is not a rotation and translation",
        ),
        bad(
            "no poses",
            lambda root: (root / "poses/07.txt").unlink(),
            r"poses/07\.txt: the file is missing; restore it",
        ),
        bad(
            "unknown sequence",
            lambda root: None,
            r"sequences/22: no such folder, .* available sequences: 07",
            sequence="22",
        ),
        bad(
            "unknown camera",
            lambda root: None,
            r"no images of camera 'image_3'; available: image_0, image_2",
            cameras=("image_3",),
        ),
        bad(
            "camera without calibration",
            lambda root: (root / "sequences/07/image_0").rename(root / "sequences/07/image_3"),
            r"calib\.txt: no line P3 for camera image_3",
            cameras=("image_3",),
        ),
        bad(
            "too short a range",
            lambda root: None,
            r"5\.93 s long, but 8\.00 s are required",
            duration_s=6.0,
        ),
        bad(
            "empty range",
            lambda root: None,
            r"times\.txt: 0 frames between 60\.0 and inf s, .* the drive is 9\.26 s long",
            start_s=60.0,
        ),
    ],
)
def test_bad_input(root, tmp_path, change, message, options):
    change(root)
    with pytest.raises(InputError, match=message):
        read(root, tmp_path, **options)
    assert not (tmp_path / "clip").exists()


def test_a_root_is_needed_and_must_have_the_layout(tmp_path):
    with pytest.raises(InputError, match=r"kitti-odometry needs the dataset folder .* pass --root DIR"):
        ingest_kitti_odometry(IngestOptions(), tmp_path / "clip")
    with pytest.raises(InputError, match="no folder sequences/ inside, expected the KITTI odometry layout"):
        ingest_kitti_odometry(IngestOptions(root=tmp_path), tmp_path / "clip")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return ingest_kitti_odometry(IngestOptions(root=KITTI, sequence="00"), tmp_path_factory.mktemp("kitti") / "clip")


needs_kitti = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not KITTI.is_dir(), reason="KITTI odometry frames are not on this machine"),
]


class TestRealDrive:
    pytestmark = needs_kitti

    def test_frames(self, real):
        frames = real.cameras["image_0"]
        assert len(frames.t_us) == len(real.ego.t_us) == 200
        assert frames.load(199).shape == (376, 1241, 3)
        assert real.duration_s == pytest.approx(20.631, abs=1e-3)

    def test_motion(self, real):
        moved_m = np.linalg.norm(np.diff(real.ego.T_world_rig[:, :3, 3], axis=0), axis=1)
        speed_mps = moved_m / (np.diff(real.ego.t_us) * 1e-6)
        assert moved_m.sum() == pytest.approx(144.9, abs=0.5)
        assert speed_mps.min() == pytest.approx(3.6, abs=0.1)
        assert speed_mps.max() == pytest.approx(10.2, abs=0.2)
        assert np.degrees(real.ego.planar[-1, 2]) == pytest.approx(-77.0, abs=1.0)

    def test_the_rig_moves_along_its_own_x_axis(self, real):
        poses = real.ego.T_world_rig
        moved_m = np.diff(poses[:, :3, 3], axis=0)
        forward = (poses[:-1, :3, 0] + poses[1:, :3, 0]) / 2
        cosine = (moved_m * forward).sum(axis=1) / np.linalg.norm(moved_m, axis=1) / np.linalg.norm(forward, axis=1)
        assert np.median(np.degrees(np.arccos(np.clip(cosine, -1, 1)))) < 1.5

    def test_assumed_mounting_fits_the_drive(self, real):
        """Without side slip the lateral motion of cam0 is its distance from the rear axle times the yaw rate."""
        T_rig_camera = real.cameras["image_0"].camera.T_rig_camera
        camera = real.ego.T_world_rig @ T_rig_camera
        turn = Rotation.from_matrix(camera[:-1, :3, :3]).inv() * Rotation.from_matrix(camera[1:, :3, :3])
        middle = Rotation.from_matrix(camera[:-1, :3, :3]) * Rotation.from_rotvec(turn.as_rotvec() / 2)
        step_m = middle.inv().apply(np.diff(camera[:, :3, 3], axis=0))
        design = np.stack([step_m[:, 2], -turn.as_rotvec()[:, 1]], axis=1)
        _, ahead_m = np.linalg.lstsq(design, -step_m[:, 0], rcond=None)[0]
        assert ahead_m == pytest.approx(T_rig_camera[0, 3], abs=0.15)

    def test_rotations_line_up_distant_pixels(self, real):
        """In the sharp turn, the part above the horizon matches the next frame once turned by the poses."""
        frames = real.cameras["image_0"]
        poses = real.ego.T_world_rig @ frames.camera.T_rig_camera
        unturned = np.mean([self._mismatch(frames, poses, i, follow=False) for i in range(100, 110)])
        turned = np.mean([self._mismatch(frames, poses, i, follow=True) for i in range(100, 110)])
        assert turned < 0.6 * unturned

    @staticmethod
    def _mismatch(frames, poses, index, follow):
        """Mean absolute difference of the upper image half against frame `index + 1` at infinite distance."""
        camera = frames.camera
        v, u = np.mgrid[20:140:4, 300:900:4]
        rays = np.stack([u + 0.5, v + 0.5, np.ones_like(u)], axis=-1) @ np.linalg.inv(camera.K).T
        turn = poses[index + 1, :3, :3].T @ poses[index, :3, :3] if follow else np.eye(3)
        seen = rays @ turn.T @ camera.K.T
        pixel = np.floor(seen[..., :2] / seen[..., 2:]).astype(int)
        inside = (pixel >= 0).all(axis=-1) & (pixel < [camera.width_px, camera.height_px]).all(axis=-1)
        first, second = (frames.load(i)[..., 0].astype(float) for i in (index, index + 1))
        return np.abs(first[v, u] - second[pixel[..., 1].clip(0, 375), pixel[..., 0].clip(0, 1240)])[inside].mean()


def test_pose_helper_round_trip():
    """The generated layout is a drive: rig poses recovered from its cameras are planar."""
    poses = rig_poses(camera_poses(0.02), mounting(0.02))
    np.testing.assert_allclose(poses[:, 2, 3], 0.0, atol=1e-9)
    quaternion = Rotation.from_matrix(poses[:, :3, :3]).as_quat()
    np.testing.assert_allclose(pose_from_translation_quaternion(poses[:, :3, 3], quaternion), poses, atol=1e-9)
