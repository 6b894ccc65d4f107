"""Triangulation of feature tracks with known camera poses."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import KDTree

from neural_sim.reconstruction.tracks import Bearings, FeatureTracks

MAX_REPROJECTION_PX = 1.5
MAX_RELATIVE_DEPTH_ERROR = 0.12
DEPTH_RANGE_M = (1.0, 150.0)
REFINEMENT_STEPS = 6
_HUBER_PX = 1.0
# What one Lucas-Kanade observation is trusted to, px.
_TRACKING_NOISE_PX = 0.5


@dataclass(frozen=True)
class TriangulatedPoints:
    """Points of tracks that passed every gate.

    Attributes:
        points_m: float64 [P, 3], world frame, m.
        track: int64 [P], the track each point comes from.
        reprojection_px: float64 [P], root mean square distance to the observations, px.
    """

    points_m: Float[np.ndarray, "p 3"]
    track: np.ndarray
    reprojection_px: Float[np.ndarray, "p"]


def triangulate(
    tracks: FeatureTracks,
    K: Float[np.ndarray, "v 3 3"],
    T_camera_world: Float[np.ndarray, "v 4 4"],
    max_reprojection_px: float = MAX_REPROJECTION_PX,
) -> TriangulatedPoints:
    """Place every track in the world and keep what the images, with intrinsics `K` (px), agree on.

    Tracks with bearings are placed by these instead, in pixels of their lenses, and depth is along the bearing.

    The start is the point nearest to all rays (linear least squares); Gauss-Newton on the reprojection with Huber
    weights follows. A point stays when its reprojection is below `max_reprojection_px`, its depth lies within
    `DEPTH_RANGE_M` in every image, and the expected depth error is below `MAX_RELATIVE_DEPTH_ERROR` of the depth
    (which is the parallax gate). Isolated points go last.
    """
    if len(tracks) == 0:
        return TriangulatedPoints(np.zeros((0, 3)), np.zeros(0, np.int64), np.zeros(0))
    points = _nearest_to_rays(tracks, K, T_camera_world)
    for _ in range(REFINEMENT_STEPS):
        points = points + _gauss_newton_step(tracks, K, T_camera_world, points)
    rms_px, depth_error, depth_ok = _assess(tracks, K, T_camera_world, points)
    good = (rms_px < max_reprojection_px) & (depth_error < MAX_RELATIVE_DEPTH_ERROR) & depth_ok
    chosen = np.flatnonzero(good)
    chosen = chosen[not_isolated(points[chosen])]
    return TriangulatedPoints(points[chosen], chosen, rms_px[chosen])


def not_isolated(points_m: Float[np.ndarray, "p 3"], neighbours: int = 6) -> Bool[np.ndarray, "p"]:
    """Whether each point has neighbours as near as its distance from the middle of the cloud lets one expect.

    The mean distance to the nearest `neighbours` points is compared with four times its median over the cloud.
    """
    if len(points_m) <= neighbours:
        return np.ones(len(points_m), bool)
    distance, _ = KDTree(points_m).query(points_m, k=neighbours + 1)
    mean_m = distance[:, 1:].mean(axis=1)
    return mean_m < 4.0 * np.median(mean_m) + 2.0


def sum_by_track(tracks: FeatureTracks, values: Float[np.ndarray, "m *n"]) -> Float[np.ndarray, "t *n"]:
    """Sums of what belongs to the observations of each track."""
    starts = np.flatnonzero(np.diff(tracks.track, prepend=-1))
    return np.add.reduceat(values, starts, axis=0)


def _nearest_to_rays(tracks: FeatureTracks, K: np.ndarray, T: np.ndarray) -> np.ndarray:
    if tracks.bearings is None:
        pixels = np.column_stack([tracks.xy_px, np.ones(len(tracks.xy_px))])
        world_from_pixel = np.einsum("vji,vjk->vik", T[:, :3, :3], np.linalg.inv(K))
        rays = np.einsum("mij,mj->mi", world_from_pixel[tracks.image], pixels)
    else:
        rays = np.einsum("mji,mj->mi", T[tracks.image, :3, :3], tracks.bearings.ray)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    centers = -np.einsum("vji,vj->vi", T[:, :3, :3], T[:, :3, 3])[tracks.image]
    across = np.eye(3) - rays[:, :, None] * rays[:, None, :]
    A = sum_by_track(tracks, across)
    b = sum_by_track(tracks, np.einsum("mij,mj->mi", across, centers))
    # The small diagonal only matters for parallel rays, which the depth gates then reject.
    return np.linalg.solve(A + 1e-9 * np.eye(3), b[..., None])[..., 0]


def project_tracks(
    tracks: FeatureTracks,
    K: Float[np.ndarray, "v 3 3"],
    T_camera_world: Float[np.ndarray, "v 4 4"],
    points_m: Float[np.ndarray, "t 3"],
) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2 3"], Float[np.ndarray, "m"]]:
    """Distance of each track's world point from its observations, px, its Jacobian, px/m, and the depth, m.

    Of tracks with bearings all three are to first order around the bearing.
    """
    T = T_camera_world[tracks.image]
    local = np.einsum("mij,mj->mi", T[:, :3, :3], points_m[tracks.track]) + T[:, :3, 3]
    if tracks.bearings is not None:
        residual, by_local, depth = _miss_bearings(tracks.bearings, local)
        return residual, by_local @ T[:, :3, :3], depth
    depth = np.where(np.abs(local[:, 2]) < 1e-3, 1e-3, local[:, 2])
    focal, center = K[:, [0, 1], [0, 1]][tracks.image], K[:, :2, 2][tracks.image]
    xy = focal * local[:, :2] / depth[:, None] + center
    by_local = np.zeros((len(local), 2, 3))
    by_local[:, 0, 0], by_local[:, 1, 1] = focal[:, 0] / depth, focal[:, 1] / depth
    by_local[:, :, 2] = -focal * local[:, :2] / depth[:, None] ** 2
    return xy - tracks.xy_px, by_local @ T[:, :3, :3], local[:, 2]


def _miss_bearings(
    bearings: Bearings, local: Float[np.ndarray, "m 3"]
) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2 3"], Float[np.ndarray, "m"]]:
    """How far camera-frame points are off their bearings: px, px/m, and the depth along the bearing, m."""
    depth = (local * bearings.ray).sum(axis=1)
    safe = np.where(np.abs(depth) < 1e-3, 1e-3, depth)[:, None]
    plane = local / safe
    residual = np.einsum("mki,mi->mk", bearings.px_by_ray, plane - bearings.ray)
    along = np.einsum("mki,mi->mk", bearings.px_by_ray, plane)
    by_local = (bearings.px_by_ray - along[:, :, None] * bearings.ray[:, None, :]) / safe[..., None]
    return residual, by_local, depth


def huber_weights(residual_px: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "m"]:
    """Weights that make squares grow linearly beyond `_HUBER_PX`."""
    return np.minimum(1.0, _HUBER_PX / np.maximum(np.linalg.norm(residual_px, axis=1), 1e-9))


def _normal_equations(
    tracks: FeatureTracks, residual: np.ndarray, jacobian: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    weight = huber_weights(residual)
    H = sum_by_track(tracks, weight[:, None, None] * np.einsum("mki,mkj->mij", jacobian, jacobian))
    g = sum_by_track(tracks, weight[:, None] * np.einsum("mki,mk->mi", jacobian, residual))
    return H, g


def _gauss_newton_step(tracks: FeatureTracks, K: np.ndarray, T: np.ndarray, points: np.ndarray) -> np.ndarray:
    residual, jacobian, _ = project_tracks(tracks, K, T, points)
    H, g = _normal_equations(tracks, residual, jacobian)
    damping = 1e-3 * np.trace(H, axis1=1, axis2=2)[:, None, None] / 3 * np.eye(3) + 1e-9 * np.eye(3)
    step = -np.linalg.solve(H + damping, g[..., None])[..., 0]
    length = np.linalg.norm(step, axis=1, keepdims=True)
    return step * np.minimum(1.0, 20.0 / np.maximum(length, 1e-9))


def _assess(
    tracks: FeatureTracks, K: np.ndarray, T: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per track: root mean square reprojection (px), expected relative depth error, whether all depths are in range."""
    residual, jacobian, depth = project_tracks(tracks, K, T, points)
    count = np.bincount(tracks.track)
    rms_px = np.sqrt(sum_by_track(tracks, (residual**2).sum(axis=1)) / count)
    H, _ = _normal_equations(tracks, residual, jacobian)
    largest_variance = 1.0 / np.maximum(np.linalg.eigvalsh(H)[:, 0], 1e-12)
    nearest = np.minimum.reduceat(depth, np.flatnonzero(np.diff(tracks.track, prepend=-1)))
    farthest = np.maximum.reduceat(depth, np.flatnonzero(np.diff(tracks.track, prepend=-1)))
    depth_ok = (nearest > DEPTH_RANGE_M[0]) & (farthest < DEPTH_RANGE_M[1])
    error = _TRACKING_NOISE_PX * np.sqrt(largest_variance) / np.maximum(nearest, 1e-3)
    return rms_px, error, depth_ok
