"""OpenDRIVE maps (`.xodr`) in: lanes with their borders, successors and limits, road edges, drivable area.

Read are reference lines of every kind, elevation, lane offsets, lane widths and borders, lane and junction links, and
speed limits. Superelevation and lateral shape are not: the road is level across. Lanes drive as the road's `rule` says.
"""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.errors import InputError
from neural_sim.maps.opendrive_geometry import (
    Profile,
    ReferenceLine,
    number,
    read_profile,
    read_reference_line,
)
from neural_sim.maps.opendrive_links import LaneKey, Section, find_successors, is_forward
from neural_sim.road_map import Lane, RoadMap

DRIVEN_TYPES = ("driving", "entry", "exit", "onRamp", "offRamp", "connectingRamp", "slipLane", "bidirectional")
# Not for driving along, but a car that stands there has not left the road.
DRIVABLE_TYPES = (*DRIVEN_TYPES, "parking", "stop", "shoulder")
MAX_FILE_BYTES = 2**28
MAX_LENGTH_M = 200_000.0
MAX_LANE_LENGTH_M = 10_000_000.0
_SPACING_M = 1.0
_NARROWEST_M = 0.5
_CLOSING_M = 0.05
_SPEED_UNITS = {"m/s": 1.0, "km/h": 1 / 3.6, "mph": 0.44704}


@dataclass(frozen=True)
class _Strip:
    """One lane of one section: its inner and outer border along s, float64 [N, 3] each, m."""

    inner_m: Float[np.ndarray, "n 3"]
    outer_m: Float[np.ndarray, "n 3"]

    @property
    def width_m(self) -> float:
        return float(np.linalg.norm(self.inner_m - self.outer_m, axis=1).mean())

    def polygon(self) -> shapely.Geometry:
        """Its area, a little wider, so that neighbours join."""
        ring = np.concatenate([self.inner_m[:, :2], self.outer_m[::-1, :2]])
        return shapely.buffer(shapely.make_valid(shapely.Polygon(ring)), _CLOSING_M)


def read_opendrive(path: Path) -> RoadMap:
    """The road map in the file at `path`, in the coordinates of the file, m.

    Raises `InputError` naming the file when it is missing, too large, not OpenDRIVE, or malformed.
    """
    if not path.is_file():
        raise InputError(f"{path}: the map file is missing; restore it")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes, more than the {MAX_FILE_BYTES} allowed for a map")
    return parse_opendrive(path.read_bytes(), str(path))


def parse_opendrive(content: bytes, where: str) -> RoadMap:
    """The road map in `content`; raises as `read_opendrive`."""
    root = parse_xml(content, where)
    roads = root.findall("road")
    _require_bounded(roads, where)
    strips: dict[LaneKey, _Strip] = {}
    sections: dict[tuple[str, int], Section] = {}
    for road in roads:
        _read_road(road, strips, sections, where)
    driven = {key for key, strip in strips.items() if _is_driven(sections[key[:2]].lanes[key[2]], strip)}
    if not driven:
        raise InputError(f"{where}: no lane of type {', '.join(DRIVEN_TYPES)}; is this a map of roads for cars?")
    successors = find_successors(root, sections, driven)
    area = shapely.buffer(shapely.union_all([strip.polygon() for strip in strips.values()]), -_CLOSING_M)
    areas = tuple(part for part in shapely.get_parts(area) if isinstance(part, shapely.Polygon) and part.area > 0)
    rings = [ring for part in areas for ring in (part.exterior, *part.interiors)]
    return RoadMap(
        lanes=tuple(_lane(key, strips[key], sections[key[:2]], successors.get(key, ())) for key in sorted(driven)),
        road_edges_m=tuple(shapely.get_coordinates(ring) for ring in rings),
        drivable_areas=areas,
        source="recorded",
    )


def parse_xml(content: bytes, where: str) -> ET.Element:
    """The root of an OpenDRIVE document; raises `InputError` on other XML, and on documents that declare entities."""
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise InputError(f"{where}: declares a document type, which can hide entity bombs; do not trust this file")
    try:
        root = ET.fromstring(content)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{where}: not XML ({error}); get the map again") from error
    if root.tag != "OpenDRIVE":
        raise InputError(f"{where}: the root element is {root.tag}, expected OpenDRIVE; get the map again")
    return root


def lane_name(key: LaneKey) -> str:
    """Id of a lane in the road map: road, section and lane number."""
    return f"{key[0]}.{key[1]}.{key[2]}"


