"""Scores made of other scores, running along the rollout so that a cut anywhere leaves the score up to there."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from eval.context import ScoringContext
from eval.results import Series

FULL_PROGRESS = 0.8
SHORT_PATH_M = 5.0
ONCOMING_WINDOW_S = 1.0
ONCOMING_FREE_M, ONCOMING_MOST_M = 2.0, 6.0
LANE_OFFSET_M, LANE_OFFSET_S = 0.5, 2.0


def score_scene(context: ScoringContext, scored: Mapping[str, Series]) -> dict[str, Series]:
    """`scene_score`, as AlpaSim has it: 0 from an at-fault collision or off-road on, else min(1, progress / 0.8) with
    progress clipped to 0..1; 1 without such an incident on a recorded path shorter than 5 m. The last step counts."""
    path_m = np.linalg.norm(np.diff(context.expert_path_m, axis=0), axis=1).sum()
    progress = np.ones(len(context.t_us))
    if path_m >= SHORT_PATH_M:
        progress = np.minimum(1.0, np.clip(scored["progress"].values, 0.0, 1.0) / FULL_PROGRESS)
    clean = ~_so_far(scored["offroad_or_collision_at_fault"], context)
    return {"scene_score": context.series(progress * clean, "last")}


def score_epdms(context: ScoringContext, scored: Mapping[str, Series]) -> dict[str, Series]:
    """`epdms`, after the extended PDM score of NAVSIM v2, and its parts; each runs along, and the last step counts.

    Product of the multipliers times the mean of the weighted parts, of those that the data allow:

    - `epdms_nc`, no at-fault collision: 0 from one with a moving kind of road user on, 0.5 from one with an obstacle;
    - `epdms_dac`, drivable area: 0 from the first off-road step on;
    - `epdms_ddc`, driving direction: by the largest distance driven in `wrong_lane` within 1 s, below 2 m 1, below 6 m
      0.5, else 0; only with recorded lanes;
    - `epdms_ep`, progress, weight 5: `progress_rel` now, clipped to 0..1; 1 while the expert has not moved;
    - `epdms_ttc`, weight 5: 0 from the first `time_to_collision_critical` step on;
    - `epdms_lk`, lane keeping, weight 2: 0 once the box centre is more than 0.5 m from its lane's centre for 2 s
      without a break, junctions left out; only with recorded lanes;
    - `epdms_hc`, comfort, weight 2: 0 from the first step out of the bounds of `comfort` on;
    - `epdms_ec`, weight 2: share so far of the plans with `extended_comfort`; only once there is such a plan.

    Differs from NAVSIM: traffic lights (TLC) are left out, as no reader provides them; EC is a share of a whole drive,
    where NAVSIM has one pair of plans; progress is relative to the recorded expert, not to a planner; a part that the
    recorded expert fails as well is not forgiven.
    """
    multipliers, weighted = _multipliers(context, scored), _weighted(context, scored)
    score = np.prod(list(multipliers.values()), axis=0)
    total = sum(weight for weight, _ in weighted.values())
    score = score * sum(weight * values for weight, values in weighted.values()) / total
    parts = multipliers | {name: values for name, (_, values) in weighted.items()}
    return {name: context.series(values, "last") for name, values in parts.items()} | {
        "epdms": context.series(score, "last")
    }


def _multipliers(context: ScoringContext, scored: Mapping[str, Series]) -> dict[str, Float[np.ndarray, "t"]]:
    at_fault = _so_far(scored["collision_at_fault"], context)
    with_road_user = _so_far(scored["collision_at_fault_road_user"], context)
    parts = {
        "epdms_nc": np.where(with_road_user, 0.0, np.where(at_fault, 0.5, 1.0)),
        "epdms_dac": 1.0 - _so_far(scored["offroad"], context),
    }
    if context.shared.has_lanes:
        oncoming_m = np.maximum.accumulate(_oncoming_m(context, scored["wrong_lane"]))
        parts["epdms_ddc"] = np.where(
            oncoming_m < ONCOMING_FREE_M, 1.0, np.where(oncoming_m < ONCOMING_MOST_M, 0.5, 0.0)
        )
    return parts


def _weighted(context: ScoringContext, scored: Mapping[str, Series]) -> dict[str, tuple[float, Float[np.ndarray, "t"]]]:
    progress = scored["progress_rel"]
    uncomfortable = scored["comfort"].valid & (scored["comfort"].values < 1)
    parts = {
        "epdms_ep": (5.0, np.where(progress.valid, np.clip(progress.values, 0.0, 1.0), 1.0)),
        "epdms_ttc": (5.0, 1.0 - _so_far(scored["time_to_collision_critical"], context)),
        "epdms_hc": (2.0, 1.0 - np.maximum.accumulate(uncomfortable)),
    }
    if context.shared.has_lanes:
        off = scored["lane_offset_m"].valid & (scored["lane_offset_m"].values > LANE_OFFSET_M)
        off &= context.evaluated & ~context.in_junction
        parts["epdms_lk"] = (2.0, 1.0 - np.maximum.accumulate(_lasting(off, context, LANE_OFFSET_S)))
    if scored["extended_comfort"].valid.any():
        parts["epdms_ec"] = (2.0, _share_so_far(scored["extended_comfort"], context))
    return parts


def _share_so_far(flag: Series, context: ScoringContext) -> Float[np.ndarray, "t"]:
    """Mean of the flag over the steps after warm-up up to each step; 1 before the first valid one."""
    counted = flag.valid & context.evaluated
    total = np.cumsum(counted)
    return np.where(total > 0, np.cumsum(np.where(counted, flag.values, 0.0)) / np.maximum(total, 1), 1.0)


def _so_far(flag: Series, context: ScoringContext) -> Bool[np.ndarray, "t"]:
    """Whether the flag was set at this or an earlier step after warm-up."""
    return np.maximum.accumulate(flag.valid & (flag.values > 0) & context.evaluated)


def _oncoming_m(context: ScoringContext, wrong_lane: Series) -> Float[np.ndarray, "t"]:
    """Distance driven in the wrong lane within the last second, m."""
    against = wrong_lane.valid & (wrong_lane.values > 0) & context.evaluated
    steps_m = np.linalg.norm(np.diff(context.ego_planar[:, :2], axis=0, prepend=context.ego_planar[:1, :2]), axis=1)
    driven_m = np.cumsum(np.where(against, steps_m, 0.0))
    before = np.searchsorted(context.t_us, context.t_us - round(ONCOMING_WINDOW_S * 1e6))
    return driven_m - driven_m[before]


def _lasting(flag: Bool[np.ndarray, "t"], context: ScoringContext, seconds: float) -> Bool[np.ndarray, "t"]:
    """Where the flag has been set for `seconds` without a break."""
    steps = np.arange(len(flag))
    first = np.clip(np.maximum.accumulate(np.where(flag, -1, steps)) + 1, 0, len(flag) - 1)
    return flag & (context.t_us - context.t_us[first] >= round(seconds * 1e6))
