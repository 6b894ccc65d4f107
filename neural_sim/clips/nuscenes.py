"""Reader of nuScenes in its published layout: cameras with sweeps, lidar keyframes, boxes, map expansion."""

from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.artifacts import work_folder
from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.clips.finishing import cover, crop_tracks, finish_clip, trajectory_from_poses, with_local_world
from neural_sim.clips.frame_selection import choose_cameras, select_frames
from neural_sim.clips.json_input import field
from neural_sim.clips.nuscenes_map import read_map
from neural_sim.clips.nuscenes_tables import SceneTables, find_tables, pose_of, read_scene_tables
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.recording_cars import RENAULT_ZOE
from neural_sim.clips.track_building import build_tracks
from neural_sim.errors import InputError
from neural_sim.road_map import RoadMap
from neural_sim.road_users import Track
from neural_sim.trajectory import Trajectory

CAMERA_ORDER = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
LIDAR = "LIDAR_TOP"
MAP_MARGIN_M = 150.0


def ingest_nuscenes(options: IngestOptions, out: Path) -> Clip:
    """Make a clip folder at `out` from scene `options.sequence` below `options.root` and return it as read back.

    Cameras keep all frames, keyframes and sweeps, at about 12 Hz; lidar keeps the keyframes. The ego frame is the rig:
    rear axle, on the ground. Ego heights are 0 throughout, as published. Raises `InputError` naming the table or file
    on anything missing, damaged or inconsistent.
    """
    folder = find_tables(options.root)
    root = folder.parent
    tables = read_scene_tables(folder, options.sequence)
    cameras = _cameras(tables, root, options)
    ego = cover(
        _ego(tables),
        min(int(frames.t_us[0]) for frames in cameras.values()),
        max(int(frames.t_us[-1]) for frames in cameras.values()),
    )
    with work_folder(out) as work:
        clip = Clip(
            clip_id=out.name,
            source={
                "dataset": "nuscenes",
                "sequence": tables.name,
                "location": tables.location,
                "licence": "CC BY-NC-SA 4.0",
                "rate_hz": options.rate_hz,
                "scale": options.scale,
            },
            cameras=cameras,
            ego=ego,
            ego_vehicle=RENAULT_ZOE,
            tracks=crop_tracks(_tracks(tables), ego),
            road_map=_map(root, tables.location, ego),
            lidar_paths=_lidar(tables, root, ego, work),
        )
        return finish_clip(with_local_world(clip), options, out, work)


def category_of(name: str) -> str:
    """Road-user category of a nuScenes category name."""
    if name in ("vehicle.bicycle", "vehicle.motorcycle"):
        return "cyclist"
    return {"vehicle": "vehicle", "human": "pedestrian", "animal": "pedestrian"}.get(name.split(".")[0], "obstacle")


def _cameras(tables: SceneTables, root: Path, options: IngestOptions) -> dict[str, CameraFrames]:
    available = sorted(channel for channel in tables.sensor_rows if channel.startswith("CAM"))
    names = choose_cameras(available, CAMERA_ORDER, options, f"{tables.folder}: {tables.name}")
    start_us = min(int(tables.sensor_rows[name][0]["timestamp"]) for name in names)
    cameras = {}
    for name in names:
        rows = tables.sensor_rows[name]
        t_us = np.array([row["timestamp"] for row in rows], np.int64)
        kept = select_frames(t_us, options, f"{tables.name}, {name}", start_us)
        paths = tuple(_inside(root, rows[i]["filename"]) for i in kept)
        cameras[name] = CameraFrames(_camera(tables, name, rows[0]), t_us[kept], paths)
    return cameras


