"""Progress along the expert path and distance from it. Ego and expert are compared at their box centres, in 2D."""

import numpy as np
from jaxtyping import Float

from eval.context import ScoringContext
from eval.polyline import project_on_path
from eval.results import Series

_MIN_PATH_M = 1.0  # along a shorter path, progress would be noise divided by noise


def score_distance(context: ScoringContext) -> dict[str, Series]:
    """Distance from the expert and metres driven.

    - `dist_to_gt_trajectory`: distance to the whole recorded path, m;
    - `dist_to_gt_location`: distance to where the expert was at the same time, m; invalid outside the recorded span;
    - `dist_traveled_m`: sum of the lengths of the steps driven since the first step after warm-up, m. AlpaSim projects
      on the driven line instead, which is wrong on loops;
    - `gt_dist_traveled_m`: the same for the expert in the same time, m. AlpaSim gives the length of the whole log.
    """
    ego_xy, expert_xy = context.ego_planar[:, :2], context.expert_planar[:, :2]
    to_path_m, _ = context.on_expert_path
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
    - `progress_rel_to_total`, `progress_clipped_rel`: the same under AlpaSim's other names for it;
    - `progress_rel`: the same on the path the expert has driven since the start of the rollout; 1 is keeping up.

    Invalid while the path in question is shorter than 1 m (the expert stands).
    """
    ego_xy = context.ego_planar[:, :2]
    _, arc_m = context.on_expert_path
    full_m = np.linalg.norm(np.diff(context.expert_path_m, axis=0), axis=1).sum()
    path_m = context.expert_planar[:, :2]
    _, arc_so_far_m = project_on_path(ego_xy, path_m, np.arange(len(path_m)))
    so_far_m = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path_m, axis=0), axis=1))])
    long_enough = so_far_m >= _MIN_PATH_M
    progress = context.series(arc_m / max(full_m, 1e-9), "last", np.full(len(arc_m), full_m >= _MIN_PATH_M))
    return {
        "progress": progress,
        "progress_rel_to_total": progress,
        "progress_clipped_rel": progress,
        "progress_rel": context.series(arc_so_far_m / np.maximum(so_far_m, 1e-9), "min", long_enough),
    }


def _driven_m(xy: Float[np.ndarray, "t 2"], context: ScoringContext) -> Float[np.ndarray, "t"]:
    steps_m = np.linalg.norm(np.diff(xy, axis=0), axis=1)
    counts = context.evaluated[:-1] & context.evaluated[1:]
    return np.concatenate([[0.0], np.cumsum(np.where(counts, steps_m, 0.0))])
