"""The lane tables inside NuRec scenes (`map_data/`, `clipgt/`, `fastmap/`), Parquet with nested columns.

| table | column | content |
|---|---|---|
| `lane` | `key.map_id`; `lane.left_rail`, `lane.right_rail` | lists of `{x, y, z}`, m, scene world |
| | `lane.use_types`, `lane.speed_limit` | lists of text; text with a unit |
| `association` | `key.kind`; `association.subjects`, `.objects` | `NEXT_LANE`: every object continues every subject |
| `road_boundary` | `road_boundary.location` | polyline |
| `intersection_area` | `intersection_area.location` | outline |

Only `lane` must be there. Tables of the older layout (`dw_lane`, `lane_chunk`) hold what was perceived at each moment
and not one map; they are not read.
"""

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import shapely
from jaxtyping import Float

from neural_sim.clips.argoverse_map import center_line
from neural_sim.errors import InputError
from neural_sim.road_map import Lane, RoadMap

MAP_FOLDERS = ("map_data", "clipgt", "fastmap")
MAX_TABLE_BYTES = 2**28
_NOT_FOR_CARS = {"BICYCLE", "PEDESTRIAN", "SIDEWALK"}
_SPEED = re.compile(r"\s*([0-9.]+)\s*(km/h|kph|mph|m/s)\s*", re.IGNORECASE)
_SPEED_UNITS = {"km/h": 1 / 3.6, "kph": 1 / 3.6, "mph": 0.44704, "m/s": 1.0}


def map_folder(names: list[str]) -> str | None:
    """The first folder among the member `names` that holds a lane table, in AlpaSim's order."""
    return next((folder for folder in MAP_FOLDERS if f"{folder}/lane.parquet" in names), None)


def parse_lane_tables(tables: Mapping[str, bytes], where: str) -> RoadMap:
    """The road map in `tables` (contents by name without ending). The drivable area is that of lanes and junctions.

    Raises `InputError` naming the table when it is damaged, too large or malformed, and without any lane for cars.
    """
    rows = _rows(tables, "lane", where)
    if not rows:
        raise InputError(f"{where}: lane.parquet has no rows; get the map again")
    junctions = [_area(row, "intersection_area", where) for row in _rows(tables, "intersection_area", where)]
    crossing = shapely.union_all(junctions)
    borders = {
        _text(row, "key", "map_id"): _rails(row, f"{where}: lane.parquet row {index}")
        for index, row in enumerate(rows)
        if not _NOT_FOR_CARS & set(_value(row, "lane", "use_types") or ())
    }
    if not borders:
        raise InputError(f"{where}: lane.parquet has no lane for cars; get the map again")
    following = _following(_rows(tables, "association", where), set(borders))
    limits = {_text(row, "key", "map_id"): _value(row, "lane", "speed_limit") for row in rows}
    lanes = tuple(
        _lane(name, rails, following.get(name, ()), _speed_mps(limits[name]), crossing)
        for name, rails in borders.items()
    )
    strips = [_polygon(np.concatenate([left, right[::-1]])) for left, right in borders.values()]
    areas = shapely.get_parts(shapely.union_all([*strips, *junctions]))
    edges = [_points(_value(row, "road_boundary", "location"), f"{where}: road_boundary.parquet", 2)
             for row in _rows(tables, "road_boundary", where)]  # fmt: skip
    return RoadMap(
        lanes=lanes,
        road_edges_m=tuple(edge[:, :2] for edge in edges),
        drivable_areas=tuple(area for area in areas if isinstance(area, shapely.Polygon) and area.area > 0),
        source="recorded",
    )


def _rows(tables: Mapping[str, bytes], name: str, where: str) -> list[dict[str, Any]]:
    """Rows of a table as nested values; none when the table is missing."""
    if name not in tables:
        return []
    try:
        file = parquet.ParquetFile(io.BytesIO(tables[name]))
        unpacked = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        if unpacked > MAX_TABLE_BYTES:
            raise InputError(f"{where}: {name}.parquet unpacks to {unpacked} bytes, more than {MAX_TABLE_BYTES}")
        wanted = [column for column in ("key", name) if column in file.schema_arrow.names]
        return file.read(columns=wanted).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{where}: {name}.parquet is not a readable table ({error}); get the map again") from error


def _value(row: dict[str, Any], column: str, name: str) -> Any:
    struct = row.get(column)
    return struct.get(name) if isinstance(struct, dict) else None


def _text(row: dict[str, Any], column: str, name: str) -> str:
    return str(_value(row, column, name))


def _rails(row: dict[str, Any], where: str) -> tuple[Float[np.ndarray, "a 3"], Float[np.ndarray, "b 3"]]:
    left, right = (
        _points(_value(row, "lane", f"{side}_rail"), f"{where}: {side}_rail", 2) for side in ("left", "right")
    )
    return left, right


def _points(value: Any, where: str, at_least: int) -> Float[np.ndarray, "n 3"]:
    try:
        points = np.array([[point["x"], point["y"], point["z"]] for point in value], float).reshape(-1, 3)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: not a list of x, y, z ({error}); get the map again") from error
    if len(points) < at_least or not np.isfinite(points).all():
        raise InputError(f"{where}: {len(points)} points, expected at least {at_least} with finite numbers")
    return points


def _area(row: dict[str, Any], name: str, where: str) -> shapely.Geometry:
    return _polygon(_points(_value(row, name, "location"), f"{where}: {name}.parquet", 3))


def _polygon(points_m: Float[np.ndarray, "n 3"]) -> shapely.Geometry:
    return shapely.make_valid(shapely.Polygon(points_m[:, :2]))


def _following(rows: list[dict[str, Any]], present: set[str]) -> dict[str, tuple[str, ...]]:
    """Lanes that continue each lane."""
    following: dict[str, dict[str, None]] = {}
    for row in rows:
        if _value(row, "key", "kind") == "NEXT_LANE":
            for subject in _value(row, "association", "subjects") or ():
                objects = (str(other) for other in _value(row, "association", "objects") or ())
                following.setdefault(str(subject), {}).update(dict.fromkeys(o for o in objects if o in present))
    return {name: tuple(others) for name, others in following.items()}


def _lane(
    name: str,
    rails: tuple[Float[np.ndarray, "a 3"], Float[np.ndarray, "b 3"]],
    successors: tuple[str, ...],
    speed_limit_mps: float | None,
    crossing: shapely.Geometry,
) -> Lane:
    line, width_m = center_line(*rails)
    in_junction = bool(shapely.contains_xy(crossing, *line[len(line) // 2, :2]))
    return Lane(name, line, width_m, successors, speed_limit_mps, in_junction)


def _speed_mps(value: Any) -> float | None:
    match = _SPEED.fullmatch(value) if isinstance(value, str) else None
    return float(match.group(1)) * _SPEED_UNITS[match.group(2).lower()] if match else None
