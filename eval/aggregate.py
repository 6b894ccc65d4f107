"""From rollouts to the results table, in the order of the paper.

Per rollout: drop warm-up, cut after the first incident, cut after the first step too far from the log, reduce over
time. Per policy: mean over scenes for each rollout index, then mean and standard deviation over the indices.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from eval.bootstrap import draw_scenes, interval
from eval.paired import compare
from eval.protocol import EvaluationProtocol
from eval.results import (
    OPEN_LOOP_PREFIX,
    EvaluationResult,
    OpenLoopScore,
    ReducedRollout,
    RolloutFailure,
    RolloutScore,
    Statistic,
    Summary,
)
from neural_sim.errors import InputError

_INCIDENTS = ("offroad", "collision_front", "collision_lateral", "collision_rear")
_SCORES = {
    "avg_dist_between_incidents": "offroad_or_collision",
    "avg_dist_between_incidents_at_fault": "offroad_or_collision_at_fault",
}


def kept_steps(score: RolloutScore, protocol: EvaluationProtocol) -> tuple[Bool[np.ndarray, "t"], str]:
    """Steps that count, and why counting stopped: "incident", "far from log" or "end".

    Both cuts keep the step of the event itself, so an incident counts only before or at the first step that is too
    far from the expert path. Raises `InputError` when the rollout has no step after warm-up.
    """
    evaluated = ~score.is_warmup
    if not evaluated.any():
        raise InputError(
            f"rollout {score.rollout_index} of {score.policy} in scene {score.scene_id} has no step after warm-up; "
            "make the rollout longer than the warm-up"
        )
    end = len(evaluated) - 1
    incident, far = end + 1, end + 1
    if protocol.stop_at_first_incident:
        incident = _first(evaluated & (score.series["offroad_or_collision"].values > 0))
    if protocol.max_distance_to_log_m is not None:
        far = _first(evaluated & (score.series["dist_to_gt_trajectory"].values >= protocol.max_distance_to_log_m))
    keep = evaluated & (np.arange(end + 1) <= min(incident, far))
    if incident <= min(far, end):
        return keep, "incident"
    return keep, "far from log" if far <= end else "end"


def reduce_rollout(score: RolloutScore, protocol: EvaluationProtocol) -> ReducedRollout:
    """Cut one rollout and reduce each of its series over the steps that count."""
    keep, ended = kept_steps(score, protocol)
    steps = np.flatnonzero(keep)
    flagged = [name for name in _INCIDENTS if score.series[name].values[steps].max() > 0]
    return ReducedRollout(
        policy=score.policy,
        scene_id=score.scene_id,
        rollout_index=score.rollout_index,
        metrics={name: series.reduce(keep) for name, series in score.series.items() if name != "eval_relevant"}
        | {"ended_far_from_log": float(ended == "far from log")},
        incident=flagged[0] if flagged else "",
        ended=ended,
        evaluated_s=float(score.t_us[steps[-1]] - score.t_us[steps[0]]) * 1e-6,
        cut_us=int(score.t_us[steps[-1]]),
    )


def summarise(evaluation: EvaluationResult) -> Summary:
    """Aggregate everything an evaluation holds; see `aggregate`."""
    return aggregate(
        evaluation.scores,
        evaluation.protocol,
        evaluation.failures,
        policies=evaluation.policies,
        baselines=evaluation.baselines,
        open_loop=evaluation.open_loop,
        conditions=evaluation.conditions,
    )


def aggregate(
    scores: Sequence[RolloutScore],
    protocol: EvaluationProtocol | None = None,
    failures: Sequence[RolloutFailure] = (),
    *,
    policies: Sequence[str] = (),
    baselines: Sequence[str] = (),
    open_loop: Sequence[OpenLoopScore] = (),
    conditions: Mapping[str, Any] | None = None,
) -> Summary:
    """Aggregate rollouts of one or more policies; the first of `policies` is the one others are compared with.

    The driving score is km driven per incident, distance and incidents summed over all rollouts; incidents are
    off-road and at-fault collisions (or all collisions, see `EvaluationProtocol.at_fault_only`). The published scores
    equal mean distance over incident rate, which is the same. A score without incidents has no finite value: its mean
    is None and its note says over how many km nothing happened. `failure_rate` is the share of rollouts that produced
    no record; the other metrics are over finished rollouts.

    Raises `InputError` when there is no score, or two of the same policy, scene and rollout index.
    """
    protocol = protocol or EvaluationProtocol()
    _reject_unusable(scores, failures)
    rollouts = tuple(reduce_rollout(score, protocol) for score in scores)
    scene_ids = tuple(sorted({item.scene_id for item in (*rollouts, *failures)}))
    indices = tuple(sorted({item.rollout_index for item in (*rollouts, *failures)}))
    names = tuple(dict.fromkeys((*policies, *(item.policy for item in (*rollouts, *failures)))))
    draws = draw_scenes(len(scene_ids), protocol)
    tables = {policy: _tables(rollouts, policy, scene_ids, indices) for policy in names}
    statistics = {
        policy: _policy_statistics(tables[policy], draws, protocol)
        | {"failure_rate": _failure_rate(policy, rollouts, failures)}
        | _open_loop_statistics(policy, open_loop, scene_ids, draws, protocol)
        for policy in names
    }
    counted = _counted_incident(protocol)
    comparisons = tuple(
        compare(names[0], other, tables[names[0]], tables[other], counted, draws, protocol) for other in names[1:]
    )
    return Summary(
        protocol, scene_ids, len(indices), statistics, rollouts, comparisons,
        tuple(name for name in names if name in baselines), tuple(failures), conditions or {},
    )  # fmt: skip


def _failure_rate(policy: str, rollouts: Sequence[ReducedRollout], failures: Sequence[RolloutFailure]) -> Statistic:
    num_failed = sum(failure.policy == policy for failure in failures)
    num_finished = sum(rollout.policy == policy for rollout in rollouts)
    share = num_failed / (num_failed + num_finished) if num_failed + num_finished else None
    return Statistic(share, None, None, None)


def _open_loop_statistics(
    policy: str,
    open_loop: Sequence[OpenLoopScore],
    scene_ids: Sequence[str],
    draws: np.ndarray,
    protocol: EvaluationProtocol,
) -> dict[str, Statistic]:
    """Mean over scenes of each open-loop metric; there is one pass a scene, so no spread over rollout indices."""
    own = {score.scene_id: score.metrics for score in open_loop if score.policy == policy}
    names = dict.fromkeys(name for metrics in own.values() for name in metrics)
    tables = {name: np.array([[own.get(scene_id, {}).get(name, np.nan)] for scene_id in scene_ids]) for name in names}
    return {f"{OPEN_LOOP_PREFIX}{name}": _mean_statistic(table, draws, protocol) for name, table in tables.items()}


def _first(event: Bool[np.ndarray, "t"]) -> int:
    """Index of the first step with the event; the number of steps when there is none."""
    return int(event.argmax()) if event.any() else len(event)


def _reject_unusable(scores: Sequence[RolloutScore], failures: Sequence[RolloutFailure]) -> None:
    if not scores:
        why = f"all {len(failures)} failed, the first with: {failures[0].reason}" if failures else "no scene was driven"
        raise InputError(f"evaluation: no finished rollout to aggregate ({why}); mend the cause and run it again")
    seen = set()
    for score in scores:
        if score.key in seen:
            raise InputError(
                f"evaluation: rollout {score.rollout_index} of {score.policy} in scene {score.scene_id} occurs twice; "
                "give each policy its own name"
            )
        seen.add(score.key)


def _tables(
    rollouts: Sequence[ReducedRollout], policy: str, scene_ids: Sequence[str], indices: Sequence[int]
) -> dict[str, Float[np.ndarray, "s r"]]:
    """Metric values of one policy by scene and rollout index; NaN where there is none."""
    own = {(item.scene_id, item.rollout_index): item.metrics for item in rollouts if item.policy == policy}
    names = sorted({name for item in rollouts for name in item.metrics})
    tables = {name: np.full((len(scene_ids), len(indices)), np.nan) for name in names}
    for (row, scene_id), (column, index) in itertools.product(enumerate(scene_ids), enumerate(indices)):
        for name, value in own.get((scene_id, index), {}).items():
            tables[name][row, column] = value
    return tables


def _policy_statistics(
    tables: Mapping[str, Float[np.ndarray, "s r"]], draws: np.ndarray, protocol: EvaluationProtocol
) -> dict[str, Statistic]:
    statistics = {name: _mean_statistic(table, draws, protocol) for name, table in tables.items()}
    distance_m = tables["dist_traveled_m"]
    for name, incident in _SCORES.items():
        statistics[name] = _score_statistic(distance_m, tables[incident], draws, protocol)
    counted = _counted_incident(protocol)
    statistics["driving_score"] = _score_statistic(distance_m, tables[counted], draws, protocol)
    statistics["incidents_per_km"] = _rate_statistic(distance_m, tables[counted], draws, protocol)
    return statistics


def _counted_incident(protocol: EvaluationProtocol) -> str:
    return "offroad_or_collision_at_fault" if protocol.at_fault_only else "offroad_or_collision"


def _mean_statistic(table: Float[np.ndarray, "s r"], draws: np.ndarray, protocol: EvaluationProtocol) -> Statistic:
    per_index = _mean(table, axis=0)
    resampled = _mean(_mean(table[draws], axis=1), axis=1)
    note = "" if np.isfinite(per_index).any() else "no valid step"
    return _statistic(float(_mean(per_index, axis=0)), per_index, resampled, protocol, note)


def _score_statistic(
    distance_m: Float[np.ndarray, "s r"],
    incidents: Float[np.ndarray, "s r"],
    draws: np.ndarray,
    protocol: EvaluationProtocol,
) -> Statistic:
    """Km per incident, pooled over rollouts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = np.nansum(distance_m) / np.nansum(incidents) / 1000
        per_index = np.nansum(distance_m, axis=0) / np.nansum(incidents, axis=0) / 1000
        resampled = np.nansum(distance_m[draws], axis=(1, 2)) / np.nansum(incidents[draws], axis=(1, 2)) / 1000
    note = "" if np.nansum(incidents) else f"no incident in {np.nansum(distance_m) / 1000:.3f} km"
    note = note if np.isfinite(incidents).any() else "no finished rollout"
    return _statistic(float(pooled), per_index, resampled, protocol, note)


