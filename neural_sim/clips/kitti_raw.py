"""Reader of synchronised and rectified KITTI raw drives: cameras, GPS/IMU poses, lidar, tracklets."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from neural_sim.artifacts import work_folder
from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.clips.finishing import (
    cover,
    crop_tracks,
    finish_clip,
    refuse_camera_options,
    select_poses,
    trajectory_from_poses,
    with_local_world,
)
from neural_sim.clips.frame_selection import choose_cameras, select_frames
from neural_sim.clips.kitti_layout import rectified_camera
from neural_sim.clips.kitti_raw_layout import (
    imu_poses,
    matrix,
    read_calibration,
    read_oxts,
    read_timestamps,
    read_tracklets,
    rigid,
)
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.recording_cars import PASSAT_VARIANT
from neural_sim.clips.track_building import build_tracks
from neural_sim.errors import InputError
from neural_sim.frames import invert_pose
from neural_sim.road_users import Track
from neural_sim.trajectory import Trajectory

CAMERA_ORDER = ("image_02", "image_00", "image_03", "image_01")
# From the sensor drawing: the IMU is 0.93 m above the road; camera 0 is 1.08 m ahead of it and 1.03 m ahead of the
# rear axle.
T_IMU_RIG = np.array([[1.0, 0, 0, 0.05], [0, 1, 0, 0], [0, 0, 1, -0.93], [0, 0, 0, 1]])
CATEGORY_BY_TYPE = {
    **dict.fromkeys(("Car", "Van", "Truck", "Tram"), "vehicle"),
    **dict.fromkeys(("Pedestrian", "Person (sitting)"), "pedestrian"),
    "Cyclist": "cyclist",
}


def ingest_kitti_raw(options: IngestOptions, out: Path) -> Clip:
    """Make a clip folder at `out` from drive `options.sequence` below `options.root` and return it as read back.

    The world has x east, y north, z up, its origin near the first position. Raises `InputError` naming the file on
    anything missing, damaged or inconsistent.
    """
    drive = find_drive(options)
    T_rig_velo, T_cam0_rig = _mountings(drive.parent)
    ego = _ego(drive)
    available = [name for name in CAMERA_ORDER if (drive / name / "timestamps.txt").is_file()]
    if available:
        cameras = _cameras(drive, available, T_cam0_rig, options)
        starts, ends = zip(*((int(f.t_us[0]), int(f.t_us[-1])) for f in cameras.values()), strict=True)
        kept = cover(ego, min(starts), max(ends))
        cameras = {name: _within(frames, kept) for name, frames in cameras.items()}
    else:
        refuse_camera_options(options, f"kitti-raw drive {drive.name}")
        cameras, kept = {}, select_poses(ego, options, str(drive))
    with work_folder(out) as work:
        clip = Clip(
            clip_id=out.name,
            source={
                "dataset": "kitti-raw",
                "sequence": drive.name,
                "licence": "CC BY-NC-SA 3.0",
                "rate_hz": options.rate_hz,
                "scale": options.scale,
                "assumed": {"T_imu_rig": T_IMU_RIG.tolist()},
            },
            cameras=cameras,
            ego=kept,
            ego_vehicle=PASSAT_VARIANT,
            tracks=crop_tracks(_tracks(drive, ego, T_rig_velo), kept),
            lidar_paths=_lidar(drive, kept, T_rig_velo, work),
        )
        return finish_clip(with_local_world(clip), options, out, work)


def find_drive(options: IngestOptions) -> Path:
    """The folder `<date>/<date>_drive_NNNN_sync` of `options.sequence` below `options.root`."""
    if options.root is None:
        raise InputError("kitti-raw needs the folder with <date>/<date>_drive_NNNN_sync/; pass --root DIR")
    found = sorted(path for path in options.root.glob("*/*_sync") if (path / "oxts").is_dir())
    wanted = [path for path in found if options.sequence in path.name]
    if len(wanted) == 1 or (wanted and not options.sequence):
        return wanted[0]
    names = ", ".join(path.name for path in found[:5]) or "none"
    raise InputError(f"{options.root}: {len(wanted)} drives named *{options.sequence}*_sync; available: {names}")


def _mountings(folder: Path) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "4 4"]]:
    """`T_rig_velo`, and `T_cam0_rig` to the rectified camera 0."""
    imu_to_velo, velo_to_cam = folder / "calib_imu_to_velo.txt", folder / "calib_velo_to_cam.txt"
    T_velo_imu = rigid(read_calibration(imu_to_velo), str(imu_to_velo))
    T_cam_velo = rigid(read_calibration(velo_to_cam), str(velo_to_cam))
    path = folder / "calib_cam_to_cam.txt"
    R_rect = np.eye(4)
    R_rect[:3, :3] = matrix(read_calibration(path), "R_rect_00", (3, 3), str(path))
    return invert_pose(T_IMU_RIG) @ invert_pose(T_velo_imu), R_rect @ T_cam_velo @ T_velo_imu @ T_IMU_RIG


def _ego(drive: Path) -> Trajectory:
    path = drive / "oxts" / "timestamps.txt"
    t_us = read_timestamps(path)
    oxts = np.stack([read_oxts(drive / "oxts" / "data" / f"{i:010d}.txt") for i in range(len(t_us))])
    return trajectory_from_poses(t_us, imu_poses(oxts) @ T_IMU_RIG, str(path))


def _cameras(
    drive: Path, available: list[str], T_cam0_rig: Float[np.ndarray, "4 4"], options: IngestOptions
) -> dict[str, CameraFrames]:
    names = choose_cameras(available, CAMERA_ORDER, options, str(drive))
    times = {name: read_timestamps(drive / name / "timestamps.txt") for name in names}
    start_us = min(int(t_us[0]) for t_us in times.values())
    cameras = {}
    for name, t_us in times.items():
        kept = select_frames(t_us, options, str(drive / name), start_us)
        paths = tuple(drive / name / "data" / f"{i:010d}.png" for i in kept)
        cameras[name] = CameraFrames(_camera(drive, name, paths[0], T_cam0_rig), t_us[kept], paths)
    return cameras


def _camera(drive: Path, name: str, image_path: Path, T_cam0_rig: Float[np.ndarray, "4 4"]) -> Camera:
    path = drive.parent / "calib_cam_to_cam.txt"
    projection = matrix(read_calibration(path), f"P_rect_{name[-2:]}", (3, 4), str(path))
    return rectified_camera(name, projection, image_path, invert_pose(T_cam0_rig), str(path))


def _within(frames: CameraFrames, ego: Trajectory) -> CameraFrames:
    """The frames that the poses cover: oxts packets and images start and end up to 10 ms apart."""
    inside = np.flatnonzero((frames.t_us >= ego.start_us) & (frames.t_us <= ego.end_us))
    return CameraFrames(frames.camera, frames.t_us[inside], tuple(frames.paths[int(i)] for i in inside))


def _tracks(drive: Path, ego: Trajectory, T_rig_velo: Float[np.ndarray, "4 4"]) -> list[Track]:
    path = drive / "tracklet_labels.xml"
    if not path.is_file():
        return []
    t_us = _frame_times(drive)
    tracks: list[Track] = []
    for number, tracklet in enumerate(read_tracklets(path)):
        frames = tracklet.first_frame + np.arange(len(tracklet.T_velo_box))
        if tracklet.first_frame < 0 or frames[-1] >= len(t_us):
            raise InputError(f"{path}: item {number}: frames up to {frames[-1]}, but the drive has {len(t_us)}")
        poses = ego.poses_at(t_us[frames]) @ T_rig_velo @ tracklet.T_velo_box
        category = CATEGORY_BY_TYPE.get(tracklet.object_type, "obstacle")
        tracks += build_tracks(f"{number}", category, tracklet.size_m, t_us[frames], poses, str(path))
    return tracks


def _frame_times(drive: Path) -> Int[np.ndarray, "n"]:
    """Time of each frame number: the lidar's, whose frame the labels are in, or that of the poses."""
    velodyne = drive / "velodyne_points" / "timestamps.txt"
    return read_timestamps(velodyne if velodyne.is_file() else drive / "oxts" / "timestamps.txt")


def _lidar(drive: Path, ego: Trajectory, T_rig_velo: Float[np.ndarray, "4 4"], work: Path) -> dict[int, Path]:
    paths = {}
    sources = sorted((drive / "velodyne_points" / "data").glob("*.bin"))
    t_us = _frame_times(drive) if sources else np.zeros(0, np.int64)
    for source in sources:
        index = int(source.stem) if source.stem.isdigit() else len(t_us)
        if index >= len(t_us) or not ego.start_us <= t_us[index] <= ego.end_us:
            continue
        content = source.read_bytes()
        if len(content) % 16:
            raise InputError(f"{source}: {len(content)} bytes are no float32 rows of 4; restore the sweep")
        points = np.frombuffer(content, np.float32).reshape(-1, 4).astype(np.float64)
        moved = points[:, :3] @ T_rig_velo[:3, :3].T + T_rig_velo[:3, 3]
        paths[int(t_us[index])] = work / f"{t_us[index]}.npy"
        np.save(paths[int(t_us[index])], np.concatenate([moved, points[:, 3:]], axis=1).astype(np.float32))
    return paths