def _camera(tables: SceneTables, name: str, row: dict[str, Any]) -> Camera:
    token = row["calibrated_sensor_token"]
    where = f"{tables.folder / 'calibrated_sensor'}.json: {token}"
    try:
        K = np.array(field(tables.tables["calibrated_sensor"][token], "camera_intrinsic", list, where), float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: camera_intrinsic is not numbers ({error}); restore the tables") from error
    if K.shape != (3, 3) or not np.isfinite(K).all():
        raise InputError(f"{where}: camera_intrinsic has shape {list(K.shape)}, expected [3, 3]; restore the tables")
    width_px, height_px = (field(row, key, int, f"{tables.folder / 'sample_data'}.json") for key in ("width", "height"))
    focal = float(K[0, 0]), float(K[1, 1])
    center = float(K[0, 2]) + 0.5, float(K[1, 2]) + 0.5
    return Camera(name, width_px, height_px, *focal, *center, T_rig_camera=tables.pose("calibrated_sensor", token))


def _ego(tables: SceneTables) -> Trajectory:
    """Every sensor reading has an ego pose of its own; all of them in order of time, each time once."""
    token_by_time = {
        int(row["timestamp"]): row["ego_pose_token"] for rows in tables.sensor_rows.values() for row in rows
    }
    t_us = np.array(sorted(token_by_time), np.int64)
    poses = np.stack([tables.pose("ego_pose", token_by_time[int(t)]) for t in t_us])
    return trajectory_from_poses(t_us, poses, f"{tables.folder / 'ego_pose'}.json")


def _tracks(tables: SceneTables) -> list[Track]:
    where = f"{tables.folder / 'sample_annotation'}.json"
    rows_by_instance: dict[str, list[dict[str, Any]]] = {}
    for row in tables.annotations:
        rows_by_instance.setdefault(field(row, "instance_token", str, where), []).append(row)
    tracks: list[Track] = []
    for instance, rows in rows_by_instance.items():
        t_us = np.array([tables.sample_times_us[row["sample_token"]] for row in rows], np.int64)
        poses = np.stack([pose_of(row, where) for row in rows])
        width_m, length_m, height_m = _size(rows, f"{where}: instance {instance}")
        category = category_of(tables.category_by_instance.get(instance, ""))
        tracks += build_tracks(instance, category, (length_m, width_m, height_m), t_us, poses, where)
    return tracks


def _size(rows: list[dict[str, Any]], where: str) -> tuple[float, float, float]:
    """Median (width, length, height), m, in the order of the tables."""
    try:
        sizes = np.array([field(row, "size", list, where) for row in rows], float).reshape(len(rows), 3)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: size is not three numbers ({error}); restore the tables") from error
    width_m, length_m, height_m = map(float, np.median(sizes, axis=0))
    return width_m, length_m, height_m


def _lidar(tables: SceneTables, root: Path, ego: Trajectory, work: Path) -> dict[int, Path]:
    paths = {}
    for row in tables.sensor_rows.get(LIDAR, []):
        t_us = int(row["timestamp"])
        if not row.get("is_key_frame") or not ego.start_us <= t_us <= ego.end_us:
            continue
        points = _read_sweep(_inside(root, row["filename"]))
        T_rig_lidar = tables.pose("calibrated_sensor", row["calibrated_sensor_token"])
        moved = points[:, :3] @ T_rig_lidar[:3, :3].T + T_rig_lidar[:3, 3]
        paths[t_us] = work / f"{t_us}.npy"
        np.save(paths[t_us], np.concatenate([moved, points[:, 3:4] / 255.0], axis=1).astype(np.float32))
    return paths


def _read_sweep(path: Path) -> Float[np.ndarray, "n 5"]:
    if not path.is_file():
        raise InputError(f"{path}: the lidar sweep is missing; restore it")
    values = np.frombuffer(path.read_bytes()[: path.stat().st_size // 4 * 4], np.float32)
    if values.size * 4 != path.stat().st_size or values.size % 5 or not np.isfinite(values).all():
        raise InputError(f"{path}: {path.stat().st_size} bytes are no finite float32 rows of 5; restore the sweep")
    return values.reshape(-1, 5).astype(np.float64)


def _map(root: Path, location: str, ego: Trajectory) -> RoadMap | None:
    path = root / "maps" / "expansion" / f"{location}.json"
    if not location or not path.is_file():
        return None
    xy = ego.planar[:, :2]
    return read_map(path, shapely.MultiPoint(xy).convex_hull.buffer(MAP_MARGIN_M))


def _inside(root: Path, name: str) -> Path:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{root}: sample_data names the file {name!r} outside the dataset; do not trust these tables")
    return path
