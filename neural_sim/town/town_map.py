"""The streets as a map: lanes with their connections, kerbs, and the carriageway."""

import itertools
from collections.abc import Sequence

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.road_map import Lane, RoadMap
from neural_sim.town.network import Junction, Network, main_lane_d_m, ways_across
from neural_sim.town.road import stations

LANE_SECTION_M = 50.0


def town_map(network: Network) -> RoadMap:
    """Every lane of every street in sections of at most 50 m, with a connecting lane for each way over a junction."""
    lanes = [*_main_lanes(network, -1.0), *_main_lanes(network, 1.0), *_ending_lane(network)]
    for number, junction in enumerate(network.junctions):
        lanes += _junction_lanes(network, junction, number)
    carriageway = network.carriageway
    rings = [shapely.get_coordinates(ring) for ring in (carriageway.exterior, *carriageway.interiors)]
    return RoadMap(tuple(_with_successors(lanes)), tuple(rings), (carriageway,), source="recorded")


def ending_lane_d_m(network: Network, s_m: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Road coordinate d of the lane that ends; it closes in on the ego's lane over the taper, m."""
    start, end = network.merge_m or (0.0, 0.0)
    share = np.clip((s_m - start) / max(end - start, 1.0), 0.0, 1.0)
    ahead = 1.0 - share * share * (3.0 - 2.0 * share)
    return main_lane_d_m(network.main, -1.0) - network.main.section.lane_width_m * ahead


def _main_lanes(network: Network, side: float) -> list[Lane]:
    name, limit = ("ego_way", network.plan.speed_limit_mps) if side < 0 else ("other_way", network.plan.speed_limit_mps)
    breaks = _breaks(network)
    lanes = []
    for i, (start, end) in enumerate(itertools.pairwise(breaks)):
        ends = (start, end) if side < 0 else (end, start)
        xy = network.main.line_at(main_lane_d_m(network.main, side), *ends)
        in_junction = any(j.place.start_m <= start and end <= j.place.end_m for j in network.junctions)
        lanes.append(_lane(f"{name}_{i}", xy, network.main.section.lane_width_m, limit, in_junction))
    return lanes


def _breaks(network: Network) -> list[float]:
    marks = {0.0, network.main.length_m, *(network.merge_m or ())}
    marks |= {m for j in network.junctions for m in (j.place.start_m, j.place.end_m)}
    ordered = sorted(mark for mark in marks if mark <= network.main.length_m)
    breaks = [ordered[0]]
    for a, b in itertools.pairwise(ordered):
        if b - a < 0.5:
            continue
        count = max(1, int(np.ceil((b - a) / LANE_SECTION_M)))
        breaks += np.linspace(a, b, count + 1)[1:].tolist()
    return breaks


def _ending_lane(network: Network) -> list[Lane]:
    if network.merge_m is None:
        return []
    lanes = []
    for i, (start, end) in enumerate(((0.0, network.merge_m[0]), network.merge_m)):
        s_m = stations(start, end)
        xy = network.main.to_world(s_m, ending_lane_d_m(network, s_m))[:, :2]
        width, limit = network.main.section.lane_width_m, network.plan.speed_limit_mps
        lanes.append(_lane(f"ending_{i}", xy, width, limit, False))
    return lanes


def _junction_lanes(network: Network, junction: Junction, number: int) -> list[Lane]:
    """Lanes of the side streets of a junction, and the ways across it that the main street does not take."""
    lanes = []
    for k, side_street in enumerate(junction.sides):
        road, mouth = side_street.road, side_street.mouth_m
        width, name = road.section.lane_width_m, f"side_{number}_{k}"
        out = road.line_at(-width / 2, mouth, road.length_m)
        back = road.line_at(width / 2, road.length_m, mouth)
        lanes += [_lane(f"{name}_out", out, width, None, False), _lane(f"{name}_in", back, width, None, False)]
    for (first, last), line in ways_across(network.main, junction).items():
        lanes.append(_lane(f"way_{number}_{first}_{last}", line, network.main.section.lane_width_m, None, True))
    return lanes


def _lane(name: str, xy: np.ndarray, width_m: float, limit_mps: float | None, is_junction: bool) -> Lane:
    line = np.column_stack([xy, np.zeros(len(xy))])
    return Lane(name, line, width_m, (), limit_mps, is_junction)


def _with_successors(lanes: Sequence[Lane]) -> list[Lane]:
    """Connect every lane with those that begin where it ends."""
    starts = np.stack([lane.centerline_m[0, :2] for lane in lanes])
    connected = []
    for lane in lanes:
        near = np.flatnonzero(np.linalg.norm(starts - lane.centerline_m[-1, :2], axis=1) < 0.05).tolist()
        names = tuple(lanes[i].lane_id for i in near if lanes[i].lane_id != lane.lane_id)
        connected.append(
            Lane(lane.lane_id, lane.centerline_m, lane.width_m, names, lane.speed_limit_mps, lane.is_junction)
        )
    return connected
