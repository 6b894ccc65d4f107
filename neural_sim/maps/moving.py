"""Road maps in another frame."""

from dataclasses import replace

import numpy as np
import shapely
from jaxtyping import Float
from scipy.spatial import KDTree

from neural_sim.road_map import RoadMap


def moved_map(road_map: RoadMap, T_target_source: Float[np.ndarray, "4 4"]) -> RoadMap:
    """The map in the target frame of a rigid transform, m. Road edges and areas, which are flat, turn at height 0."""
    rotation, translation = T_target_source[:3, :3], T_target_source[:3, 3]

    def flat(points_m: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        return points_m @ rotation[:2, :2].T + translation[:2]

    return replace(
        road_map,
        lanes=tuple(
            replace(lane, centerline_m=lane.centerline_m @ rotation.T + translation) for lane in road_map.lanes
        ),
        road_edges_m=tuple(flat(edge) for edge in road_map.road_edges_m),
        drivable_areas=tuple(shapely.transform(area, flat) for area in road_map.drivable_areas),
    )


def shifted_map(road_map: RoadMap, offset_m: Float[np.ndarray, "3"]) -> RoadMap:
    """The map moved by `offset_m`."""
    T_target_source = np.eye(4)
    T_target_source[:3, 3] = offset_m
    return moved_map(road_map, T_target_source)


def map_on_ground(road_map: RoadMap, ground_m: Float[np.ndarray, "v 3"]) -> RoadMap:
    """The map with the height of every lane point taken from the nearest ground vertex in the plane, m."""
    if len(ground_m) == 0:
        return road_map
    tree = KDTree(ground_m[:, :2])

    def grounded(points_m: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        _, nearest = tree.query(points_m[:, :2])
        return np.column_stack([points_m[:, :2], ground_m[nearest, 2]])

    return replace(
        road_map, lanes=tuple(replace(lane, centerline_m=grounded(lane.centerline_m)) for lane in road_map.lanes)
    )
