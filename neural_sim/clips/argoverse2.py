"""Reader of Argoverse 2 sensor logs: cameras, lidar, boxes, map. Logs without images become clips without cameras."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from neural_sim.artifacts import work_folder
from neural_sim.cameras import Camera
from neural_sim.clips.argoverse_map import read_map
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
from neural_sim.clips.foreign_tables import Columns, read_columns
from neural_sim.clips.frame_selection import choose_cameras, select_frames
from neural_sim.clips.numbered_files import NumberedFiles
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.recording_cars import FORD_FUSION
from neural_sim.clips.track_building import build_tracks
from neural_sim.errors import InputError
from neural_sim.frames import invert_pose, pose_from_translation_quaternion
from neural_sim.road_map import RoadMap
from neural_sim.road_users import Track
from neural_sim.trajectory import Trajectory

CAMERA_ORDER = ("ring_front_center", "ring_front_left", "ring_front_right", "stereo_front_left")
# Height of the ego origin (rear axle) above the ground of the log's own height map.
EGO_ABOVE_GROUND_M = 0.317
T_EGO_RIG = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -EGO_ABOVE_GROUND_M], [0, 0, 0, 1]])
# Poses nearer in time than this repeat each other; dividing by their difference amplifies noise.
SHORTEST_POSE_STEP_NS = 1_000_000

POSE_KINDS = dict.fromkeys(("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m"), np.float64)
# What is not named here stands on the road without taking part in traffic.
CATEGORY_BY_NAME = {
    **dict.fromkeys(("PEDESTRIAN", "STROLLER", "WHEELCHAIR", "OFFICIAL_SIGNALER", "ANIMAL", "DOG"), "pedestrian"),
    **dict.fromkeys(("BICYCLE", "BICYCLIST", "MOTORCYCLE", "MOTORCYCLIST"), "cyclist"),
    **dict.fromkeys(("WHEELED_DEVICE", "WHEELED_RIDER"), "cyclist"),
    **dict.fromkeys(("REGULAR_VEHICLE", "LARGE_VEHICLE", "RAILED_VEHICLE", "VEHICULAR_TRAILER"), "vehicle"),
    **dict.fromkeys(("BUS", "SCHOOL_BUS", "ARTICULATED_BUS", "BOX_TRUCK", "TRUCK", "TRUCK_CAB"), "vehicle"),
}


def ingest_argoverse2(options: IngestOptions, out: Path) -> Clip:
    """Make a clip folder at `out` from the log `options.sequence` below `options.root` and return it as read back.

    The rig is the ego frame lowered to the ground. The world keeps the axes of the city frame with the origin near the
    first ego position. Raises `InputError` naming the file on anything missing, damaged or inconsistent.
    """
    log = find_log(options)
    ego = read_ego(log / "city_SE3_egovehicle.feather")
    images = sorted(path.name for path in (log / "sensors" / "cameras").glob("*") if path.is_dir())
    if images:
        cameras = _cameras(log, images, options)
        ends = [(frames.t_us[0], frames.t_us[-1]) for frames in cameras.values()]
        kept = cover(ego, int(min(start for start, _ in ends)), int(max(end for _, end in ends)))
    else:
        refuse_camera_options(options, f"argoverse2 log {log.name}")
        cameras, kept = {}, select_poses(ego, options, str(log))
    with work_folder(out) as work:
        clip = Clip(
            clip_id=out.name,
            source=_source(log),
            cameras=cameras,
            ego=kept,
            ego_vehicle=FORD_FUSION,
            tracks=crop_tracks(_tracks(log / "annotations.feather", ego), kept),
            road_map=_map(log),
            lidar_paths=_lidar(log, kept, work),
        )
        return finish_clip(with_local_world(clip), options, out, work)


def find_log(options: IngestOptions) -> Path:
    """The folder of `options.sequence` below `options.root` (or the root itself)."""
    if options.root is None:
        raise InputError("argoverse2 needs the folder of the logs; pass --root DIR")
    marker = "city_SE3_egovehicle.feather"
    if (options.root / marker).is_file():
        return options.root
    found = sorted(path.parent for path in options.root.glob(f"*/{marker}"))
    wanted = [path for path in found if path.name.startswith(options.sequence)]
    if len(wanted) == 1 or (wanted and not options.sequence):
        return wanted[0]
    names = ", ".join(path.name for path in found[:5]) or "none"
    raise InputError(
        f"{options.root}: {len(wanted)} logs named {options.sequence}* with {marker} inside; available: {names}"
    )


def read_ego(path: Path) -> Trajectory:
    """Rig poses in the city frame, without the repeated ones. Raises `InputError` naming the file."""
    columns = read_columns(path, {"timestamp_ns": np.int64, **POSE_KINDS})
    order = np.argsort(columns["timestamp_ns"], kind="stable")
    t_ns = columns["timestamp_ns"][order]
    if len(t_ns) < 2:
        raise InputError(f"{path}: {len(t_ns)} poses, expected at least 2; download the file again")
    kept = [0]
    for i in range(1, len(t_ns)):
        if t_ns[i] - t_ns[kept[-1]] >= SHORTEST_POSE_STEP_NS:
            kept.append(i)
    poses = _poses(columns, str(path))[order][kept] @ T_EGO_RIG
    return trajectory_from_poses(t_ns[kept] // 1000, poses, str(path))


def _tracks(path: Path, ego: Trajectory) -> list[Track]:
    if not path.is_file():
        return []
    sizes = ("length_m", "width_m", "height_m")
    kinds = {"timestamp_ns": np.int64, "track_uuid": np.str_, "category": np.str_, **POSE_KINDS}
    columns = read_columns(path, {**kinds, **dict.fromkeys(sizes, np.float64)})
    t_us = columns["timestamp_ns"] // 1000
    # Boxes are in the ego frame at their own time; the rig pose leads back to it.
    T_city_ego = ego.poses_at(t_us) @ invert_pose(T_EGO_RIG)
    T_city_box = T_city_ego @ _poses(columns, str(path))
    rows_by_id: dict[str, list[int]] = {}
    for row, track_id in enumerate(columns["track_uuid"]):
        rows_by_id.setdefault(str(track_id), []).append(row)
    tracks: list[Track] = []
    for track_id, rows in rows_by_id.items():
        length_m, width_m, height_m = (float(np.median(columns[name][rows])) for name in sizes)
        category = CATEGORY_BY_NAME.get(str(columns["category"][rows[0]]), "obstacle")
        size_m = (length_m, width_m, height_m)
        tracks += build_tracks(track_id, category, size_m, t_us[rows], T_city_box[rows], str(path))
    return tracks


def _cameras(log: Path, available: list[str], options: IngestOptions) -> dict[str, CameraFrames]:
    names = choose_cameras(available, CAMERA_ORDER, options, str(log / "sensors" / "cameras"))
    calibration = _calibration(log)
    times = {name: _image_times(log / "sensors" / "cameras" / name) for name in names}
    start_us = min(int(t_ns[0]) // 1000 for t_ns in times.values())
    frames = {}
    for name, t_ns in times.items():
        folder = log / "sensors" / "cameras" / name
        if name not in calibration:
            raise InputError(f"{log / 'calibration'}: no calibration of camera {name}; restore the files")
        kept = select_frames(t_ns // 1000, options, str(folder), start_us)
        paths = NumberedFiles(folder, t_ns[kept], ".jpg")
        frames[name] = CameraFrames(calibration[name], t_ns[kept] // 1000, paths)
    return frames


def _image_times(folder: Path) -> Int[np.ndarray, "n"]:
    stamps = sorted(int(path.stem) for path in folder.glob("*.jpg") if path.stem.isdigit())
    if not stamps:
        raise InputError(f"{folder}: no images named <timestamp_ns>.jpg; restore the log")
    return np.array(stamps, np.int64)


def _calibration(log: Path) -> dict[str, Camera]:
    intrinsics_path = log / "calibration" / "intrinsics.feather"
    poses_path = log / "calibration" / "egovehicle_SE3_sensor.feather"
    kinds = {"sensor_name": np.str_, **dict.fromkeys(("fx_px", "fy_px", "cx_px", "cy_px"), np.float64)}
    found = read_columns(intrinsics_path, {**kinds, "height_px": np.int64, "width_px": np.int64})
    columns = read_columns(poses_path, {"sensor_name": np.str_, **POSE_KINDS})
    poses = dict(zip(columns["sensor_name"], _poses(columns, str(poses_path)), strict=True))
    cameras = {}
    for i, name in enumerate(found["sensor_name"]):
        if name not in poses:
            raise InputError(f"{poses_path}: no row for sensor {name}; restore the file")
        fx_px, fy_px, cx_px, cy_px = (float(found[key][i]) for key in ("fx_px", "fy_px", "cx_px", "cy_px"))
        # The images are published undistorted, so k1..k3 of the table do not apply to them.
        cameras[str(name)] = Camera(
            name=str(name),
            width_px=int(found["width_px"][i]),
            height_px=int(found["height_px"][i]),
            fx_px=fx_px,
            fy_px=fy_px,
            cx_px=cx_px + 0.5,
            cy_px=cy_px + 0.5,
            T_rig_camera=invert_pose(T_EGO_RIG) @ poses[name],
        )
    return cameras


def _lidar(log: Path, ego: Trajectory, folder: Path) -> dict[int, Path]:
    """Sweeps within the ego poses as float32 [N, 4] files in the rig frame, intensity 0..1."""
    paths = {}
    for source in sorted((log / "sensors" / "lidar").glob("*.feather")):
        t_us = int(source.stem) // 1000 if source.stem.isdigit() else -1
        if not ego.start_us <= t_us <= ego.end_us:
            continue
        columns = read_columns(source, dict.fromkeys(("x", "y", "z", "intensity"), np.float64))
        points = np.stack([columns["x"], columns["y"], columns["z"] + EGO_ABOVE_GROUND_M], axis=-1)
        sweep = np.concatenate([points, columns["intensity"][:, None] / 255.0], axis=1).astype(np.float32)
        paths[t_us] = folder / f"{t_us}.npy"
        np.save(paths[t_us], sweep)
    return paths


def _map(log: Path) -> RoadMap | None:
    found = sorted((log / "map").glob("log_map_archive_*.json"))
    return read_map(found[0]) if found else None


def _poses(columns: Columns, where: str) -> Float[np.ndarray, "n 4 4"]:
    quaternion = np.stack([columns[name] for name in ("qx", "qy", "qz", "qw")], axis=-1)
    norm = np.linalg.norm(quaternion, axis=1)
    bad = np.flatnonzero(np.abs(norm - 1.0) > 1e-3)
    if bad.size:
        raise InputError(f"{where}: row {int(bad[0])} has a quaternion of norm {norm[bad[0]]:.4g}, expected 1")
    translation = np.stack([columns[name] for name in ("tx_m", "ty_m", "tz_m")], axis=-1)
    return pose_from_translation_quaternion(translation, quaternion)


def _source(log: Path) -> dict[str, Any]:
    return {
        "dataset": "argoverse2",
        "sequence": log.name,
        "licence": "CC BY-NC-SA 4.0",
        "assumed": {"ego_above_ground_m": EGO_ABOVE_GROUND_M},
    }
