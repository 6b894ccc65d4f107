"""The streets of the town: the main street that is driven along, side streets, and the junctions between them."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.errors import InputError
from neural_sim.town.config import TownConfig
from neural_sim.town.road import CrossSection, Road, road_along
from neural_sim.town.street_plan import CROSSING_REACH_M, EGO_START_S_M, JunctionPlace, StreetPlan, draw_centreline

PARKING_M = 0.8
STRIP_TAPER_M = 4.0
NO_PARKING_M = 12.0
MERGE_TAPER_M = 38.0
CORNER_RADIUS_M = 5.0
WAY_HALF_WIDTH_M = 1.6
SIDE_LENGTHS_M = (75.0, 40.0)
ATTEMPTS = 60


@dataclass(frozen=True)
class SideStreet:
    """A street that leaves a junction.

    Attributes:
        road: from the centre of the junction outwards.
        mouth_m: arc length where it leaves the junction and lane markings begin, m.
    """

    road: Road
    mouth_m: float


@dataclass(frozen=True)
class Junction:
    """Where side streets meet the main street.

    Attributes:
        place: its stretch of the main street.
        sides: the other streets; none where the main street only turns a corner.
        stubs: carriageway that carries the ends of the main street on to the centre of the junction.
    """

    place: JunctionPlace
    sides: tuple[SideStreet, ...]
    stubs: tuple[shapely.Polygon, ...]


@dataclass(frozen=True)
class Network:
    """All streets.

    Attributes:
        plan: what was drawn for the seed.
        main: the street of the drive.
        junctions: in order along the main street.
        merge_m: where the second lane begins to end and has ended, along the main street, m; None without one.
        zebras_m: middle of the zebra crossings along the main street, m.
    """

    plan: StreetPlan
    main: Road
    junctions: tuple[Junction, ...]
    merge_m: tuple[float, float] | None
    zebras_m: tuple[float, ...]

    @property
    def sides(self) -> tuple[SideStreet, ...]:
        """All side streets."""
        return tuple(side for junction in self.junctions for side in junction.sides)

    @property
    def roads(self) -> tuple[Road, ...]:
        """The main street and all side streets."""
        return (self.main, *(side.road for side in self.sides))

    @cached_property
    def carriageway(self) -> shapely.Polygon:
        """All that cars may drive on, with rounded corners, world frame, m."""
        parts = [self.main.corridor(0.0, self.main.length_m)]
        parts += [stub for junction in self.junctions for stub in junction.stubs]
        parts += [side.road.corridor(0.0, side.road.length_m) for side in self.sides]
        for junction in self.junctions:
            ways = ways_across(self.main, junction).values()
            parts += [shapely.LineString(way).buffer(WAY_HALF_WIDTH_M, cap_style="flat") for way in ways]
        union = shapely.union_all(parts)
        # Growing and shrinking again rounds the inner corners, as kerbs are at junctions.
        rounded = union.buffer(CORNER_RADIUS_M).buffer(-CORNER_RADIUS_M)
        whole = shapely.union_all([rounded, *parts]).simplify(0.01)
        return max((p for p in shapely.get_parts(whole) if isinstance(p, shapely.Polygon)), key=lambda p: p.area)

    def open_stretches(self) -> list[tuple[float, float]]:
        """Stretches of the main street between its junctions, m."""
        marks = [0.0, *(m for j in self.junctions for m in (j.place.start_m, j.place.end_m)), self.main.length_m]
        return [(a, b) for a, b in zip(marks[::2], marks[1::2], strict=True) if b - a > 0.5]

    def is_near_junction(self, s_m: float, margin_m: float) -> bool:
        """Whether `s_m` lies in a junction or within `margin_m` of one."""
        return any(j.place.start_m - margin_m < s_m < j.place.end_m + margin_m for j in self.junctions)


def make_network(rng: np.random.Generator, plan: StreetPlan, config: TownConfig) -> Network:
    """Draw streets that do not meet but at junctions. The main street starts at the origin along +x."""
    bare, places = _clear_street(rng, plan, config)
    merge = _merge(rng, plan, places) if plan.lane_ends else None
    main = _with_kerbs(bare, plan, places, merge)
    junctions: list[Junction] = []
    for place in places:
        taken = [side for junction in junctions for side in junction.sides]
        junctions.append(_junction(rng, main, place, taken))
    network = Network(plan, main, tuple(junctions), merge, ())
    return replace(network, zebras_m=_zebras(rng, network, plan.reach_m(config.duration_s)))


def _clear_street(
    rng: np.random.Generator, plan: StreetPlan, config: TownConfig
) -> tuple[Road, tuple[JunctionPlace, ...]]:
    """A main street, without its kerbs, that never comes near itself, and where its junctions are."""
    for _ in range(ATTEMPTS):
        curvature, places = draw_centreline(rng, plan, config.duration_s)
        road = road_along(curvature, CrossSection(lane_width_m=plan.lane_width_m))
        if _keeps_clear(road):
            return road, places
    raise InputError(
        f"town of seed {config.seed}: a street of {plan.length_m(config.duration_s):.0f} m without crossing itself was "
        f"not found in {ATTEMPTS} attempts; shorten the drive or choose another seed"
    )


def _keeps_clear(road: Road) -> bool:
    """Whether parts of the street that are far apart along it are far apart."""
    every = 16
    xy, s_m = road.xy_m[::every], road.s_m[::every]
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    return bool(apart[np.abs(s_m[:, None] - s_m[None]) > 80.0].min(initial=np.inf) > 45.0)


def _merge(rng: np.random.Generator, plan: StreetPlan, places: tuple[JunctionPlace, ...]) -> tuple[float, float] | None:
    start = EGO_START_S_M + plan.speed_limit_mps * float(rng.uniform(4.5, 9.0))
    for place in places:
        if place.start_m - NO_PARKING_M < start + MERGE_TAPER_M and start < place.end_m + NO_PARKING_M:
            start = place.start_m - NO_PARKING_M - MERGE_TAPER_M
    return (start, start + MERGE_TAPER_M) if start > EGO_START_S_M + 15.0 else None


def _with_kerbs(
    road: Road, plan: StreetPlan, places: tuple[JunctionPlace, ...], merge: tuple[float, float] | None
) -> Road:
    """The street with parking strips that end before junctions, and with the lane that ends."""
    open_share = np.ones(len(road.s_m))
    for place in places:
        gap = np.maximum(place.start_m - road.s_m, road.s_m - place.end_m)
        open_share = np.minimum(open_share, np.clip((gap - NO_PARKING_M) / STRIP_TAPER_M, 0.0, 1.0))
    widths = []
    for strip in (plan.left_strip_m, plan.right_strip_m):
        margin = min(strip, 0.3)
        widths.append(plan.lane_width_m + margin + (strip - margin) * _smooth(open_share))
    if merge is not None:
        ahead = np.clip((merge[1] - road.s_m) / (merge[1] - merge[0]), 0.0, 1.0)
        widths[1] = widths[1] + plan.lane_width_m * _smooth(ahead)
    return replace(road, left_m=widths[0], right_m=widths[1])


def _smooth(share: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    return share * share * (3.0 - 2.0 * share)


def _junction(rng: np.random.Generator, main: Road, place: JunctionPlace, taken: list[SideStreet]) -> Junction:
    """A crossing with one or two side streets, or a turn out of the street that goes on or past."""
    start, end = main.to_world(place.start_m, 0.0), main.to_world(place.end_m, 0.0)
    if place.turn == 0:
        centre, ways = (start[:2] + end[:2]) / 2, [start[2] + np.pi / 2, start[2] - np.pi / 2]
        ways = [way + float(rng.uniform(-0.2, 0.2)) for way in ways]
    else:
        centre, ways = _meeting_point(start, end), [start[2], end[2] + np.pi]
    wanted = rng.choice(3, p=(0.5, 0.25, 0.25))
    ways = ways if wanted == 0 else [ways[wanted - 1]]
    mouth = max(CROSSING_REACH_M, float(np.linalg.norm(centre - start[:2]))) + 0.5
    sides: list[SideStreet] = []
    for way in ways:
        bow = float(rng.uniform(-0.006, 0.006))
        width = float(rng.uniform(2.9, 3.4))
        side = _side_street(main, place, [*taken, *sides], centre, float(way), bow, width, mouth)
        if side is not None:
            sides.append(side)
    return Junction(place, tuple(sides), _stubs(main, start, end, centre) if place.turn and sides else ())


def _meeting_point(start: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"]) -> Float[np.ndarray, "2"]:
    """Where the tangents at both ends of a turn cross, world frame, m."""
    ways = np.array([[np.cos(start[2]), -np.cos(end[2])], [np.sin(start[2]), -np.sin(end[2])]])
    along = np.linalg.solve(ways, end[:2] - start[:2])[0]
    return start[:2] + along * ways[:, 0]


def _side_street(
    main: Road,
    place: JunctionPlace,
    taken: list[SideStreet],
    centre: Float[np.ndarray, "2"],
    way_rad: float,
    bow_per_m: float,
    lane_m: float,
    mouth_m: float,
) -> SideStreet | None:
    """The longest side street that stays clear of all other streets; None if there is no room."""
    far = (main.s_m < place.start_m - 30.0) | (main.s_m > place.end_m + 30.0)
    before, after = main.xy_m[far & (main.s_m < place.start_m)], main.xy_m[far & (main.s_m > place.end_m)]
    others = [shapely.LineString(part) for part in (before, after) if len(part) > 1]
    others += [side.road.line for side in taken if np.linalg.norm(side.road.xy_m[0] - centre) > 1.0]
    for length_m in SIDE_LENGTHS_M:
        count = round(length_m / 0.25) + 1
        curvature = bow_per_m * np.clip((np.arange(count) * 0.25 - mouth_m) / 15.0, 0.0, 1.0)
        road = road_along(curvature, CrossSection(lane_width_m=lane_m), (*centre.tolist(), way_rad))
        if min((road.line.distance(other) for other in others), default=np.inf) > 26.0:
            half = road.left_m + 0.25
            return SideStreet(replace(road, left_m=half, right_m=half), mouth_m)
    return None


def _stubs(
    main: Road, start: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"], centre: Float[np.ndarray, "2"]
) -> tuple[shapely.Polygon, ...]:
    half = main.section.lane_width_m + 0.3
    stubs = []
    for pose, sign in ((start, 1.0), (end, -1.0)):
        beyond = centre + half * sign * np.array([np.cos(pose[2]), np.sin(pose[2])])
        stubs.append(shapely.LineString([pose[:2], beyond]).buffer(half, cap_style="flat"))
    return tuple(stubs)


def main_lane_d_m(main: Road, side: float) -> float:
    """Road coordinate d of the lane along (`side` -1) or against (+1) the main street, m."""
    return side * main.section.lane_width_m / 2


def ways_across(main: Road, junction: Junction) -> dict[tuple[str, str], Float[np.ndarray, "m 2"]]:
    """Lane centres over a junction from and to its streets, but for those along the main street, world frame, m.

    Streets are called "before", "after" (the main street), "0" and "1" (the side streets).
    """
    entries, exits, place = {}, {}, junction.place
    for name, s_m, side, turned in (("before", place.start_m, -1.0, 0.0), ("after", place.end_m, 1.0, np.pi)):
        entries[name] = main.to_world(s_m, main_lane_d_m(main, side)) + np.array([0.0, 0.0, turned])
        exits[name] = main.to_world(s_m, main_lane_d_m(main, -side)) + np.array([0.0, 0.0, turned + np.pi])
    for k, side_street in enumerate(junction.sides):
        road, mouth = side_street.road, side_street.mouth_m
        entries[str(k)] = road.to_world(mouth, road.section.lane_width_m / 2) + np.array([0.0, 0.0, np.pi])
        exits[str(k)] = road.to_world(mouth, -road.section.lane_width_m / 2)
    return {
        (first, last): _curve(start, end)
        for first, start in entries.items()
        for last, end in exits.items()
        if first != last and {first, last} != {"before", "after"}
    }


def _curve(start: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"]) -> Float[np.ndarray, "m 2"]:
    """A smooth way between two poses (x, y, heading): a cubic with both directions, every metre or so."""
    reach = float(np.linalg.norm(end[:2] - start[:2]))
    share = np.linspace(0.0, 1.0, max(4, round(1.2 * reach)))[:, None]
    first, last = (1.25 * reach * np.array([np.cos(p[2]), np.sin(p[2])]) for p in (start, end))
    cubic = (2 * share**3 - 3 * share**2 + 1) * start[:2] + (share**3 - 2 * share**2 + share) * first
    return cubic + (3 * share**2 - 2 * share**3) * end[:2] + (share**3 - share**2) * last


def _zebras(rng: np.random.Generator, network: Network, reach_m: float) -> tuple[float, ...]:
    """Zebra crossings before some junctions and on some open stretches within reach of the ego."""
    found = []
    for start_m, end_m in network.open_stretches():
        if end_m < network.main.length_m - 1.0 and rng.random() < 0.5:
            found.append(end_m - 4.0)
        elif rng.random() < 0.3 and min(end_m, reach_m) - start_m > 50.0:
            found.append(float(rng.uniform(start_m + 20.0, min(end_m, reach_m) - 15.0)))
    merge = network.merge_m or (-100.0, -100.0)
    return tuple(z for z in found if z > EGO_START_S_M + 18.0 and not merge[0] - 10.0 < z < merge[1] + 10.0)
