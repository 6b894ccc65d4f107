"""Road maps out as OpenDRIVE, for AlpaSim and other simulators.

Every lane becomes a road of straight pieces along its centre line with one right lane of its width; what it leads to is
a link, or a junction where lanes part or meet. There is no geographic reference: coordinates are those of the scene.
"""

import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
from jaxtyping import Float

from neural_sim.road_map import Lane, RoadMap

_SHORTEST_M = 1e-3
_LANE = "-1"


def encode_opendrive(road_map: RoadMap, origin_m: Float[np.ndarray, "3"], name: str) -> bytes:
    """`road_map` as an OpenDRIVE 1.6 document called `name`, shifted by `-origin_m` (m).

    Road edges and drivable areas have no counterpart and follow from the lanes. Lanes shorter than 1 mm are left out.
    """
    lanes = [lane for lane in road_map.lanes if _length(lane) > _SHORTEST_M]
    numbers = {lane.lane_id: str(index) for index, lane in enumerate(lanes)}
    meets = Counter(successor for lane in lanes for successor in lane.successors if successor in numbers)
    root = ET.Element("OpenDRIVE")
    ET.SubElement(root, "header", revMajor="1", revMinor="6", name=name)
    successors = {lane.lane_id: [s for s in lane.successors if s in numbers] for lane in lanes}
    simple = {i: s[0] for i, s in successors.items() if len(s) == 1 and meets[s[0]] == 1}
    parting = {i: s for i, s in successors.items() if s and i not in simple}
    # Where a lane across a junction has no lane that leads to it, the junction is one of its own.
    own = {s: numbers[i] for i, targets in parting.items() for s in targets}
    before = {target: source for source, target in simple.items()}
    for lane in lanes:
        road = ET.SubElement(
            root, "road", id=numbers[lane.lane_id], name=lane.lane_id, length=_text(_length(lane)), rule="RHT",
            junction=own.get(lane.lane_id, numbers[lane.lane_id]) if lane.is_junction else "-1",
        )  # fmt: skip
        link = ET.SubElement(road, "link")
        if lane.lane_id in before:
            _road_link(link, "predecessor", numbers[before[lane.lane_id]], "end")
        if lane.lane_id in simple:
            _road_link(link, "successor", numbers[simple[lane.lane_id]], "start")
        elif lane.lane_id in parting:
            ET.SubElement(link, "successor", elementType="junction", elementId=numbers[lane.lane_id])
        _write_lane(road, lane, origin_m, lane.lane_id in before, lane.lane_id in simple)
    for lane_id, targets in parting.items():
        _write_junction(root, numbers[lane_id], [numbers[target] for target in targets])
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _length(lane: Lane) -> float:
    return float(np.linalg.norm(np.diff(lane.centerline_m[:, :2], axis=0), axis=1).sum())


def _road_link(link: ET.Element, direction: str, road: str, contact: str) -> None:
    ET.SubElement(link, direction, elementType="road", elementId=road, contactPoint=contact)


def _write_lane(
    road: ET.Element, lane: Lane, origin_m: Float[np.ndarray, "3"], has_predecessor: bool, has_successor: bool
) -> None:
    points = lane.centerline_m - origin_m
    steps = np.diff(points, axis=0)
    length = np.linalg.norm(steps[:, :2], axis=1)
    s = np.concatenate([[0.0], np.cumsum(length)])
    if lane.speed_limit_mps is not None:
        kind = ET.SubElement(road, "type", s="0", type="town")
        ET.SubElement(kind, "speed", max=_text(lane.speed_limit_mps), unit="m/s")
    plan = ET.SubElement(road, "planView")
    profile = ET.SubElement(road, "elevationProfile")
    for i in np.flatnonzero(length > _SHORTEST_M):
        heading = _text(np.arctan2(steps[i, 1], steps[i, 0]))
        x, y = (_text(value) for value in points[i, :2])
        piece = ET.SubElement(plan, "geometry", s=_text(s[i]), x=x, y=y, hdg=heading, length=_text(length[i]))
        ET.SubElement(piece, "line")
        _cubic(profile, "elevation", "s", s[i], points[i, 2], steps[i, 2] / length[i])
    lanes = ET.SubElement(road, "lanes")
    _cubic(lanes, "laneOffset", "s", 0.0, lane.width_m / 2, 0.0)
    section = ET.SubElement(lanes, "laneSection", s="0")
    ET.SubElement(ET.SubElement(section, "center"), "lane", id="0", type="none", level="false")
    right = ET.SubElement(ET.SubElement(section, "right"), "lane", id=_LANE, type="driving", level="false")
    link = ET.SubElement(right, "link")
    if has_predecessor:
        ET.SubElement(link, "predecessor", id=_LANE)
    if has_successor:
        ET.SubElement(link, "successor", id=_LANE)
    _cubic(right, "width", "sOffset", 0.0, lane.width_m, 0.0)


def _write_junction(root: ET.Element, number: str, targets: list[str]) -> None:
    junction = ET.SubElement(root, "junction", id=number, name=number)
    for index, target in enumerate(targets):
        connection = ET.SubElement(
            junction, "connection", id=str(index), incomingRoad=number, connectingRoad=target, contactPoint="start"
        )
        ET.SubElement(connection, "laneLink", {"from": _LANE, "to": _LANE})


def _cubic(parent: ET.Element, tag: str, start_name: str, start: float, a: float, b: float) -> None:
    ET.SubElement(parent, tag, {start_name: _text(start), "a": _text(a), "b": _text(b), "c": "0", "d": "0"})


def _text(value: float) -> str:
    return f"{float(value):.9g}"
