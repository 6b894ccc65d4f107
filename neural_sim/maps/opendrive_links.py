"""Which lane of an OpenDRIVE map continues which."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

# Road id, number of the lane section along the road, lane id.
LaneKey = tuple[str, int, int]


@dataclass(frozen=True)
class Section:
    """One lane section.

    Attributes:
        road: element of its road.
        lanes: elements of its lanes by lane id.
        is_first, is_last: whether it lies at the start or end of its road.
    """

    road: ET.Element
    lanes: Mapping[int, ET.Element]
    is_first: bool
    is_last: bool


def is_forward(lane_id: int, section: Section) -> bool:
    """Whether traffic on a lane runs along the reference line: on right lanes, or left ones where one drives left."""
    return (lane_id < 0) != (section.road.get("rule", "RHT") == "LHT")


def find_successors(
    root: ET.Element, sections: Mapping[tuple[str, int], Section], driven: Set[LaneKey]
) -> dict[LaneKey, tuple[LaneKey, ...]]:
    """The lanes of `driven` that traffic on each of them can go on to, in driving direction.

    Links that lead to missing lanes, or against the traffic of the lane they lead to, are left out.
    """
    counts: dict[str, int] = {}
    for road_id, index in sections:
        counts[road_id] = max(counts.get(road_id, 0), index + 1)
    junctions = {junction.get("id", ""): junction for junction in root.findall("junction")}
    successors = {}
    for key in driven:
        ends = dict.fromkeys(_targets(key, sections, counts, junctions))
        successors[key] = tuple(target for target, _ in filter(lambda end: _fits(end, sections, driven), ends))
    return successors


# A lane, and whether it is entered at the start of its road.
_End = tuple[LaneKey, bool]


def _fits(end: _End, sections: Mapping[tuple[str, int], Section], driven: Set[LaneKey]) -> bool:
    key, at_start = end
    return key in driven and is_forward(key[2], sections[key[:2]]) == at_start


def _targets(
    key: LaneKey,
    sections: Mapping[tuple[str, int], Section],
    counts: Mapping[str, int],
    junctions: Mapping[str, ET.Element],
) -> Iterator[_End]:
    road_id, index, lane_id = key
    section = sections[road_id, index]
    forward = is_forward(lane_id, section)
    direction = "successor" if forward else "predecessor"
    linked = [_whole(link.get("id")) for link in section.lanes[lane_id].iterfind(f"link/{direction}")]
    if not (section.is_last if forward else section.is_first):
        yield from (((road_id, index + (1 if forward else -1), lane), forward) for lane in linked)
        return
    for link in section.road.iterfind(f"link/{direction}"):
        other = link.get("elementId", "")
        if link.get("elementType") == "junction":
            yield from _through_junction(junctions.get(other), key, counts)
        elif other in counts:
            at_start = link.get("contactPoint", "start") == "start"
            yield from (((other, 0 if at_start else counts[other] - 1, lane), at_start) for lane in linked)


def _through_junction(junction: ET.Element | None, key: LaneKey, counts: Mapping[str, int]) -> Iterator[_End]:
    for connection in junction.findall("connection") if junction is not None else ():
        other = connection.get("connectingRoad", "")
        if connection.get("incomingRoad") != key[0] or other not in counts:
            continue
        at_start = connection.get("contactPoint", "start") == "start"
        for link in connection.findall("laneLink"):
            if _whole(link.get("from")) == key[2]:
                yield (other, 0 if at_start else counts[other] - 1, _whole(link.get("to"))), at_start


def _whole(text: str | None) -> int:
    """A lane id; 0, which is no lane, for anything else."""
    try:
        return int(text or 0)
    except ValueError:
        return 0
