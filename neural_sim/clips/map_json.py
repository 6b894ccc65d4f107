"""The road map as plain JSON values, for clip folders and scene files."""

from typing import Any

import numpy as np
import shapely
import shapely.errors
from jaxtyping import Float

from neural_sim.clips.json_input import field
from neural_sim.errors import InputError
from neural_sim.road_map import MAP_SOURCES, Lane, RoadMap

# No place on earth is farther from any origin.
FARTHEST_M = 1e8


def road_map_to_json(road_map: RoadMap) -> dict[str, Any]:
    """Lanes, road edges and drivable areas (exterior ring first, then holes), m, world frame."""
    return {
        "source": road_map.source,
        "lanes": [_lane_to_json(lane) for lane in road_map.lanes],
        "road_edges_m": [np.asarray(edge, float).tolist() for edge in road_map.road_edges_m],
        "drivable_areas_m": [
            [shapely.get_coordinates(ring).tolist() for ring in (area.exterior, *area.interiors)]
            for area in road_map.drivable_areas
        ],
    }


def road_map_from_json(value: dict[str, Any], where: str) -> RoadMap:
    """Inverse of `road_map_to_json`; `where` names the file in errors.

    Raises `InputError` on a missing key, a malformed polyline, or a lane successor that is not in the map.
    """
    source = field(value, "source", str, where)
    if source not in MAP_SOURCES:
        raise InputError(f"{where}: map source is {source!r}, expected one of {', '.join(MAP_SOURCES)}; mend the file")
    lanes = tuple(
        _lane_from_json(lane, f"{where}, lane {i}") for i, lane in enumerate(field(value, "lanes", list, where))
    )
    _check_lane_ids(lanes, where)
    edges = field(value, "road_edges_m", list, where)
    areas = field(value, "drivable_areas_m", list, where)
    return RoadMap(
        lanes=lanes,
        road_edges_m=tuple(_points(edge, 2, 2, f"{where}, road edge {i}") for i, edge in enumerate(edges)),
        drivable_areas=tuple(_polygon(area, f"{where}, drivable area {i}") for i, area in enumerate(areas)),
        source=source,
    )


def _lane_to_json(lane: Lane) -> dict[str, Any]:
    value: dict[str, Any] = {
        "lane_id": lane.lane_id,
        "centerline_m": np.asarray(lane.centerline_m, float).tolist(),
        "width_m": float(lane.width_m),
        "successors": list(lane.successors),
    }
    if lane.speed_limit_mps is not None:
        value["speed_limit_mps"] = float(lane.speed_limit_mps)
    if lane.is_junction:
        value["is_junction"] = True
    return value


def _lane_from_json(value: Any, where: str) -> Lane:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {type(value).__name__}; mend the file")
    successors = field(value, "successors", list, where)
    return Lane(
        lane_id=field(value, "lane_id", str, where),
        centerline_m=_points(field(value, "centerline_m", list, where), 3, 2, where),
        width_m=field(value, "width_m", float, where),
        successors=tuple(str(successor) for successor in successors),
        speed_limit_mps=field(value, "speed_limit_mps", float, where) if "speed_limit_mps" in value else None,
        is_junction=field(value, "is_junction", bool, where) if "is_junction" in value else False,
    )


def _check_lane_ids(lanes: tuple[Lane, ...], where: str) -> None:
    ids = {lane.lane_id for lane in lanes}
    if len(ids) < len(lanes):
        raise InputError(f"{where}: {len(lanes)} lanes share {len(ids)} ids; give every lane its own lane_id")


def _polygon(rings: Any, where: str) -> shapely.Polygon:
    if not isinstance(rings, list) or not rings:
        raise InputError(f"{where}: expected a list of rings, the outline first; mend the file")
    coordinates = [_points(ring, 2, 4, where) for ring in rings]
    try:
        return shapely.Polygon(coordinates[0], coordinates[1:])
    except (shapely.errors.GEOSException, ValueError) as error:
        raise InputError(f"{where}: the rings make no polygon ({error}); mend the file") from error


def _points(value: Any, dimensions: int, at_least: int, where: str) -> Float[np.ndarray, "m d"]:
    try:
        points = np.asarray(value, float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: points are not numbers ({error}); mend the file") from error
    if points.ndim != 2 or points.shape[1] != dimensions or len(points) < at_least:
        raise InputError(
            f"{where}: points have shape {list(points.shape)}, expected at least {at_least} rows of {dimensions} "
            "coordinates; mend the file"
        )
    if not (np.abs(points) < FARTHEST_M).all():
        raise InputError(f"{where}: a coordinate is beyond {FARTHEST_M:g} m or not finite; mend the file")
    return points
