"""Reader of the KITTI odometry benchmark (camera poses, stereo images, no map and no other road users)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.clips.finishing import finish_clip
from neural_sim.clips.frame_selection import select_frames
from neural_sim.clips.kitti_layout import (
    CAMERA_FOLDERS,
    DEFAULT_ORDER,
    KittiSequence,
    available_sequences,
    read_sequence,
    rectified_camera,
    require_images,
)
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.recording_cars import PASSAT_VARIANT
from neural_sim.errors import InputError
from neural_sim.frames import R_RIG_FORWARD_CAMERA, invert_pose, pose_from_planar
from neural_sim.trajectory import Trajectory

# From the sensor drawing of the dataset: cameras 1.65 m above the road, 1.68 m behind the front axle of a 2.71 m
# wheelbase. The odometry files carry neither, so both are assumptions; the poses of sequence 00 agree (the point of
# the car that moves without side slip lies 1.01 m behind cam0).
CAMERA_HEIGHT_M = 1.65
CAMERA_AHEAD_OF_REAR_AXLE_M = 2.71 - 1.68
# The tilt of the cameras against the road is measured over at least this path; below it the cameras count as level.
SHORTEST_PATH_FOR_TILT_M = 20.0


def ingest_kitti_odometry(options: IngestOptions, out: Path) -> Clip:
    """Make a clip folder at `out` from `options.root` (with `sequences/` and `poses/`) and return it as read back.

    Cameras keep their names `image_0`..`image_3`. The world has its origin at the first rig pose of the clip, x along
    its heading and z up, where up is opposite to gravity as seen by the tilt-corrected first camera of the sequence.
    Raises `InputError` naming the file on anything missing, truncated or inconsistent.
    """
    sequence = read_sequence(_root(options), _sequence_name(options))
    cameras = _camera_names(sequence, options)
    kept = select_frames(sequence.t_us, options, str(sequence.folder / "times.txt"))
    tilt_rad = camera_tilt(sequence.T_first_cam0)
    T_rig_cam0 = mounting(tilt_rad)
    frames = [_frames(sequence, name, kept, T_rig_cam0) for name in cameras]
    span = slice(int(kept[0]), int(kept[-1]) + 1)
    clip = Clip(
        clip_id=out.name,
        source=_source(sequence, options, span, tilt_rad),
        cameras={item.camera.name: item for item in frames},
        ego=Trajectory(sequence.t_us[span], rig_poses(sequence.T_first_cam0, T_rig_cam0)[span]),
        ego_vehicle=PASSAT_VARIANT,
    )
    clip = replace(clip, ego=_from_first_pose(clip.ego))
    return finish_clip(clip, options, out)


def camera_tilt(T_first_cam0: Float[np.ndarray, "n 4 4"]) -> float:
    """Angle by which the camera looks below the driving direction, rad: the median over steps of the motion's rise.

    0 for a path shorter than `SHORTEST_PATH_FOR_TILT_M`. A car moves along its own x axis, so the motion seen in the
    camera shows how the camera is mounted, on flat ground and on slopes alike.
    """
    step_m = np.diff(T_first_cam0[:, :3, 3], axis=0)
    length_m = np.linalg.norm(step_m, axis=1)
    moving = length_m > 0.1
    if length_m.sum() < SHORTEST_PATH_FOR_TILT_M or not moving.any():
        return 0.0
    middle = Rotation.from_matrix(T_first_cam0[:-1, :3, :3] + T_first_cam0[1:, :3, :3])
    seen = middle.inv().apply(step_m)[moving]
    return float(np.median(np.arctan2(-seen[:, 1], seen[:, 2])))


def mounting(tilt_rad: float) -> Float[np.ndarray, "4 4"]:
    """`T_rig_cam0`: assumed height and distance from the rear axle, on the centre line, looking down by `tilt_rad`."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("y", tilt_rad).as_matrix() @ R_RIG_FORWARD_CAMERA
    pose[:3, 3] = (CAMERA_AHEAD_OF_REAR_AXLE_M, 0.0, CAMERA_HEIGHT_M)
    return pose


def rig_poses(T_first_cam0: Float[np.ndarray, "n 4 4"], T_rig_cam0: Float[np.ndarray, "4 4"]) -> np.ndarray:
    """Rig poses [N, 4, 4] in the frame of the sequence's first rig pose, m; rotations made exactly orthonormal."""
    poses = T_rig_cam0 @ T_first_cam0 @ invert_pose(T_rig_cam0)
    poses[:, :3, :3] = Rotation.from_matrix(poses[:, :3, :3]).as_matrix()
    return poses


def _from_first_pose(ego: Trajectory) -> Trajectory:
    """Move the world origin to the first pose and its x axis to that heading; z stays up."""
    first = ego.planar[0]
    T_world_sequence = invert_pose(pose_from_planar(first, ego.T_world_rig[0, 2, 3]))
    return Trajectory(ego.t_us, T_world_sequence @ ego.T_world_rig)


def _root(options: IngestOptions) -> Path:
    if options.root is None:
        raise InputError("kitti-odometry needs the dataset folder (with sequences/ and poses/ inside); pass --root DIR")
    if not (options.root / "sequences").is_dir():
        raise InputError(
            f"{options.root}: no folder sequences/ inside, expected the KITTI odometry layout; mend --root"
        )
    return options.root


def _sequence_name(options: IngestOptions) -> str:
    assert options.root is not None
    found = available_sequences(options.root)
    if not options.sequence and not found:
        raise InputError(f"{options.root / 'sequences'}: the folder is empty; restore the KITTI odometry download")
    return options.sequence or found[0]


def _camera_names(sequence: KittiSequence, options: IngestOptions) -> tuple[str, ...]:
    found = [name for name in DEFAULT_ORDER if (sequence.folder / name).is_dir()]
    wanted = options.cameras or tuple(found[:1])
    if not wanted:
        raise InputError(f"{sequence.folder}: no image folder, expected one of {', '.join(CAMERA_FOLDERS)}")
    for name in wanted:
        if name not in found:
            raise InputError(
                f"{sequence.folder}: no images of camera {name!r}; available: {', '.join(sorted(found)) or 'none'}"
            )
        if name not in sequence.projections:
            raise InputError(
                f"{sequence.folder / 'calib.txt'}: no line P{name[-1]} for camera {name}; restore the file"
            )
    return tuple(wanted)


def _frames(sequence: KittiSequence, name: str, kept: np.ndarray, T_rig_cam0: np.ndarray) -> CameraFrames:
    paths = require_images(sequence, name, kept)
    where = str(sequence.folder / "calib.txt")
    camera = rectified_camera(name, sequence.projections[name], paths[0], T_rig_cam0, where)
    return CameraFrames(camera, sequence.t_us[kept], paths)


def _source(sequence: KittiSequence, options: IngestOptions, span: slice, tilt_rad: float) -> dict[str, Any]:
    return {
        "dataset": "kitti-odometry",
        "sequence": sequence.folder.name,
        "first_frame": span.start,
        "last_frame": span.stop - 1,
        "rate_hz": options.rate_hz,
        "scale": options.scale,
        "licence": "CC BY-NC-SA 3.0",
        "assumed": {
            "camera_height_m": CAMERA_HEIGHT_M,
            "camera_ahead_of_rear_axle_m": round(CAMERA_AHEAD_OF_REAR_AXLE_M, 3),
            "camera_tilt_rad": tilt_rad,
        },
    }
