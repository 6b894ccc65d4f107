"""Road maps out as the lane tables of NuRec scenes, whose loader in AlpaSim takes lanes and road edges as they are.

The members are those that `trajdata.dataset_specific.mads.mads_utils` opens; `neural_sim.maps.nurec_tables` reads them
back and lists the columns. Its lanes run half-way between two rails of equally many points, and its relations name one
lane as their only subject.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from jaxtyping import Float
from scipy.spatial import KDTree

from neural_sim.road_map import Lane, RoadMap

LABEL_CLASS = "roadloop"
_POINTS = pa.list_(pa.struct([(axis, pa.float64()) for axis in "xyz"]))
_KEY = pa.struct([(name, pa.string()) for name in ("clip_id", "label_class_id", "map_id")])
_RELATION_KEY = pa.struct([(name, pa.string()) for name in ("clip_id", "label_class_id", "map_id", "kind")])
_TEXTS = pa.list_(pa.string())
_SCHEMAS: Mapping[str, pa.Schema] = {
    "clip": pa.schema([("key", _KEY), ("clip", pa.struct([("label_class_id", pa.string())]))]),
    "lane": pa.schema([("key", _KEY), ("lane", pa.struct(
        [("left_rail", _POINTS), ("right_rail", _POINTS), ("use_types", _TEXTS), ("speed_limit", pa.string())]
    ))]),
    "association": pa.schema(
        [("key", _RELATION_KEY), ("association", pa.struct([("subjects", _TEXTS), ("objects", _TEXTS)]))]
    ),
    "road_boundary": pa.schema([("key", _KEY), ("road_boundary", pa.struct([("location", _POINTS)]))]),
    "intersection_area": pa.schema([("key", _KEY), ("intersection_area", pa.struct([("location", _POINTS)]))]),
    "traffic_sign": pa.schema([("key", _KEY), ("traffic_sign", pa.struct([("category", pa.string())]))]),
    "wait_line": pa.schema([("key", _KEY), ("wait_line", pa.struct([("location", _POINTS)]))]),
}  # fmt: skip
# The loader unfolds rows into such columns and asks for these of tables without any row too.
_UNFOLDED = {
    "association": ("key.clip_id", "key.kind", "Association.subjects", "Association.objects"),
    "wait_line": ("key.clip_id", "key.map_id"),
}


def encode_lane_tables(road_map: RoadMap, origin_m: Float[np.ndarray, "3"], name: str) -> dict[str, bytes]:
    """`road_map` as Parquet tables by name without ending, shifted by `-origin_m` (m); `name` is the clip's id.

    Edges lie at the height of the nearest centre line. Areas around the lanes of junctions are their strips; drivable
    areas beyond lanes have no counterpart.
    """
    lanes = {lane.lane_id: lane for lane in road_map.lanes if len(lane.centerline_m) > 1}
    rails = {lane_id: _rails(lane, origin_m) for lane_id, lane in lanes.items()}
    rows = {
        "clip": [{"key": _key(name, name), "clip": {"label_class_id": LABEL_CLASS}}],
        "lane": [{"key": _key(name, lane_id), "lane": _lane(lanes[lane_id], *rails[lane_id])} for lane_id in lanes],
        "association": _relations(lanes, name),
        "road_boundary": [
            {"key": _key(name, f"edge{i}"), "road_boundary": {"location": _points(edge)}}
            for i, edge in enumerate(_edges(road_map, origin_m))
        ],
        "intersection_area": [
            {
                "key": _key(name, f"junction{i}"),
                "intersection_area": {"location": _points(np.concatenate([left, right[::-1]]))},
            }
            for i, (left, right) in enumerate(rails[lane_id] for lane_id in lanes if lanes[lane_id].is_junction)
        ],
        "traffic_sign": [],
        "wait_line": [],
    }
    return {table: _encoded(table, content) for table, content in rows.items()}


def _encoded(table: str, rows: Sequence[Mapping[str, Any]]) -> bytes:
    content = pa.Table.from_pylist(rows, _SCHEMAS[table])
    for column in _UNFOLDED.get(table, ()) if not rows else ():
        content = content.append_column(column, pa.array([], pa.string()))
    buffer = io.BytesIO()
    parquet.write_table(content, buffer)
    return buffer.getvalue()


def _key(clip_id: str, map_id: str) -> dict[str, str]:
    return {"clip_id": clip_id, "label_class_id": LABEL_CLASS, "map_id": map_id}


def _rails(lane: Lane, origin_m: Float[np.ndarray, "3"]) -> tuple[np.ndarray, np.ndarray]:
    """Left and right border at half the width from the centre line, along the bisectors of its bends, m."""
    line = lane.centerline_m
    step = np.diff(line[:, :2], axis=0)
    ahead = step / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-9)
    ahead = np.concatenate([ahead[:1], ahead[:-1] + ahead[1:], ahead[-1:]])
    ahead /= np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1e-9)
    aside = np.column_stack([-ahead[:, 1], ahead[:, 0], np.zeros(len(line))]) * lane.width_m / 2
    return line - origin_m + aside, line - origin_m - aside


def _lane(lane: Lane, left: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    limit = "" if lane.speed_limit_mps is None else f"{lane.speed_limit_mps:.6g} m/s"
    return {"left_rail": _points(left), "right_rail": _points(right), "use_types": [], "speed_limit": limit}


def _relations(lanes: Mapping[str, Lane], clip_id: str) -> list[dict[str, Any]]:
    following = {lane_id: [s for s in lane.successors if s in lanes] for lane_id, lane in lanes.items()}
    before: dict[str, list[str]] = {}
    for lane_id, successors in following.items():
        for successor in successors:
            before.setdefault(successor, []).append(lane_id)
    return [
        {
            "key": {**_key(clip_id, f"{kind}-{lane_id}"), "kind": kind},
            "association": {"subjects": [lane_id], "objects": others},
        }
        for kind, relation in (("NEXT_LANE", following), ("PREVIOUS_LANE", before))
        for lane_id, others in relation.items()
        if others
    ]


def _edges(road_map: RoadMap, origin_m: Float[np.ndarray, "3"]) -> list[np.ndarray]:
    """Road edges [m, 3] at the height of the nearest point of a centre line, m."""
    lines = np.concatenate([lane.centerline_m for lane in road_map.lanes])
    tree = KDTree(lines[:, :2])
    return [
        np.column_stack([edge, lines[tree.query(edge)[1], 2]]) - origin_m
        for edge in road_map.road_edges_m
        if len(edge) > 1
    ]


def _points(points_m: Float[np.ndarray, "n 3"]) -> list[dict[str, float]]:
    return [dict(zip("xyz", map(float, point), strict=True)) for point in points_m]
