"""Plans judged by themselves: do they hit anybody, and are they where the car or the expert went."""

import numpy as np
from jaxtyping import Bool, Float

from eval.context import ScoringContext
from eval.results import Series
from neural_sim.rectangles import overlap
from neural_sim.simulation.observation import PLAN_STEP_US

SWEEP_STEPS = 30
ADE_HORIZONS_S = (0.5, 1.0, 2.5, 5.0)


def score_open_loop_collision(context: ScoringContext) -> dict[str, Series]:
    """`open_loop_collision`: the ego box at the plan's places 0.1 s to 3.0 s ahead touches another road user's recorded
    box at that time; mean over time.

    Boxes are shrunk by 2 % with square corners. A touch that the expert's box has with the same actor at the same time
    is left out. Invalid without a plan, and where the log ends before the 3 s do: AlpaSim counts these as free of
    collisions.
    """
    plans_us = context.t_us[:, None] + PLAN_STEP_US * np.arange(1, SWEEP_STEPS + 1)
    valid = context.has_plan & (plans_us[:, -1] <= context.scene.expert.end_us)
    hit = np.zeros(len(context.t_us), bool)
    steps = np.flatnonzero(valid)
    if steps.size and context.actor_tracks:
        times_us, place = np.unique(plans_us[steps], return_inverse=True)
        actors = context.shared.logged_actors(times_us, context.record.actor_ids)
        planned = context.planned_center_planar[steps, :SWEEP_STEPS]
        hit[steps] = _swept_hits(context, planned, actors, place.reshape(planned.shape[:2]), times_us)
    return {"open_loop_collision": context.series(hit, "mean", valid)}


def score_displacement(context: ScoringContext) -> dict[str, Series]:
    """`min_ade@{0.5,1.0,2.5,5.0}s(gt)` and `(self)`: mean distance of the plan's places over the first so many seconds
    from where the expert was (gt) or where the car then went (self), rig origins, m; mean over time.

    A record holds the one executed plan of each step, so the minimum over samples is that plan. Invalid without a plan,
    and where the log or the rollout ends before the horizon does.
    """
    times_us = context.t_us[:, None] + PLAN_STEP_US * np.arange(1, context.record.plans.shape[1] + 1)
    references = {
        "gt": (context.scene.expert.end_us, context.shared.expert_xy(times_us)),
        "self": (int(context.t_us[-1]), _interpolated(times_us, context.t_us, context.rig_planar[:, :2])),
    }
    result = {}
    for name, (end_us, reference_m) in references.items():
        error_m = np.linalg.norm(context.planned_rig_planar[..., :2] - reference_m, axis=-1)
        for horizon_s in ADE_HORIZONS_S:
            last = round(horizon_s * 1e6 / PLAN_STEP_US)
            valid = context.has_plan & (times_us[:, last - 1] <= end_us)
            result[f"min_ade@{horizon_s:.1f}s({name})"] = context.series(error_m[:, :last].mean(axis=1), "mean", valid)
    return result


def _swept_hits(
    context: ScoringContext,
    planned: Float[np.ndarray, "s h 3"],
    actors: Float[np.ndarray, "u n 3"],
    place: np.ndarray,
    times_us: np.ndarray,
) -> Bool[np.ndarray, "s"]:
    """Which of S plans touch an actor. `actors` are at U times; plan pose (s, h) is at time `place[s, h]`."""
    s, n = np.nonzero(_may_meet(context, planned, actors, place, times_us))
    u = place[s]
    offset = planned[s, :, :2] - actors[u, n[:, None], :2]
    reach_m = np.linalg.norm(context.ego_half_m) + np.linalg.norm(context.actor_half_m, axis=-1)[n, None]
    with np.errstate(invalid="ignore"):
        pair, h = np.nonzero(np.hypot(offset[..., 0], offset[..., 1]) <= reach_m)
    s, n, u = s[pair], n[pair], u[pair, h]
    ego_half = np.broadcast_to(context.ego_half_m, (len(s), 2))
    touching = overlap(planned[s, h], ego_half, actors[u, n], context.actor_half_m[n])
    s, n, u = s[touching], n[touching], u[touching]
    expert = context.shared.expert_center_planar(times_us)[u]
    in_log = overlap(expert, ego_half[touching], actors[u, n], context.actor_half_m[n])
    found = np.zeros(len(planned), bool)
    found[s[~in_log]] = True
    return found


def _may_meet(
    context: ScoringContext,
    planned: Float[np.ndarray, "s h 3"],
    actors: Float[np.ndarray, "u n 3"],
    place: np.ndarray,
    times_us: np.ndarray,
) -> Bool[np.ndarray, "s n"]:
    """Pairs of plan and actor that are near enough in the middle of the sweep to meet in it."""
    middle = SWEEP_STEPS // 2
    centre = planned[:, middle, :2]
    spread_m = np.linalg.norm(planned[..., :2] - centre[:, None], axis=-1).max(axis=1)
    moved_m = np.linalg.norm(np.diff(actors[..., :2], axis=0), axis=-1) / (np.diff(times_us) * 1e-6)[:, None]
    drift_m = np.nan_to_num(moved_m).max(axis=0, initial=0.0) * (SWEEP_STEPS - middle) * PLAN_STEP_US * 1e-6
    reach_m = np.linalg.norm(context.ego_half_m) + np.linalg.norm(context.actor_half_m, axis=-1)
    apart = actors[place[:, middle], :, :2] - centre[:, None]
    present = np.isfinite(actors[..., 0])
    seen = present[place[:, 0]] | present[place[:, middle]] | present[place[:, -1]]
    with np.errstate(invalid="ignore"):
        far = np.hypot(apart[..., 0], apart[..., 1]) > spread_m[:, None] + drift_m + reach_m
    return seen & ~far


def _interpolated(
    query_us: np.ndarray, t_us: np.ndarray, values: Float[np.ndarray, "t 2"]
) -> Float[np.ndarray, "s p 2"]:
    return np.stack([np.interp(query_us, t_us, values[:, axis]) for axis in (0, 1)], axis=-1)
