"""The nuScenes map expansion: lanes as arcs, drivable area as polygons with holes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.clips.json_input import field, parse_json_object
from neural_sim.errors import InputError
from neural_sim.road_map import Lane, RoadMap

SPACING_M = 1.0
_TURN_SIGNS = {"L": 1.0, "S": 0.0, "R": -1.0}


def read_map(path: Path, near: shapely.Geometry) -> RoadMap:
    """Lanes and drivable area of `maps/expansion/<location>.json` that touch `near`, map frame, m.

    The drivable area is cut to `near`: a map covers a whole quarter. Raises `InputError` naming the file and element.
    """
    where = str(path)
    value = parse_json_object(path.read_bytes(), where)
    nodes = {str(n.get("token")): (n.get("x"), n.get("y")) for n in field(value, "node", list, where)}
    polygons = {str(p.get("token")): p for p in field(value, "polygon", list, where)}
    areas = [
        _polygon(polygons, str(token), nodes, where)
        for area in field(value, "drivable_area", list, where)
        for token in field(area, "polygon_tokens", list, where)
    ]
    drivable = shapely.intersection(shapely.union_all(areas), near)
    parts = tuple(part for part in shapely.get_parts(drivable) if isinstance(part, shapely.Polygon))
    return RoadMap(
        lanes=_lanes(value, polygons, nodes, near, where),
        road_edges_m=tuple(
            shapely.get_coordinates(ring) for part in parts for ring in (part.exterior, *part.interiors)
        ),
        drivable_areas=parts,
        source="recorded",
    )


def arc_line(segments: list[dict[str, Any]], where: str) -> Float[np.ndarray, "m 3"]:
    """Points (x, y, yaw) about 1 m apart along a lane's `arcline_path_3`: Dubins paths with exact arcs."""
    points: list[Float[np.ndarray, "3"]] = []
    for segment in segments:
        pose = np.array(field(segment, "start_pose", list, where), float)
        shape, lengths = field(segment, "shape", str, where), field(segment, "segment_length", list, where)
        radius_m = field(segment, "radius", float, where)
        if pose.shape != (3,) or len(lengths) != len(shape) or not set(shape) <= set(_TURN_SIGNS) or radius_m <= 0:
            raise InputError(f"{where}: arc line {shape!r} is malformed; restore the map expansion")
        for letter, length_m in zip(shape, lengths, strict=True):
            curvature = _TURN_SIGNS[letter] / radius_m
            steps = np.linspace(0.0, float(length_m), max(2, round(float(length_m) / SPACING_M) + 1))
            arc = np.stack([_along(pose, curvature, step_m) for step_m in steps])
            points.extend(arc if not points else arc[1:])
            pose = arc[-1]
    return np.array(points).reshape(-1, 3)


def _along(pose: Float[np.ndarray, "3"], curvature: float, length_m: float) -> Float[np.ndarray, "3"]:
    turn = curvature * length_m
    # The chord of an arc points along its middle heading.
    chord_m = length_m * np.sinc(turn / (2 * np.pi))
    middle = pose[2] + turn / 2
    return np.array([pose[0] + chord_m * np.cos(middle), pose[1] + chord_m * np.sin(middle), pose[2] + turn])


def _lanes(
    value: dict[str, Any],
    polygons: dict[str, Any],
    nodes: dict[str, Any],
    near: shapely.Geometry,
    where: str,
) -> tuple[Lane, ...]:
    paths, connectivity = field(value, "arcline_path_3", dict, where), field(value, "connectivity", dict, where)
    plain, connectors = field(value, "lane", list, where), field(value, "lane_connector", list, where)
    lanes: list[Lane] = []
    for i, element in enumerate([*plain, *connectors]):
        token = field(element, "token", str, where)
        line = arc_line(paths.get(token, []), f"{where}: lane {token}")
        if len(line) < 2 or not shapely.LineString(line[:, :2]).intersects(near):
            continue
        length_m = float(np.linalg.norm(np.diff(line[:, :2], axis=0), axis=1).sum())
        area = _polygon(polygons, str(element.get("polygon_token")), nodes, where).area
        successors = tuple(str(name) for name in connectivity.get(token, {}).get("outgoing", []))
        center = np.column_stack([line[:, :2], np.zeros(len(line))])
        lanes.append(Lane(token, center, float(area) / length_m, successors, is_junction=i >= len(plain)))
    present = {lane.lane_id for lane in lanes}
    return tuple(replace(lane, successors=tuple(name for name in lane.successors if name in present)) for lane in lanes)


def _polygon(
    polygons: dict[str, Any], token: str, nodes: dict[str, Any], where: str
) -> shapely.Polygon | shapely.MultiPolygon:
    if token not in polygons:
        raise InputError(f"{where}: no polygon {token}; restore the map expansion")
    polygon = polygons[token]
    holes = [hole.get("node_tokens", []) for hole in polygon.get("holes", [])]
    try:
        rings = [[nodes[name] for name in ring] for ring in (polygon["exterior_node_tokens"], *holes) if ring]
        area = shapely.make_valid(shapely.Polygon(rings[0], rings[1:]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{where}: polygon {token} is malformed ({error}); restore the map expansion") from error
    if not isinstance(area, shapely.Polygon | shapely.MultiPolygon):
        raise InputError(f"{where}: polygon {token} has no area; restore the map expansion")
    return area
