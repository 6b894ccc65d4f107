"""The street: a curved centreline with road coordinates (s, d) and a cross-section."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.frames import wrap_angle
from neural_sim.road_map import Lane, RoadMap

STEP_M = 0.25
EGO_START_S_M = 40.0
LANE_SECTION_M = 50.0
MAX_HEADING_RAD = np.deg2rad(62.0)


@dataclass(frozen=True)
class CrossSection:
    """Widths of the street from the centreline outwards, the same on both sides."""

    lane_width_m: float = 3.5
    """Width of the driving lane, m."""

    parking_width_m: float = 2.2
    """Width of the parking strip between lane and kerb, m."""

    kerb_width_m: float = 0.15
    """Width of the kerb stones, m."""

    kerb_height_m: float = 0.12
    """Height of kerb and pavement above the road, m."""

    pavement_width_m: float = 2.4
    """Width of the pavement behind the kerb, m."""

    verge_width_m: float = 2.6
    """Width of the grass between pavement and building line, m."""

    @property
    def carriageway_half_width_m(self) -> float:
        """Centreline to kerb, m: half of the drivable area."""
        return self.lane_width_m + self.parking_width_m

    @property
    def pavement_start_m(self) -> float:
        """Centreline to the inner edge of the pavement, m."""
        return self.carriageway_half_width_m + self.kerb_width_m

    @property
    def pavement_end_m(self) -> float:
        """Centreline to the outer edge of the pavement, m."""
        return self.pavement_start_m + self.pavement_width_m

    @property
    def building_line_m(self) -> float:
        """Centreline to the nearest building front, m."""
        return self.pavement_end_m + self.verge_width_m


@dataclass(frozen=True)
class Road:
    """A street in road coordinates: s along the centreline, d to its left, both m.

    Traffic keeps to the right, so the ego's lane has d < 0.

    Attributes:
        s_m: float64 [N], equally spaced from 0.
        xy_m: float64 [N, 2], centreline, world frame, m.
        heading_rad: float64 [N], direction of the centreline, not wrapped.
        curvature_per_m: float64 [N], positive to the left, 1/m.
        section: widths.
    """

    s_m: Float[np.ndarray, "n"]
    xy_m: Float[np.ndarray, "n 2"]
    heading_rad: Float[np.ndarray, "n"]
    curvature_per_m: Float[np.ndarray, "n"]
    section: CrossSection

    @property
    def length_m(self) -> float:
        """Length of the centreline, m."""
        return float(self.s_m[-1])

    @cached_property
    def line(self) -> shapely.LineString:
        """The centreline as a polyline, world frame, m."""
        return shapely.LineString(self.xy_m)

    def heading_at(self, s_m: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "*n"]:
        """Direction of the road at `s_m`, rad, not wrapped."""
        return np.asarray(np.interp(s_m, self.s_m, self.heading_rad))

    def curvature_at(self, s_m: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "*n"]:
        """Curvature of the centreline at `s_m`, 1/m."""
        return np.asarray(np.interp(s_m, self.s_m, self.curvature_per_m))

    def to_world(
        self, s_m: Float[np.ndarray, "*n"] | float, d_m: Float[np.ndarray, "*n"] | float
    ) -> Float[np.ndarray, "*n 3"]:
        """Planar poses (x, y, heading of the road) of road coordinates, world frame, m and rad."""
        s_m, d_m = np.broadcast_arrays(np.asarray(s_m, float), np.asarray(d_m, float))
        heading = self.heading_at(s_m)
        x = np.interp(s_m, self.s_m, self.xy_m[:, 0]) - np.sin(heading) * d_m
        y = np.interp(s_m, self.s_m, self.xy_m[:, 1]) + np.cos(heading) * d_m
        return np.stack([x, y, wrap_angle(heading)], axis=-1)

    def to_road(self, xy_m: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Road coordinates (s, d) of world points, m; unique within a turning radius of the centreline."""
        points = shapely.points(np.atleast_2d(xy_m))
        s_m = shapely.line_locate_point(self.line, points)
        foot = self.to_world(s_m, 0.0)
        offset = np.atleast_2d(xy_m) - foot[:, :2]
        d_m = -np.sin(foot[:, 2]) * offset[:, 0] + np.cos(foot[:, 2]) * offset[:, 1]
        return np.stack([s_m, d_m], axis=-1)

    def line_at(self, d_m: float, start_m: float, end_m: float, step_m: float = 1.0) -> Float[np.ndarray, "m 2"]:
        """Polyline parallel to the centreline at offset `d_m` between two arc lengths, world frame, m."""
        count = max(2, int(np.ceil(abs(end_m - start_m) / step_m)) + 1)
        return self.to_world(np.linspace(start_m, end_m, count), d_m)[:, :2]


