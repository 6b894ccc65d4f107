"""Lanes, road edges and drivable area of a clip or scene."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from jaxtyping import Float

from neural_sim.trajectory import Trajectory

MAP_SOURCES = ("recorded", "derived")


@dataclass(frozen=True)
class Lane:
    """One lane.

    Attributes:
        lane_id: unique within a map.
        centerline_m: float64 [M, 3], world frame, m, in driving direction.
        width_m: full width, m.
        successors: ids of the lanes that continue it.
        speed_limit_mps: None where the map has none.
        is_junction: whether it runs across a junction.
    """

    lane_id: str
    centerline_m: Float[np.ndarray, "m 3"]
    width_m: float
    successors: tuple[str, ...] = ()
    speed_limit_mps: float | None = None
    is_junction: bool = False


@dataclass(frozen=True)
class RoadMap:
    """The static road.

    Attributes:
        lanes: in no particular order.
        road_edges_m: polylines float64 [M, 2], world frame, m.
        drivable_areas: polygons (with holes), world frame, m; their union is the drivable area.
        source: "recorded", or "derived" for a corridor made from the expert path where a clip has no map.
    """

    lanes: tuple[Lane, ...]
    road_edges_m: tuple[Float[np.ndarray, "m 2"], ...]
    drivable_areas: tuple[shapely.Polygon, ...]
    source: str

    @cached_property
    def drivable(self) -> shapely.Geometry:
        """Union of the drivable areas, prepared for containment tests; self-intersecting rings are repaired."""
        union = shapely.union_all([shapely.make_valid(area) for area in self.drivable_areas])
        shapely.prepare(union)
        return union


def corridor_map(expert: Trajectory, half_width_m: float) -> RoadMap:
    """Derive a map from the expert path: one lane and a drivable corridor `half_width_m` to each side.

    The corridor reaches 10 m beyond both ends of the path, straight on. Its `source` is "derived".
    """
    path = expert.planar[:, :2]
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    path = path[np.concatenate([[True], steps > 1e-3])]
    heading = expert.planar[[0, -1], 2]
    ahead = 10.0 * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    path = np.concatenate([path[:1] - ahead[:1], path, path[-1:] + ahead[1:]])
    buffered = shapely.LineString(path).buffer(half_width_m, cap_style="flat")
    areas = tuple(part for part in shapely.get_parts(buffered) if isinstance(part, shapely.Polygon))
    edges = tuple(shapely.get_coordinates(ring) for area in areas for ring in (area.exterior, *area.interiors))
    lane = Lane("derived", np.column_stack([path, np.zeros(len(path))]), 2 * half_width_m)
    return RoadMap(lanes=(lane,), road_edges_m=edges, drivable_areas=areas, source="derived")
