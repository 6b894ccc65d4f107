"""A street: a curved centreline with road coordinates (s, d) and kerbs on both sides."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.frames import wrap_angle

STEP_M = 0.25


@dataclass(frozen=True)
class CrossSection:
    """Widths of a street that do not change along it."""

    lane_width_m: float = 3.3
    """Width of a driving lane, m."""

    kerb_width_m: float = 0.15
    """Width of the kerb stones, m."""

    kerb_height_m: float = 0.12
    """Height of kerb, pavement and lawn above the road, m."""

    pavement_width_m: float = 2.4
    """Width of the pavement behind the kerb, m."""

    verge_width_m: float = 2.6
    """Width of the grass between pavement and building line, m."""

    @property
    def pavement_end_m(self) -> float:
        """Kerb line to the outer edge of the pavement, m."""
        return self.kerb_width_m + self.pavement_width_m

    @property
    def building_line_m(self) -> float:
        """Kerb line to the nearest building front, m."""
        return self.pavement_end_m + self.verge_width_m


@dataclass(frozen=True)
class Road:
    """A street in road coordinates: s along the centreline, d to its left, both m.

    Traffic keeps to the right, so the lane along the centreline's direction has d < 0.

    Attributes:
        s_m: float64 [N], equally spaced from 0.
        xy_m: float64 [N, 2], centreline, world frame, m.
        heading_rad: float64 [N], direction of the centreline, not wrapped.
        curvature_per_m: float64 [N], positive to the left, 1/m.
        left_m, right_m: float64 [N], centreline to the kerb on either side, m.
        section: widths.
    """

    s_m: Float[np.ndarray, "n"]
    xy_m: Float[np.ndarray, "n 2"]
    heading_rad: Float[np.ndarray, "n"]
    curvature_per_m: Float[np.ndarray, "n"]
    left_m: Float[np.ndarray, "n"]
    right_m: Float[np.ndarray, "n"]
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

    def kerb_at(self, s_m: Float[np.ndarray, "*n"] | float, side: float) -> Float[np.ndarray, "*n"]:
        """Centreline to the kerb at `s_m` on the left (`side` +1) or right (-1), m."""
        return np.asarray(np.interp(s_m, self.s_m, self.left_m if side > 0 else self.right_m))

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
        return self.to_world(stations(start_m, end_m, step_m), d_m)[:, :2]

    def corridor(self, start_m: float, end_m: float, step_m: float = 1.0) -> shapely.Polygon:
        """The carriageway between two arc lengths, kerb to kerb, world frame, m."""
        s_m = stations(start_m, end_m, step_m)
        left, right = (self.to_world(s_m, side * self.kerb_at(s_m, side))[:, :2] for side in (1.0, -1.0))
        return shapely.Polygon(np.concatenate([left, right[::-1]]))


def stations(start_m: float, end_m: float, step_m: float = 1.0) -> Float[np.ndarray, "m"]:
    """Arc lengths from `start_m` to `end_m`, at most `step_m` apart, both ends included, m."""
    count = max(2, int(np.ceil(abs(end_m - start_m) / step_m)) + 1)
    return np.linspace(start_m, end_m, count)


def road_along(
    curvature_per_m: Float[np.ndarray, "n"], section: CrossSection, start: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Road:
    """A street with the given curvature every `STEP_M` from `start` (x, y, heading; m, rad), a lane to each side."""
    s_m = np.arange(len(curvature_per_m)) * STEP_M
    turned = np.cumsum((curvature_per_m[1:] + curvature_per_m[:-1]) * STEP_M / 2)
    heading = start[2] + np.concatenate([[0.0], turned])
    middle = (heading[1:] + heading[:-1]) / 2
    steps = STEP_M * np.stack([np.cos(middle), np.sin(middle)], axis=-1)
    xy = np.asarray(start[:2]) + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    half = np.full(len(s_m), section.lane_width_m)
    return Road(s_m, xy, heading, np.asarray(curvature_per_m, float), half, half, section)


def bend(peak_per_m: float, turn_rad: float, ramp_m: float) -> Float[np.ndarray, "n"]:
    """Trapezoid of curvature every `STEP_M` that turns by `turn_rad`; a short turn lowers the peak, not the ramps."""
    arc_m = turn_rad / abs(peak_per_m) - ramp_m
    if arc_m < 0:
        peak_per_m, arc_m = np.sign(peak_per_m) * turn_rad / ramp_m, 0.0
    along = np.arange(0.0, 2 * ramp_m + arc_m, STEP_M)
    rise, fall = along / ramp_m, (2 * ramp_m + arc_m - along) / ramp_m
    return peak_per_m * np.clip(np.minimum(rise, fall), 0.0, 1.0)
