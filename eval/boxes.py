"""Shrunk boxes with rounded corners, as a rectangle (the core) and a radius around it.

A box with rounded corners is its core grown by the corner radius, so the gap between two of them is the distance of
their cores minus both radii: exact, without drawing arcs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Float

from eval.protocol import EvaluationProtocol
from neural_sim.road_users import box_corners

_ARC_SEGMENTS = 16


@dataclass(frozen=True)
class RoundedBox:
    """Outline of a road user for contact tests, in its own frame: centre at the origin, x forward.

    Attributes:
        length_m, width_m: sides of the shrunk box, m.
        radius_m: corner radius, m.
    """

    length_m: float
    width_m: float
    radius_m: float

    @staticmethod
    def from_size(length_m: float, width_m: float, protocol: EvaluationProtocol) -> "RoundedBox":
        """Shrink both sides by `box_shrink`, then round by `corner_radius_share` of the shorter one."""
        length_m, width_m = length_m * (1 - protocol.box_shrink), width_m * (1 - protocol.box_shrink)
        return RoundedBox(length_m, width_m, protocol.corner_radius_share * min(length_m, width_m))

    @property
    def reach_m(self) -> float:
        """Radius of a circle around the centre that holds the box, m."""
        return float(np.hypot(self.length_m, self.width_m) / 2)

    def cores(self, planar: Float[np.ndarray, "t 3"]) -> np.ndarray:
        """Core rectangles [T] at poses (x, y, yaw), world frame; None where the pose is not finite."""
        corners = box_corners(planar, self.length_m - 2 * self.radius_m, self.width_m - 2 * self.radius_m)
        return _polygons(corners)

    def outlines(self, planar: Float[np.ndarray, "t 3"]) -> np.ndarray:
        """Rounded outlines [T] at poses (x, y, yaw), world frame; None where the pose is not finite."""
        return _polygons(_to_world(self._local_outline(), planar))

    def bumpers(self, planar: Float[np.ndarray, "t 3"], rear: bool = False) -> np.ndarray:
        """Front (or rear) bumpers [T]: the part of the outline within one corner radius of the end of the box."""
        half_m = self.length_m / 2
        near, far = sorted((half_m - self.radius_m, half_m)) if not rear else (-half_m, self.radius_m - half_m)
        strip = shapely.box(near, -self.width_m, far, self.width_m)
        bumper = shapely.intersection(shapely.Polygon(self._local_outline()), strip)
        return _polygons(_to_world(shapely.get_coordinates(bumper), planar))

    def _local_outline(self) -> Float[np.ndarray, "p 2"]:
        half_l, half_w = self.length_m / 2 - self.radius_m, self.width_m / 2 - self.radius_m
        core = shapely.box(-half_l, -half_w, half_l, half_w)
        return shapely.get_coordinates(core.buffer(self.radius_m, quad_segs=_ARC_SEGMENTS))


def gaps_m(
    first: Sequence[RoundedBox],
    first_planar: Float[np.ndarray, "p 3"],
    second: Sequence[RoundedBox],
    second_planar: Float[np.ndarray, "p 3"],
) -> Float[np.ndarray, "p"]:
    """Gap between the boxes of each pair at poses (x, y, yaw), m; 0 where they touch."""
    apart_m = shapely.distance(_cores(first, first_planar), _cores(second, second_planar))
    radii_m = np.array([a.radius_m + b.radius_m for a, b in zip(first, second, strict=True)])
    return np.maximum(apart_m - radii_m, 0.0)


def _cores(boxes: Sequence[RoundedBox], planar: Float[np.ndarray, "p 3"]) -> np.ndarray:
    half = np.array([(b.length_m / 2 - b.radius_m, b.width_m / 2 - b.radius_m) for b in boxes]).reshape(-1, 1, 2)
    return _polygons(_to_world(half * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]), planar))


def _to_world(local: Float[np.ndarray, "*t p 2"], planar: Float[np.ndarray, "t 3"]) -> Float[np.ndarray, "t p 2"]:
    cosine, sine = np.cos(planar[:, 2, None]), np.sin(planar[:, 2, None])
    x = planar[:, 0, None] + cosine * local[..., 0] - sine * local[..., 1]
    y = planar[:, 1, None] + sine * local[..., 0] + cosine * local[..., 1]
    return np.stack([x, y], axis=-1)


def _polygons(rings: Float[np.ndarray, "t p 2"]) -> np.ndarray:
    polygons = np.full(len(rings), None, dtype=object)
    present = np.isfinite(rings).all(axis=(1, 2))
    polygons[present] = shapely.polygons(rings[present])
    return polygons
