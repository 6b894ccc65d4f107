"""What the units of an evaluation left behind, scored and put together for the report."""

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from eval.aggregate import kept_steps
from eval.reported import reject_black_images
from eval.results import EvaluationResult, OpenLoopScore, RolloutFailure, RolloutKey, RolloutScore
from eval.scorers import score_rollout
from neural_sim.road_map import RoadMap
from neural_sim.simulation.record import read_record
from pipelines.evaluation_units import FAILURES_NAME, Driver, EvaluationUnit, OpenLoopUnit, failure_reason
from pipelines.open_loop import executed_distances_m
from pipelines.worlds import cached_scene

logger = logging.getLogger("roadloop")


def collect(
    units: Sequence[EvaluationUnit],
    open_loop_units: Sequence[OpenLoopUnit],
    drivers: Sequence[Driver],
    conditions: Mapping[str, Any],
) -> EvaluationResult:
    """Score every rollout from its record, scene by scene, and put them in the order of the drivers."""
    scored: dict[RolloutKey, _Scored] = {}
    maps: dict[str, RoadMap] = {}
    for scene_id, group in groupby(sorted(units, key=lambda unit: unit.scene_id), key=lambda unit: unit.scene_id):
        for unit in group:
            scored |= {
                (unit.driver.name, scene_id, index): _score(unit, index, _failures_of(unit))
                for index in unit.rollout_indices
            }
            maps[scene_id] = cached_scene(unit.scene).road_map
    order = [(unit, (unit.driver.name, unit.scene_id, index)) for unit in units for index in unit.rollout_indices]
    kept = [(unit, key, scored[key]) for unit, key in order]
    open_loop, notes = _read_open_loop(open_loop_units)
    return EvaluationResult(
        units[0].config.protocol,
        tuple(found[0] for _, _, found in kept if not isinstance(found, RolloutFailure)),
        tuple(found for _, _, found in kept if isinstance(found, RolloutFailure)),
        road_maps=maps,
        videos={key: unit.video_path(key[2]) for unit, key, _ in kept if unit.video_path(key[2]).exists()},
        policies=tuple(driver.name for driver in drivers),
        baselines=tuple(driver.name for driver in drivers if driver.baseline is not None),
        clips={key: unit.clip_path(key[2]) for unit, key, _ in kept if unit.clip_path(key[2]).exists()},
        plan_distances_m={key: found[1] for _, key, found in kept if not isinstance(found, RolloutFailure)},
        open_loop=open_loop,
        notes=notes,
        conditions=conditions,
    )


_Scored = tuple[RolloutScore, np.ndarray] | RolloutFailure


def _failures_of(unit: EvaluationUnit) -> dict[int, RolloutFailure]:
    path = unit.folder / FAILURES_NAME
    found = [RolloutFailure(**failure) for failure in json.loads(path.read_text())] if path.exists() else []
    return {failure.rollout_index: failure for failure in found}


def _score(unit: EvaluationUnit, index: int, failures: Mapping[int, RolloutFailure]) -> _Scored:
    """Score of one rollout and d^g of its counted plans, m; a rollout that cannot be scored counts as failed."""
    if index in failures:
        return failures[index]
    try:
        record, scene, protocol = read_record(unit.record_path(index)), cached_scene(unit.scene), unit.config.protocol
        score = score_rollout(record, scene, protocol, policy=unit.driver.name)
        reject_black_images(score, protocol)
        keep, _ = kept_steps(score, protocol)
        distances_m = executed_distances_m(record, scene)[keep]
    except Exception as error:  # a damaged record or a degenerate drive must not cost the report
        logger.warning("%s in %s, rollout %d cannot be scored", unit.driver.name, unit.scene_id, index, exc_info=True)
        reason = f"cannot be scored: {failure_reason(error)}"
        return RolloutFailure(unit.driver.name, unit.scene_id, index, reason)
    return score, distances_m[np.isfinite(distances_m)]


def _read_open_loop(units: Sequence[OpenLoopUnit]) -> tuple[tuple[OpenLoopScore, ...], tuple[str, ...]]:
    """Open-loop metrics by driver and scene, and a note for each that is missing."""
    scores, notes = [], []
    for unit in units:
        for driver in unit.drivers:
            found = json.loads(unit.path(driver).read_text())
            if "error" in found:
                notes.append(f"Open-loop metrics leave out {driver.name} in {unit.scene_id}: {found['error']}.")
            else:
                scores.append(OpenLoopScore(driver.name, unit.scene_id, found["num_windows"], found["metrics"]))
    return tuple(scores), tuple(notes)
