"""Reader of comma2k19 segments: front camera video at 20 Hz and global poses; no road users, no map."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.spatial.transform import Rotation

from neural_sim.artifacts import work_folder
from neural_sim.cameras import Camera
from neural_sim.clips.array_errors import NPY_ERRORS
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.clips.finishing import cover, finish_clip, trajectory_from_poses, with_local_world
from neural_sim.clips.frame_selection import choose_cameras, select_frames
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.recording_cars import HONDA_CIVIC
from neural_sim.clips.video_frames import extract_frames
from neural_sim.errors import InputError
from neural_sim.frames import invert_pose
from neural_sim.maps.geo_reference import WGS84_E2, enu_axes

CAMERA = "front"
WIDTH_PX, HEIGHT_PX, FOCAL_PX = 1164, 874, 910.0
# Device axes: x forward, y right, z down. Camera axes: x right, y down, z forward.
R_DEVICE_CAMERA = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
R_RIG_DEVICE = np.diag([1.0, -1.0, -1.0])
# The device hangs behind the windscreen; the dataset does not say where. Rear axle to device, m.
DEVICE_AHEAD_M, DEVICE_HEIGHT_M = 1.7, 1.22


def ingest_comma2k19(options: IngestOptions, out: Path) -> Clip:
    """Make a clip folder at `out` from segment `options.sequence` below `options.root` and return it as read back.

    A sequence is `<dongle_id>|<start_time>/<segment>`; the root may also be the segment itself. The world has x east,
    y north, z up at the first position. Raises `InputError` naming the file on anything missing or damaged.
    """
    segment = _segment(options)
    choose_cameras((CAMERA,), (CAMERA,), options, str(segment))
    poses_folder = segment / "global_pose"
    seconds = read_array(poses_folder / "frame_times", (-1,))
    t_us = _times(seconds, str(poses_folder / "frame_times"))
    position = read_array(poses_folder / "frame_positions", (len(t_us), 3))
    quaternion_wxyz = read_array(poses_folder / "frame_orientations", (len(t_us), 4))
    ego = trajectory_from_poses(t_us, _rig_poses(position, quaternion_wxyz, str(poses_folder)), str(poses_folder))
    kept = select_frames(t_us, options, str(segment))
    with work_folder(out) as work:
        video = segment / "video.hevc"
        paths = extract_frames(video, kept, work / CAMERA, (WIDTH_PX, HEIGHT_PX), str(video))
        clip = Clip(
            clip_id=out.name,
            source={
                "dataset": "comma2k19",
                "sequence": f"{segment.parent.name}/{segment.name}",
                "rate_hz": options.rate_hz,
                "scale": options.scale,
                "assumed": {"device_ahead_of_rear_axle_m": DEVICE_AHEAD_M, "device_height_m": DEVICE_HEIGHT_M},
            },
            cameras={CAMERA: CameraFrames(_camera(), t_us[kept], paths)},
            ego=cover(ego, int(t_us[kept[0]]), int(t_us[kept[-1]])),
            ego_vehicle=HONDA_CIVIC,
        )
        return finish_clip(with_local_world(clip), options, out, work)


def read_array(path: Path, shape: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
    """A `.npy` array without its extension, as float64. Raises `InputError` on another shape (-1: any length)."""
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; restore it from the comma2k19 download")
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False).astype(np.float64)
    except NPY_ERRORS as error:
        raise InputError(f"{path}: not a whole array of numbers ({error}); restore it") from error
    fits = array.ndim == len(shape) and all(w in (-1, n) for w, n in zip(shape, array.shape, strict=True))
    if not fits or not np.isfinite(array).all():
        raise InputError(f"{path}: shape {list(array.shape)}, expected {list(shape)} finite numbers; restore it")
    return array


def enu_from_ecef(position_m: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation from earth-centred axes to east, north, up of the WGS84 ellipsoid at `position_m`."""
    x, y, z = position_m
    # On the ellipsoid's surface tan(geodetic) = tan(geocentric) / (1 - e2).
    return enu_axes(np.arctan2(z, np.hypot(x, y) * (1 - WGS84_E2)), np.arctan2(y, x))


def _rig_poses(
    position_m: Float[np.ndarray, "n 3"], quaternion_wxyz: Float[np.ndarray, "n 4"], where: str
) -> Float[np.ndarray, "n 4 4"]:
    """Rig poses in east, north, up from the first device position."""
    norm = np.linalg.norm(quaternion_wxyz, axis=1)
    if not (np.abs(norm - 1) < 1e-3).all():
        raise InputError(f"{where}/frame_orientations: row {int(np.argmax(np.abs(norm - 1)))} is no unit quaternion")
    R_enu_ecef = enu_from_ecef(position_m[0])
    poses = np.tile(np.eye(4), (len(position_m), 1, 1))
    # The README says "from ECEF to camera"; the matrices map the device to ECEF.
    poses[:, :3, :3] = R_enu_ecef @ Rotation.from_quat(quaternion_wxyz[:, [1, 2, 3, 0]]).as_matrix()
    poses[:, :3, 3] = (position_m - position_m[0]) @ R_enu_ecef.T
    return poses @ invert_pose(_rig_from_device())


def _rig_from_device() -> Float[np.ndarray, "4 4"]:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = R_RIG_DEVICE, (DEVICE_AHEAD_M, 0.0, DEVICE_HEIGHT_M)
    return pose


def _camera() -> Camera:
    T_rig_camera = _rig_from_device()
    T_rig_camera[:3, :3] = R_RIG_DEVICE @ R_DEVICE_CAMERA
    center = WIDTH_PX / 2, HEIGHT_PX / 2
    return Camera(CAMERA, WIDTH_PX, HEIGHT_PX, FOCAL_PX, FOCAL_PX, *center, T_rig_camera)


def _segment(options: IngestOptions) -> Path:
    if options.root is None:
        raise InputError("comma2k19 needs the folder of a segment or of the drives; pass --root DIR")
    if (options.root / "global_pose").is_dir():
        return options.root
    if options.sequence:
        candidate = options.root / options.sequence
        if (candidate / "global_pose").is_dir():
            return candidate
    found = sorted(path.parent for path in options.root.glob("*/*/global_pose"))
    if found and not options.sequence:
        return found[0]
    names = ", ".join(f"{path.parent.name}/{path.name}" for path in found[:5]) or "none"
    raise InputError(f"{options.root}: no segment {options.sequence!r} with global_pose/ inside; available: {names}")


def _times(seconds: Float[np.ndarray, "n"], where: str) -> Int[np.ndarray, "n"]:
    t_us = np.round(seconds * 1e6).astype(np.int64)
    if len(t_us) < 2 or not (np.diff(t_us) > 0).all():
        raise InputError(f"{where}: expected at least two increasing times; restore the file")
    return t_us
