"""Progress along the expert path and distance from it. Ego and expert are compared at their box centres, in 2D."""

import numpy as np
from jaxtyping import Float, Int

from eval.context import ScoringContext
from eval.results import Series

_MIN_PATH_M = 1.0  # along a shorter path, progress would be noise divided by noise


def project_on_path(
    points_m: Float[np.ndarray, "t 2"],
    path_m: Float[np.ndarray, "m 2"],
    num_segments: Int[np.ndarray, "t"] | None = None,
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
    """Distance (m) of each point to a polyline and arc length (m) of the closest place on it.

    Point t sees only the first `num_segments[t]` segments (at least one). Of equally close places the first counts.
    """
    if len(path_m) == 1:
        return np.linalg.norm(points_m - path_m[0], axis=1), np.zeros(len(points_m))
    start, along = path_m[:-1], np.diff(path_m, axis=0)
    length_m = np.linalg.norm(along, axis=1)
    offset = points_m[:, None] - start
    share = np.einsum("tmc,mc->tm", offset, along) / np.maximum(length_m**2, 1e-12)
    share = np.clip(share, 0.0, 1.0)
    distance_m = np.linalg.norm(offset - share[..., None] * along, axis=-1)
    if num_segments is not None:
        hidden = np.arange(len(along)) >= np.maximum(num_segments, 1)[:, None]
        distance_m = np.where(hidden, np.inf, distance_m)
    closest = distance_m.argmin(axis=1)
    rows = np.arange(len(points_m))
    arc_m = np.concatenate([[0.0], np.cumsum(length_m)])[closest] + share[rows, closest] * length_m[closest]
    return distance_m[rows, closest], arc_m


def score_distance(context: ScoringContext) -> dict[str, Series]:
    """Distance from the expert and metres driven.

    - `dist_to_gt_trajectory`: distance to the whole recorded path, m;
    - `dist_to_gt_location`: distance to where the expert was at the same time, m; invalid outside the recorded span;
    - `dist_traveled_m`: sum of the lengths of the steps driven since the first step after warm-up, m. AlpaSim projects
      on the driven line instead, which is wrong on loops;
    - `gt_dist_traveled_m`: the same for the expert in the same time, m. AlpaSim gives the length of the whole log.
    """
    ego_xy, expert_xy = context.ego_planar[:, :2], context.expert_planar[:, :2]
    to_path_m, _ = project_on_path(ego_xy, context.expert_path_m)
    to_location_m = np.linalg.norm(ego_xy - expert_xy, axis=1)
    return {
        "dist_to_gt_trajectory": context.series(to_path_m, "max"),
        "dist_to_gt_location": context.series(to_location_m, "max", context.is_within_log),
        "dist_traveled_m": context.series(_driven_m(ego_xy, context), "last"),
        "gt_dist_traveled_m": context.series(_driven_m(expert_xy, context), "last"),
    }


def score_progress(context: ScoringContext) -> dict[str, Series]:
    """Progress along the expert path, as shares of its length.

    - `progress`: arc length of the closest place on the whole recorded path over the length of that path;
    - `progress_rel`: the same on the path the expert has driven since the start of the rollout; 1 is keeping up.

    Invalid while the path in question is shorter than 1 m (the expert stands).
    """
    ego_xy = context.ego_planar[:, :2]
    _, arc_m = project_on_path(ego_xy, context.expert_path_m)
    full_m = np.linalg.norm(np.diff(context.expert_path_m, axis=0), axis=1).sum()
    path_m = context.expert_planar[:, :2]
    _, arc_so_far_m = project_on_path(ego_xy, path_m, np.arange(len(path_m)))
    so_far_m = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path_m, axis=0), axis=1))])
    long_enough = so_far_m >= _MIN_PATH_M
    return {
        "progress": context.series(arc_m / max(full_m, 1e-9), "last", np.full(len(arc_m), full_m >= _MIN_PATH_M)),
        "progress_rel": context.series(arc_so_far_m / np.maximum(so_far_m, 1e-9), "min", long_enough),
    }


def _driven_m(xy: Float[np.ndarray, "t 2"], context: ScoringContext) -> Float[np.ndarray, "t"]:
    steps_m = np.linalg.norm(np.diff(xy, axis=0), axis=1)
    counts = context.evaluated[:-1] & context.evaluated[1:]
    return np.concatenate([[0.0], np.cumsum(np.where(counts, steps_m, 0.0))])
