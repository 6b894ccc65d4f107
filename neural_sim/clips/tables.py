"""Trajectories and tracks as Parquet tables."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from neural_sim.errors import InputError
from neural_sim.frames import pose_from_translation_quaternion, translation_quaternion_from_pose
from neural_sim.road_users import CATEGORIES, Track
from neural_sim.trajectory import Trajectory

POSE_COLUMNS = ("x", "y", "z", "qx", "qy", "qz", "qw")
SIZE_COLUMNS = ("length", "width", "height")


def write_trajectory(trajectory: Trajectory, path: Path) -> None:
    """Write columns `t_us` (us), `x y z` (m, world) and `qx qy qz qw`, one row a pose."""
    pq.write_table(pa.table({"t_us": pa.array(trajectory.t_us, pa.int64()), **_pose_columns(trajectory)}), path)


def read_trajectory(path: Path) -> Trajectory:
    """Inverse of `write_trajectory`. Raises `InputError` on a missing or damaged file, column or pose."""
    columns = _read_columns(path, {"t_us": np.int64, **dict.fromkeys(POSE_COLUMNS, np.float64)})
    if len(columns["t_us"]) == 0:
        raise InputError(f"{path}: the table has no rows, expected at least one pose; ingest the clip again")
    return _trajectory(columns, slice(None), str(path))


def write_tracks(tracks: tuple[Track, ...], path: Path) -> None:
    """Write one row per track and time: `track_id, category, length width height` (m), then as `write_trajectory`."""
    lengths = [len(track.trajectory.t_us) for track in tracks]
    sizes = np.repeat(np.array([track.size_m for track in tracks], float).reshape(-1, 3), lengths, axis=0)
    poses = [_pose_columns(track.trajectory) for track in tracks]
    columns = {
        "track_id": pa.array(
            [track.track_id for track, n in zip(tracks, lengths, strict=True) for _ in range(n)], pa.string()
        ),
        "category": pa.array(
            [track.category for track, n in zip(tracks, lengths, strict=True) for _ in range(n)], pa.string()
        ),
        **{name: pa.array(sizes[:, i], pa.float64()) for i, name in enumerate(SIZE_COLUMNS)},
        "t_us": pa.array(_joined([track.trajectory.t_us for track in tracks]), pa.int64()),
        **{name: pa.array(_joined([pose[name] for pose in poses]), pa.float64()) for name in POSE_COLUMNS},
    }
    pq.write_table(pa.table(columns), path)


def read_tracks(path: Path) -> tuple[Track, ...]:
    """Inverse of `write_tracks`, in the order of first appearance; rows of a track need not be contiguous.

    Raises `InputError` on a missing or damaged file or column, an unknown category, or a bad trajectory.
    """
    kinds = {"track_id": np.object_, "category": np.object_, "t_us": np.int64}
    columns = _read_columns(path, {**kinds, **dict.fromkeys(SIZE_COLUMNS + POSE_COLUMNS, np.float64)})
    rows_by_id: dict[str, list[int]] = {}
    for row, track_id in enumerate(columns["track_id"]):
        rows_by_id.setdefault(str(track_id), []).append(row)
    return tuple(_track(columns, track_id, np.array(rows), path) for track_id, rows in rows_by_id.items())


def _track(columns: dict[str, np.ndarray], track_id: str, rows: np.ndarray, path: Path) -> Track:
    where = f"{path}, track {track_id!r}"
    category = str(columns["category"][rows[0]])
    if category not in CATEGORIES:
        raise InputError(f"{where}: category is {category!r}, expected one of {', '.join(CATEGORIES)}; mend the table")
    length_m, width_m, height_m = (float(columns[name][rows[0]]) for name in SIZE_COLUMNS)
    return Track(track_id, category, (length_m, width_m, height_m), _trajectory(columns, rows, where))


def _trajectory(columns: dict[str, np.ndarray], rows: np.ndarray | slice, where: str) -> Trajectory:
    pose = np.stack([columns[name][rows] for name in POSE_COLUMNS], axis=-1)
    norms = np.linalg.norm(pose[:, 3:], axis=1)
    bad = np.flatnonzero(~(np.abs(norms - 1.0) < 1e-3) | ~np.isfinite(pose).all(axis=1))
    if bad.size:
        raise InputError(
            f"{where}: row {int(bad[0])} is not a pose (position {pose[bad[0], :3].tolist()}, quaternion norm "
            f"{norms[bad[0]]:.4g}, expected finite and 1); mend the table"
        )
    try:
        return Trajectory(columns["t_us"][rows], pose_from_translation_quaternion(pose[:, :3], pose[:, 3:]))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _pose_columns(trajectory: Trajectory) -> dict[str, Shaped[np.ndarray, "n"]]:
    translation_m, quaternion = translation_quaternion_from_pose(trajectory.T_world_rig)
    return dict(zip(POSE_COLUMNS, np.concatenate([translation_m, quaternion], axis=1).T, strict=True))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _read_columns(path: Path, kinds: dict[str, type[np.generic]]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; ingest the clip again")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}); ingest the clip again") from error
    missing = [name for name in kinds if name not in table.column_names]
    if missing:
        raise InputError(f"{path}: columns {', '.join(missing)} are missing; found {', '.join(table.column_names)}")
    return {name: _column(table, name, kind, path) for name, kind in kinds.items()}


def _column(table: pa.Table, name: str, kind: type[np.generic], path: Path) -> np.ndarray:
    column = table[name]
    expected = {np.object_: pa.types.is_string, np.int64: pa.types.is_int64, np.float64: pa.types.is_float64}[kind]
    if not expected(column.type) or column.null_count:
        what = {np.object_: "string", np.int64: "int64", np.float64: "double"}[kind]
        raise InputError(
            f"{path}: column {name} is {column.type} with {column.null_count} empty rows, expected {what} without; "
            "ingest the clip again"
        )
    return column.to_numpy()