def _rate_statistic(
    distance_m: Float[np.ndarray, "s r"],
    incidents: Float[np.ndarray, "s r"],
    draws: np.ndarray,
    protocol: EvaluationProtocol,
) -> Statistic:
    """Incidents per km, the inverse of the score: finite wherever the car moved at all."""
    per_index = _per_km(incidents, distance_m, axis=0)
    resampled = _per_km(incidents[draws], distance_m[draws], axis=(1, 2))
    note = "" if np.nansum(distance_m) else "no metre driven"
    return _statistic(float(_per_km(incidents, distance_m, axis=(0, 1))), per_index, resampled, protocol, note)


def _per_km(incidents: np.ndarray, distance_m: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1000 * np.nansum(incidents, axis=axis) / np.nansum(distance_m, axis=axis)


def _statistic(
    mean: float, per_index: np.ndarray, resampled: np.ndarray, protocol: EvaluationProtocol, note: str
) -> Statistic:
    per_index = per_index[~np.isnan(per_index)]
    has_spread = len(per_index) > 1 and np.isfinite(per_index).all()
    low, high = interval(resampled, protocol)
    return Statistic(
        mean=mean if np.isfinite(mean) else None,
        std=float(per_index.std(ddof=1)) if has_spread else None,
        low=low,
        high=high,
        note=note,
    )


def _mean(table: np.ndarray, axis: int) -> np.ndarray:
    """Mean without NaN entries; NaN where there is nothing else."""
    present = np.isfinite(table)
    with np.errstate(invalid="ignore"):
        return np.where(present, table, 0.0).sum(axis=axis) / present.sum(axis=axis)