def make_road(rng: np.random.Generator, length_m: float, max_curvature_per_m: float) -> Road:
    """Draw a street of straights and clothoid bends, at least `length_m` long, starting at the origin along +x.

    The heading stays within 62 degrees of +x, so the street never meets itself; the first bend turns by 35 degrees
    or more right after the ego's start.
    """
    curvature = _draw_curvature(rng, length_m, max_curvature_per_m)
    s_m = np.arange(len(curvature)) * STEP_M
    heading = np.concatenate([[0.0], np.cumsum((curvature[1:] + curvature[:-1]) * STEP_M / 2)])
    middle = (heading[1:] + heading[:-1]) / 2
    steps = STEP_M * np.stack([np.cos(middle), np.sin(middle)], axis=-1)
    xy = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return Road(s_m, xy, heading, curvature, CrossSection())


def _draw_curvature(rng: np.random.Generator, length_m: float, max_curvature_per_m: float) -> Float[np.ndarray, "n"]:
    """Curvature every `STEP_M`: straights and bends in turn; bends ramp linearly, so steering is smooth."""
    pieces, drawn_m, heading = [], 0.0, 0.0
    while drawn_m < length_m:
        first = not pieces
        straight_m = EGO_START_S_M + rng.uniform(10.0, 25.0) if first else rng.uniform(12.0, 40.0)
        turn_rad = np.deg2rad(rng.uniform(35.0, 55.0) if first else rng.uniform(15.0, 60.0))
        sign = _turn_direction(rng, heading, turn_rad)
        turn_rad = min(turn_rad, MAX_HEADING_RAD - sign * heading)
        peak = max_curvature_per_m * rng.uniform(0.6, 1.0)
        bend = _bend(sign * peak, turn_rad, rng.uniform(10.0, 20.0))
        pieces += [np.zeros(round(straight_m / STEP_M)), bend]
        heading += float(bend.sum()) * STEP_M
        drawn_m += (len(pieces[-2]) + len(bend)) * STEP_M
    return np.concatenate(pieces)


def _turn_direction(rng: np.random.Generator, heading_rad: float, turn_rad: float) -> float:
    sign = float(rng.choice([-1.0, 1.0]))
    return sign if abs(heading_rad + sign * turn_rad) <= MAX_HEADING_RAD else -float(np.sign(heading_rad))


def _bend(peak_per_m: float, turn_rad: float, ramp_m: float) -> Float[np.ndarray, "n"]:
    """Trapezoid of curvature that turns by `turn_rad`; a short turn lowers the peak instead of the ramps."""
    arc_m = turn_rad / abs(peak_per_m) - ramp_m
    if arc_m < 0:
        peak_per_m, arc_m = np.sign(peak_per_m) * turn_rad / ramp_m, 0.0
    along = np.arange(0.0, 2 * ramp_m + arc_m, STEP_M)
    rise, fall = along / ramp_m, (2 * ramp_m + arc_m - along) / ramp_m
    return peak_per_m * np.clip(np.minimum(rise, fall), 0.0, 1.0)


def road_map(road: Road) -> RoadMap:
    """The street as a map: one lane each way in sections of about 50 m, kerbs, carriageway between the kerbs."""
    half = road.section.carriageway_half_width_m
    left, right = (road.line_at(d, 0.0, road.length_m) for d in (half, -half))
    area = shapely.Polygon(np.concatenate([left, right[::-1]]))
    lanes = _lanes(road, "ego_way", -1.0) + _lanes(road, "other_way", 1.0)
    return RoadMap(lanes=lanes, road_edges_m=(left, right), drivable_areas=(area,), source="recorded")


def _lanes(road: Road, name: str, side: float) -> tuple[Lane, ...]:
    count = max(1, round(road.length_m / LANE_SECTION_M))
    ends = np.linspace(0.0, road.length_m, count + 1)
    ends = ends if side < 0 else ends[::-1]
    lanes = []
    for i in range(count):
        xy = road.line_at(side * road.section.lane_width_m / 2, ends[i], ends[i + 1])
        successors = (f"{name}_{i + 1}",) if i + 1 < count else ()
        line = np.column_stack([xy, np.zeros(len(xy))])
        lanes.append(Lane(f"{name}_{i}", line, road.section.lane_width_m, successors))
    return tuple(lanes)
