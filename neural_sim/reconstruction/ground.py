"""The road surface near the driven path."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.spatial import KDTree

from neural_sim.scenes.scene import GroundMesh
from neural_sim.trajectory import Trajectory

EXTENSION_BEHIND_M = 10.0
EXTENSION_AHEAD_M = 30.0
# A suspension pitches and rolls the rig over the flat road: normals are averaged over this length.
SMOOTHING_M = 4.0
_MAX_CELLS = 4e6
_NEIGHBOURS = 24


@dataclass(frozen=True)
class GroundSurface:
    """Height of the road over a regular grid in the ground plane.

    Attributes:
        origin_m: world (x, y) of cell [0, 0], m.
        spacing_m: grid spacing, m.
        height_m: float64 [X, Y], world z, m; defined everywhere, extrapolated outside `near_path`.
        distance_m: float64 [X, Y], distance from the (extended) path, m, clipped beyond the surface.
        half_width_m: the surface reaches this far from the path, m.
    """

    origin_m: Float[np.ndarray, "2"]
    spacing_m: float
    height_m: Float[np.ndarray, "x y"]
    distance_m: Float[np.ndarray, "x y"]
    half_width_m: float

    def height_at(self, xy_m: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n"]:
        """World z of the road at ground-plane positions (m), bilinear; the border holds outside the grid."""
        return self._sample(self.height_m, xy_m)

    def distance_at(self, xy_m: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n"]:
        """Distance from the path, m; positions off the grid count as beyond the surface."""
        return self._sample(self.distance_m, xy_m)

    def contains(self, xy_m: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n"]:
        """Whether positions lie on the surface."""
        return self.distance_at(xy_m) <= self.half_width_m

    def _sample(self, field: np.ndarray, xy_m: np.ndarray) -> np.ndarray:
        cells = (np.asarray(xy_m) - self.origin_m) / self.spacing_m
        return map_coordinates(field, cells.T, order=1, mode="nearest")

    def mesh(self) -> GroundMesh:
        """Triangles over the cells whose four corners lie on the surface, facing up."""
        inside = self.distance_m <= self.half_width_m
        number = np.cumsum(inside).reshape(inside.shape) - 1
        whole = inside[:-1, :-1] & inside[1:, :-1] & inside[1:, 1:] & inside[:-1, 1:]
        a, b = number[:-1, :-1][whole], number[1:, :-1][whole]
        c, d = number[1:, 1:][whole], number[:-1, 1:][whole]
        xy = self.origin_m + self.spacing_m * np.argwhere(inside)
        vertices = np.column_stack([xy, self.height_m[inside]]).astype(np.float32)
        faces = np.concatenate([np.stack([a, b, c], axis=-1), np.stack([a, c, d], axis=-1)])
        return GroundMesh(vertices, faces.astype(np.int32))


def ground_from_path(ego: Trajectory, half_width_m: float, spacing_m: float = 1.0) -> GroundSurface:
    """Surface through the rig origins, which lie on the road by definition.

    The height at a place is the mean of the planes through the nearby rig poses, weighted by nearness. The path is
    extended straight on, `EXTENSION_BEHIND_M` and `EXTENSION_AHEAD_M`. A road that crosses over itself is not
    represented: there the levels are averaged.
    """
    points, normals = _extended_path(ego)
    low = points[:, :2].min(axis=0) - half_width_m - 2 * spacing_m
    size_m = points[:, :2].max(axis=0) + half_width_m + 2 * spacing_m - low
    spacing_m = max(spacing_m, float(np.sqrt(size_m.prod() / _MAX_CELLS)))
    nx, ny = (np.ceil(size_m / spacing_m) + 1).astype(int)
    grid = low + spacing_m * np.stack(np.meshgrid(np.arange(nx), np.arange(ny), indexing="ij"), axis=-1)
    tree = KDTree(points[:, :2])
    limit_m = half_width_m + 2 * spacing_m
    distance, _ = tree.query(grid.reshape(-1, 2), distance_upper_bound=limit_m)
    distance = np.minimum(distance, limit_m).reshape(nx, ny)
    near = distance < limit_m
    height = np.zeros((nx, ny))
    height[near] = _plane_heights(tree, points, normals, grid[near])
    return GroundSurface(low, spacing_m, _fill(height, near), distance, half_width_m)


def fit_to_points(
    surface: GroundSurface, points_m: Float[np.ndarray, "p 3"], tolerance_m: float = 0.5
) -> GroundSurface:
    """Shift the surface in height to the median of the measured points near it.

    Camera heights are often nominal; the road seen in the images decides where its Gaussians lie. Fewer than 50
    points within `tolerance_m` of the surface leave it as it is.
    """
    on_road = points_m[surface.distance_at(points_m[:, :2]) < 0.5 * surface.half_width_m]
    offset = on_road[:, 2] - surface.height_at(on_road[:, :2])
    offset = offset[np.abs(offset) < tolerance_m]
    if len(offset) < 50:
        return surface
    height = surface.height_m + np.median(offset)
    return GroundSurface(surface.origin_m, surface.spacing_m, height, surface.distance_m, surface.half_width_m)


def road_grid(surface: GroundSurface, spacing_m: float) -> Float[np.ndarray, "n 3"]:
    """Points of the surface on a regular grid of `spacing_m` in the ground plane, world frame, m."""
    extent = surface.spacing_m * (np.array(surface.height_m.shape) - 1)
    x, y = (np.arange(0.0, length, spacing_m) for length in extent)
    xy = surface.origin_m + np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    xy = xy[surface.contains(xy)]
    return np.column_stack([xy, surface.height_at(xy)])


def surface_normals(surface: GroundSurface, xy_m: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    """Upward unit normals of the surface at ground-plane positions."""
    slopes = np.gradient(surface.height_m, surface.spacing_m)
    gradient = np.stack([surface._sample(slope, xy_m) for slope in slopes], axis=-1)
    normals = np.column_stack([-gradient, np.ones(len(gradient))])
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _extended_path(ego: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Rig origins [S, 3] every metre along the path with its extensions, and smoothed road normals [S, 3]."""
    positions = ego.T_world_rig[:, :3, 3]
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(positions, axis=0), axis=1))])
    moved = np.concatenate([[True], np.diff(arc) > 1e-4])
    arc, positions, ups = arc[moved], positions[moved], ego.T_world_rig[moved, :3, 2]
    at = np.linspace(0.0, arc[-1], max(2, int(np.ceil(arc[-1])) + 1))
    points = np.stack([np.interp(at, arc, positions[:, axis]) for axis in range(3)], axis=-1)
    normals = np.stack([np.interp(at, arc, ups[:, axis]) for axis in range(3)], axis=-1)
    weight = np.exp(-0.5 * ((at[:, None] - at) / SMOOTHING_M) ** 2)
    normals = weight @ normals
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    behind = points[0] + _direction(points[::-1], at) * np.arange(EXTENSION_BEHIND_M, 0, -1)[:, None]
    ahead = points[-1] + _direction(points, at) * np.arange(1, EXTENSION_AHEAD_M + 1)[:, None]
    whole = np.concatenate([behind, points, ahead])
    normals = np.concatenate(
        [np.repeat(normals[:1], len(behind), axis=0), normals, np.repeat(normals[-1:], len(ahead), axis=0)]
    )
    return whole, normals


def _direction(points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Unit direction beyond the last of `points`: heading of the last step, mean slope over the last 10 m."""
    span = points[-1] - points[-max(2, int((at < 10.0).sum()))]
    step = points[-1, :2] - points[-2, :2]
    direction = np.array([*(step / np.linalg.norm(step)), span[2] / np.linalg.norm(span[:2])])
    return direction / np.linalg.norm(direction)


def _plane_heights(tree: KDTree, points: np.ndarray, normals: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Mean height [N] of the planes at the nearest path points, with weights that fall with distance."""
    distance, index = tree.query(xy, k=min(_NEIGHBOURS, len(points)))
    weight = np.exp(-0.5 * (distance**2 - distance[:, :1] ** 2) / SMOOTHING_M**2)
    offset = xy[:, None] - points[index, :2]
    slope = normals[index, :2] / normals[index, 2:]
    height = points[index, 2] - (slope * offset).sum(axis=-1)
    return (weight * height).sum(axis=1) / weight.sum(axis=1)


def _fill(height: np.ndarray, known: np.ndarray) -> np.ndarray:
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    assert nearest is not None
    return height[tuple(nearest)]
