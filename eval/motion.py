"""How the car moved and how steady its plans were."""

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float

from eval.context import ScoringContext
from eval.results import Series
from neural_sim.frames import planar_to_world
from neural_sim.simulation.observation import PLAN_STEP_US, PLAN_STEPS
from neural_sim.trajectory import Trajectory

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
    expert_speed_mps = context.scene.expert.speed_mps_at(context.t_us)
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
    num_steps = len(context.t_us)
    values, valid = np.zeros(num_steps), np.zeros(num_steps, bool)
    with_plan = np.flatnonzero(np.isfinite(context.record.plans).all(axis=(1, 2)))
    world_xy = _plans_in_world(context)
    for earlier, later in pairwise(with_plan):
        lag_us = int(context.t_us[later] - context.t_us[earlier])
        deviation_m, common = _deviation(world_xy[earlier], world_xy[later], lag_us)
        if common.any():
            weights = np.exp(-_DECAY_PER_STEP * np.arange(PLAN_STEPS))[common]
            values[later], valid[later] = np.average(deviation_m[common], weights=weights), True
    return {"plan_deviation": context.series(values, "mean", valid)}


def _plans_in_world(context: ScoringContext) -> Float[np.ndarray, "t s 2"]:
    rig = Trajectory(context.t_us, context.record.T_world_rig).planar
    world = planar_to_world(context.record.plans.astype(float), rig[:, None])
    return np.concatenate([rig[:, None, :2], world[..., :2]], axis=1)


def _deviation(
    earlier_xy: Float[np.ndarray, "s 2"], later_xy: Float[np.ndarray, "s 2"], lag_us: int
) -> tuple[Float[np.ndarray, "p"], Bool[np.ndarray, "p"]]:
    offsets_us = np.arange(PLAN_STEPS + 1) * PLAN_STEP_US
    query_us = offsets_us[1:] + lag_us
    x, y = (np.interp(query_us, offsets_us, earlier_xy[:, axis]) for axis in (0, 1))
    apart_m = np.hypot(later_xy[1:, 0] - x, later_xy[1:, 1] - y)
    return apart_m, query_us <= offsets_us[-1]