def _require_bounded(roads: list[ET.Element], where: str) -> None:
    """Raise `InputError` when roads or lanes are so long that their points would not fit into memory."""
    total_m = lanes_m = 0.0
    for road in roads:
        lengths = [number(piece, "length", where) for piece in road.iterfind("planView/geometry")]
        length_m = sum(abs(length) for length in lengths)
        total_m += length_m
        lanes_m += length_m * len(road.findall("lanes/laneSection/*/lane"))
    if total_m > MAX_LENGTH_M or lanes_m > MAX_LANE_LENGTH_M:
        raise InputError(f"{where}: {total_m / 1000:.0f} km of roads, {lanes_m / 1000:.0f} km of lanes; cut the map")


def _read_road(
    road: ET.Element, strips: dict[LaneKey, _Strip], sections: dict[tuple[str, int], Section], where: str
) -> None:
    road_id = road.get("id", "")
    where = f"{where}: road {road_id}"
    line = read_reference_line(road.find("planView"), where)
    height = read_profile(road.findall("elevationProfile/elevation"), "s", where)
    offset = read_profile(road.findall("lanes/laneOffset"), "s", where)
    elements = sorted(road.findall("lanes/laneSection"), key=lambda element: number(element, "s", where))
    starts = [number(element, "s", where) for element in elements]
    for index, (element, start) in enumerate(zip(elements, starts, strict=True)):
        end = starts[index + 1] if index + 1 < len(starts) else line.length_m
        lanes = {_lane_number(lane, where): lane for lane in element.iterfind("*/lane")}
        last = index + 1 == len(elements)
        sections[road_id, index] = Section(road, lanes, index == 0, last)
        if end - start < 1e-3:
            continue
        s = np.linspace(start, end, max(2, int(np.ceil((end - start) / _SPACING_M)) + 1))
        for sign in (1, -1):
            for lane_number, strip in _side(line, height, offset, lanes, sign, s, where):
                if lanes[lane_number].get("type") in DRIVABLE_TYPES and strip.width_m >= _NARROWEST_M:
                    strips[road_id, index, lane_number] = strip


def _lane_number(lane: ET.Element, where: str) -> int:
    value = number(lane, "id", where)
    if value != int(value) or abs(value) > 1000:
        raise InputError(f"{where}: lane id {lane.get('id')!r}, expected a small whole number; mend the file")
    return int(value)


def _side(
    line: ReferenceLine,
    height: Profile,
    offset: Profile,
    lanes: dict[int, ET.Element],
    sign: int,
    s: Float[np.ndarray, "n"],
    where: str,
) -> list[tuple[int, _Strip]]:
    """The lanes left (`sign` 1) or right (-1) of the reference line, from the inside out."""
    xy, heading = line.at(s)
    left = np.stack([-np.sin(heading), np.cos(heading)], axis=-1)
    z = height.at(s)
    base = offset.at(s)

    def border(t: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 3"]:
        return np.column_stack([xy + t[:, None] * left, z])

    strips, inner = [], base
    for lane_number in sorted((n for n in lanes if n * sign > 0), key=abs):
        lane = lanes[lane_number]
        widths, borders = lane.findall("width"), lane.findall("border")
        profile = read_profile(widths or borders, "sOffset", f"{where}, lane {lane_number}", float(s[0])).at(s)
        outer = inner + sign * np.maximum(profile, 0.0) if widths or not borders else base + profile
        strips.append((lane_number, _Strip(border(inner), border(outer))))
        inner = outer
    return strips


def _is_driven(lane: ET.Element, strip: _Strip) -> bool:
    return lane.get("type") in DRIVEN_TYPES and len(strip.inner_m) > 1


def _lane(key: LaneKey, strip: _Strip, section: Section, successors: tuple[LaneKey, ...]) -> Lane:
    center = (strip.inner_m + strip.outer_m) / 2
    return Lane(
        lane_id=lane_name(key),
        centerline_m=center if is_forward(key[2], section) else center[::-1].copy(),
        width_m=strip.width_m,
        successors=tuple(lane_name(successor) for successor in successors),
        speed_limit_mps=_speed_limit(section.lanes[key[2]], section.road),
        is_junction=section.road.get("junction", "-1") != "-1",
    )


def _speed_limit(lane: ET.Element, road: ET.Element) -> float | None:
    """Of the lane, else of the road, m/s; None without one or where there is no limit."""
    for element in (lane.find("speed"), road.find("type/speed")):
        unit = _SPEED_UNITS.get(element.get("unit", "m/s")) if element is not None else None
        if element is None or unit is None:
            continue
        try:
            value = float(element.get("max", ""))
        except ValueError:  # "no limit", "undefined"
            continue
        if np.isfinite(value) and value > 0:
            return value * unit
    return None
