"""The vector map of an Argoverse 2 log."""

from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.clips.json_input import field, parse_json_object
from neural_sim.errors import InputError
from neural_sim.road_map import Lane, RoadMap

CENTERLINE_SPACING_M = 1.0
DRIVEN_LANE_TYPES = ("VEHICLE", "BUS")


def read_map(path: Path) -> RoadMap:
    """Lanes for cars and buses and the drivable areas of `log_map_archive_*.json`, city frame, m.

    A centre line runs half-way between the lane's boundaries. Road edges are the outlines of the joined drivable areas.
    Raises `InputError` naming the file and the element.
    """
    where = str(path)
    value = parse_json_object(path.read_bytes(), where)
    segments, areas = field(value, "lane_segments", dict, where), field(value, "drivable_areas", dict, where)
    polygons = [_polygon(area, f"{where}: drivable area {name}") for name, area in areas.items()]
    driven = {
        str(name): segment
        for name, segment in segments.items()
        if field(segment, "lane_type", str, f"{where}: lane {name}") in DRIVEN_LANE_TYPES
    }
    joined = shapely.get_parts(shapely.union_all(polygons))
    outlines = [ring for part in joined for ring in (part.exterior, *part.interiors)]
    return RoadMap(
        lanes=tuple(_lane(name, segment, driven, f"{where}: lane {name}") for name, segment in driven.items()),
        road_edges_m=tuple(shapely.get_coordinates(ring) for ring in outlines),
        drivable_areas=tuple(part for part in joined if part.area > 0),
        source="recorded",
    )


def center_line(
    left_m: Float[np.ndarray, "a 3"], right_m: Float[np.ndarray, "b 3"]
) -> tuple[Float[np.ndarray, "m 3"], float]:
    """Line half-way between two boundaries at equal shares of their lengths, about 1 m apart, and the mean width, m."""
    length_m = max(_arc_length(left_m)[-1], _arc_length(right_m)[-1])
    share = np.linspace(0.0, 1.0, max(2, round(length_m / CENTERLINE_SPACING_M) + 1))
    left_m, right_m = _at_shares(left_m, share), _at_shares(right_m, share)
    return (left_m + right_m) / 2, float(np.linalg.norm(left_m - right_m, axis=1).mean())


def _lane(name: str, segment: dict[str, Any], present: dict[str, Any], where: str) -> Lane:
    line, width_m = center_line(
        _points(segment, "left_lane_boundary", 2, where), _points(segment, "right_lane_boundary", 2, where)
    )
    successors = (str(successor) for successor in field(segment, "successors", list, where))
    known = tuple(successor for successor in successors if successor in present)
    return Lane(name, line, width_m, known, is_junction=field(segment, "is_intersection", bool, where))


def _polygon(area: Any, where: str) -> shapely.Geometry:
    return shapely.make_valid(shapely.Polygon(_points(area, "area_boundary", 3, where)[:, :2]))


def _points(value: Any, key: str, at_least: int, where: str) -> Float[np.ndarray, "m 3"]:
    rows = field(value, key, list, where) if isinstance(value, dict) else []
    try:
        points = np.array([[row["x"], row["y"], row["z"]] for row in rows], float).reshape(-1, 3)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: {key} has a point without numbers x, y, z ({error}); restore the file") from error
    if len(points) < at_least:
        raise InputError(f"{where}: {key} has {len(points)} points, expected at least {at_least}; restore the file")
    return points


def _arc_length(points_m: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "m"]:
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points_m, axis=0), axis=1))])


def _at_shares(points_m: Float[np.ndarray, "m 3"], share: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k 3"]:
    length_m = _arc_length(points_m)
    return np.stack([np.interp(share * length_m[-1], length_m, column) for column in points_m.T], axis=-1)
