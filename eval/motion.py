"""How the car moved and how steady its plans were."""

import numpy as np
from jaxtyping import Bool, Float, Int

from eval.context import ScoringContext
from eval.results import Series
from neural_sim.simulation.observation import PLAN_STEP_US, PLAN_STEPS

_DECAY_PER_STEP = 0.1


def score_comfort(context: ScoringContext) -> dict[str, Series]:
    """Speeds, accelerations and their rate of change. AlpaSim has no such metrics; the names are ours.

    - `speed_mps`, `expert_speed_mps`: ground speed, mean, m/s;
    - `abs_longitudinal_acceleration_mps2`, `abs_lateral_acceleration_mps2`: absolute, rig frame, maximum;
    - `abs_jerk_mps3`: norm of the difference of consecutive accelerations over the step, maximum; invalid at the first
      step after warm-up, where the log hands over;
    - `abs_yaw_rate_radps`: absolute, maximum.
    """
    record = context.record
    expert_speed_mps = context.shared.expert_speed_mps(context.t_us)
    jerk = np.linalg.norm(np.diff(record.acceleration_mps2, axis=0), axis=1) / (np.diff(context.t_us) * 1e-6)
    both_evaluated = np.concatenate([[False], context.evaluated[:-1] & context.evaluated[1:]])
    longitudinal, lateral = np.abs(record.acceleration_mps2).T
    return {
        "speed_mps": context.series(context.speed_mps, "mean"),
        "expert_speed_mps": context.series(expert_speed_mps, "mean", context.is_within_log),
        "abs_longitudinal_acceleration_mps2": context.series(longitudinal, "max"),
        "abs_lateral_acceleration_mps2": context.series(lateral, "max"),
        "abs_jerk_mps3": context.series(np.concatenate([[0.0], jerk]), "max", both_evaluated),
        "abs_yaw_rate_radps": context.series(np.abs(record.velocity[:, 2]), "max"),
    }


def score_plan_deviation(context: ScoringContext) -> dict[str, Series]:
    """`plan_deviation`: how far consecutive plans disagree, m.

    The places of a plan and of the one before it are compared at the times both cover (the earlier one interpolated
    linearly), averaged with weights exp(-0.1 i) over the steps i of the later plan. Invalid without a plan, at the
    first plan, and where the two have no time in common.
    """
    values, valid = np.zeros(len(context.t_us)), np.zeros(len(context.t_us), bool)
    with_plan = np.flatnonzero(context.has_plan)
    if len(with_plan) > 1:
        deviation_m, common = _deviations(context, with_plan[:-1], with_plan[1:])
        weights = np.exp(-_DECAY_PER_STEP * np.arange(PLAN_STEPS)) * common
        total = weights.sum(axis=1)
        valid[with_plan[1:]] = total > 0
        values[with_plan[1:]] = (weights * deviation_m).sum(axis=1) / np.where(total > 0, total, 1.0)
    return {"plan_deviation": context.series(values, "mean", valid)}


def _deviations(
    context: ScoringContext, earlier: Int[np.ndarray, "k"], later: Int[np.ndarray, "k"]
) -> tuple[Float[np.ndarray, "k p"], Bool[np.ndarray, "k p"]]:
    """Distance (m) of each place of the later plan from the earlier plan at the same time, and whether it has one."""
    start = context.rig_planar[earlier, None, :2]
    places = np.concatenate([start, context.planned_rig_planar[earlier, :, :2]], axis=1)
    lag = (context.t_us[later] - context.t_us[earlier]) / PLAN_STEP_US
    at = np.arange(1, PLAN_STEPS + 1) + lag[:, None]
    common = at <= PLAN_STEPS
    low = np.minimum(at.astype(int), PLAN_STEPS - 1)
    rows = np.arange(len(earlier))[:, None]
    before, after = places[rows, low], places[rows, low + 1]
    expected = before + (np.minimum(at, PLAN_STEPS) - low)[..., None] * (after - before)
    apart = context.planned_rig_planar[later, :, :2] - expected
    return np.hypot(apart[..., 0], apart[..., 1]), common
