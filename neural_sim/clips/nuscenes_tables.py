"""The JSON tables of a nuScenes release, cut down to one scene."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from neural_sim.clips.json_input import field
from neural_sim.errors import InputError
from neural_sim.frames import pose_from_translation_quaternion

Row = dict[str, Any]


@dataclass(frozen=True)
class SceneTables:
    """The rows of one scene.

    Attributes:
        name: for example `scene-0103`.
        location: map name, for example `boston-seaport`.
        sample_times_us: time of each keyframe by its token, us.
        sensor_rows: rows of `sample_data` by channel, in order of time.
        annotations: rows of `sample_annotation`.
        category_by_instance: category name by instance token.
        tables: whole tables `ego_pose` and `calibrated_sensor` by token.
        folder: where the tables lie.
    """

    name: str
    location: str
    sample_times_us: dict[str, int]
    sensor_rows: dict[str, list[Row]]
    annotations: list[Row]
    category_by_instance: dict[str, str]
    tables: dict[str, dict[str, Row]]
    folder: Path

    def pose(self, table: str, token: str) -> Float[np.ndarray, "4 4"]:
        """Pose of a row of `ego_pose` (ego to global) or `calibrated_sensor` (sensor to ego), m."""
        where = f"{self.folder / table}.json: {token}"
        if token not in self.tables[table]:
            raise InputError(f"{where}: no such row; restore the tables")
        return pose_of(self.tables[table][token], where)


def pose_of(row: Row, where: str) -> Float[np.ndarray, "4 4"]:
    """Pose of a row's `translation` (m) and `rotation` (wxyz). Raises `InputError` on anything else."""
    try:
        translation = np.array(field(row, "translation", list, where), float)
        quaternion = np.array(field(row, "rotation", list, where), float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: translation or rotation is not numbers ({error}); restore the tables") from error
    sound = translation.shape == (3,) and quaternion.shape == (4,) and np.isfinite(translation).all()
    if not sound or not abs(np.linalg.norm(quaternion) - 1.0) < 1e-3:
        raise InputError(f"{where}: not a pose, expected translation [3] and unit rotation wxyz; restore the tables")
    return pose_from_translation_quaternion(translation, quaternion[[1, 2, 3, 0]])


def find_tables(root: Path | None) -> Path:
    """The folder `v1.0-*` below `root` (or `root` itself)."""
    if root is None:
        raise InputError("nuscenes needs the folder with v1.0-*/, samples/ and sweeps/; pass --root DIR")
    if (root / "scene.json").is_file():
        return root
    found = sorted(path for path in root.glob("v1.0-*") if (path / "scene.json").is_file())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"{root}: expected one folder v1.0-*/ with scene.json, found {names}; mend --root")
    return found[0]


def read_scene_tables(folder: Path, sequence: str) -> SceneTables:
    """The rows of scene `sequence` (empty: the first). Raises `InputError` naming the table."""
    scene = _scene(folder, sequence)
    samples = [row for row in _rows(folder, "sample") if row.get("scene_token") == scene["token"]]
    times = {_text(row, "token", folder, "sample"): _time(row, folder, "sample") for row in samples}
    if len(times) < 2:
        raise InputError(f"{folder / 'sample.json'}: {len(times)} samples of {scene['name']}, expected at least 2")
    instances, categories = _by_token(folder, "instance"), _by_token(folder, "category")
    calibrated, poses = _by_token(folder, "calibrated_sensor"), _by_token(folder, "ego_pose")
    data = [row for row in _rows(folder, "sample_data") if row.get("sample_token") in times]
    logs = _by_token(folder, "log")
    return SceneTables(
        name=str(scene["name"]),
        location=str(logs.get(str(scene.get("log_token")), {}).get("location", "")),
        sample_times_us=times,
        sensor_rows=_by_channel(data, calibrated, _by_token(folder, "sensor"), folder),
        annotations=[row for row in _rows(folder, "sample_annotation") if row.get("sample_token") in times],
        category_by_instance={
            token: str(categories.get(str(row.get("category_token")), {}).get("name", ""))
            for token, row in instances.items()
        },
        tables={"ego_pose": poses, "calibrated_sensor": calibrated},
        folder=folder,
    )


def _scene(folder: Path, sequence: str) -> Row:
    scenes = _rows(folder, "scene")
    wanted = [row for row in scenes if str(row.get("name", "")).endswith(sequence)]
    if not wanted or not {"token", "name"} <= set(wanted[0]):
        names = ", ".join(str(row.get("name")) for row in scenes[:8]) or "none"
        raise InputError(f"{folder / 'scene.json'}: no scene {sequence!r}; available: {names}")
    return wanted[0]


def _by_channel(
    data: Iterable[Row], calibrated: dict[str, Row], sensors: dict[str, Row], folder: Path
) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for row in data:
        token = str(row.get("calibrated_sensor_token"))
        sensor = sensors.get(str(calibrated.get(token, {}).get("sensor_token")), {})
        if "channel" not in sensor:
            raise InputError(f"{folder / 'calibrated_sensor.json'}: no sensor for row {token}; restore the tables")
        _time(row, folder, "sample_data")
        for key in ("filename", "ego_pose_token"):
            _text(row, key, folder, "sample_data")
        rows.setdefault(str(sensor["channel"]), []).append(row)
    return {channel: sorted(found, key=lambda row: row["timestamp"]) for channel, found in rows.items()}


def _rows(folder: Path, table: str) -> list[Row]:
    path = folder / f"{table}.json"
    if not path.is_file():
        raise InputError(f"{path}: the table is missing; restore it from the nuScenes metadata")
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); restore it from the nuScenes metadata") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of objects; restore it from the nuScenes metadata")
    return rows


def _by_token(folder: Path, table: str) -> dict[str, Row]:
    return {_text(row, "token", folder, table): row for row in _rows(folder, table)}


def _text(row: Row, key: str, folder: Path, table: str) -> str:
    return field(row, key, str, str(folder / f"{table}.json"))


def _time(row: Row, folder: Path, table: str) -> int:
    return field(row, "timestamp", int, str(folder / f"{table}.json"))
