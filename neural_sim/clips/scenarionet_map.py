"""The map of a ScenarioNet log: lanes, and the drivable area between its boundary rings."""

from typing import Any

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.clips.restricted_pickle import as_array
from neural_sim.errors import InputError
from neural_sim.road_map import Lane, RoadMap

# Intersection connectors have no polygon, so no width of their own.
CONNECTOR_WIDTH_M = 3.5


def road_map(features: Any, where: str) -> RoadMap:
    """Lanes and drivable area of `map_features`, map frame, m.

    The drivable area is what an odd number of the rings `boundary_*` contain, so a ring in a ring is a hole; logs
    without rings get the union of their lanes. The third column of a lane's polyline is its heading and is dropped.
    Raises `InputError` naming the feature when one is malformed.
    """
    if not isinstance(features, dict):
        raise InputError(f"{where}: map_features should be a dict, found {type(features).__name__}; get the log again")
    lanes: list[Lane] = []
    lane_areas: list[shapely.Geometry] = []
    rings: list[Float[np.ndarray, "m 2"]] = []
    for name, feature in features.items():
        label = f"{where}: map feature {name}"
        if not isinstance(feature, dict) or not isinstance(feature.get("type"), str):
            raise InputError(f"{label}: expected a dict with a type; get the log again")
        if str(name).startswith("boundary_"):
            rings.append(_points(feature, "polyline", 4, label))
        elif feature["type"].startswith("LANE_"):
            lane, area = _lane(str(name), feature, label)
            lanes.append(lane)
            lane_areas.append(area)
    area = even_odd(rings) if rings else shapely.union_all(lane_areas)
    return RoadMap(
        lanes=tuple(lanes),
        road_edges_m=tuple(rings) if rings else _outlines(area),
        drivable_areas=_polygons(area),
        source="recorded",
    )


def even_odd(rings: list[Float[np.ndarray, "m 2"]]) -> shapely.Geometry:
    """Area that an odd number of rings contain, in whatever order and orientation they come."""
    areas = [shapely.make_valid(shapely.Polygon(ring)) for ring in rings]
    return shapely.symmetric_difference_all(areas)


def _lane(name: str, feature: dict[str, Any], where: str) -> tuple[Lane, shapely.Geometry]:
    center = _points(feature, "polyline", 2, where)
    line = shapely.LineString(center)
    has_polygon = "polygon" in feature and len(np.atleast_1d(feature["polygon"])) >= 3
    if has_polygon:
        area = shapely.make_valid(shapely.Polygon(_points(feature, "polygon", 3, where)))
        width_m = float(area.area / line.length) if line.length > 0 else CONNECTOR_WIDTH_M
    else:
        area, width_m = line.buffer(CONNECTOR_WIDTH_M / 2, cap_style="flat"), CONNECTOR_WIDTH_M
    center = np.column_stack([center, np.zeros(len(center))])
    return Lane(name, center, width_m, is_junction=not has_polygon), area


def _points(feature: dict[str, Any], key: str, at_least: int, where: str) -> Float[np.ndarray, "m 2"]:
    points = as_array(feature.get(key), f"{where}, {key}")
    if points.ndim != 2 or points.shape[1] not in (2, 3) or len(points) < at_least:
        raise InputError(
            f"{where}: {key} has shape {list(points.shape)}, expected at least {at_least} rows of 2 or 3 numbers"
        )
    return points[:, :2].copy()


def _polygons(area: shapely.Geometry) -> tuple[shapely.Polygon, ...]:
    return tuple(part for part in shapely.get_parts(area) if isinstance(part, shapely.Polygon) and part.area > 0)


def _outlines(area: shapely.Geometry) -> tuple[Float[np.ndarray, "m 2"], ...]:
    return tuple(shapely.get_coordinates(ring) for part in _polygons(area) for ring in (part.exterior, *part.interiors))
