"""Stage `evaluate`: checkpoints drive in closed loop without guidance, and a report compares them."""

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eval.aggregate import kept_steps
from eval.report import write_report
from eval.reported import reject_black_images
from eval.results import EvaluationResult, OpenLoopScore, RolloutFailure, RolloutKey, RolloutScore, TrainingProgress
from eval.scorers import score_rollout
from neural_sim.artifacts import write_json
from neural_sim.nerf.storage import nerf_path
from neural_sim.road_map import RoadMap
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.record import read_record
from pipelines.config import EvaluationConfig, config_to_mapping
from pipelines.device import banner
from pipelines.evaluation_units import (
    FAILURES_NAME,
    Driver,
    EvaluationUnit,
    OpenLoopUnit,
    drivers_of,
    evaluate_unit,
    failure_reason,
    open_loop_unit,
)
from pipelines.open_loop import executed_distances_m
from pipelines.processes import default_workers, exclusive, run_units
from pipelines.provenance import begin_artifact, provenance, provenance_path
from pipelines.shards.reader import file_sha256
from pipelines.units import chunks, read_scene_ids
from pipelines.worlds import cached_scene, require_renderable
from vla.checkpoint import policy_hash

logger = logging.getLogger("roadloop")


def evaluate(
    policies: Sequence[Path],
    scenes: Sequence[Path],
    *,
    out: Path,
    config: EvaluationConfig,
    simulation: SimulationConfig,
    seed: int = 0,
    device: str = "auto",
    workers: int = 0,
    resume: bool = True,
    progress: TrainingProgress | None = None,
) -> Path:
    """Drive every policy in every scene several times and write the report.

    All policies get the same seeds. An interrupted job finishes only what is missing; the result depends on neither
    the number of workers nor on interruptions. A rollout that fails is counted and named, the others go on; started
    again, only failed rollouts are tried again. A report can be given further
    policies later: those it has are kept, even when their folders are gone.

    `progress`: where the policies stand in a training run; the report then shows curves over its steps.

    Returns:
        `out`, with `report.html`, `summary.json`, `metrics.parquet` and the rollouts' records and videos.

    Raises:
        InputError: a scene or policy is unsound, `config.renderer` cannot draw a scene, two policies share a name,
            `out` holds another evaluation, or not a single rollout was finished.
    """
    drivers = drivers_of(policies, config.baselines)
    scene_ids = read_scene_ids(scenes)
    require_renderable(config.renderer, scenes)
    settings = {
        "policies": {driver.name: _hash_of(driver, out) for driver in drivers if driver.baseline is None},
        "scenes": scene_ids, "seed": seed, "evaluate": config_to_mapping(config),
        "simulation": config_to_mapping(simulation),
    }  # fmt: skip
    if config.renderer == "nerf":
        settings["nerfs"] = {name: file_sha256(nerf_path(path)) for path, name in zip(scenes, scene_ids, strict=True)}
    workers = workers or default_workers()
    resolved = banner("evaluate", device, seed, workers)
    with exclusive(out):
        if resume:
            _admit_further_policies(out, settings)
        whole = begin_artifact(out, "evaluate", settings, resume=resume, complete=out / "summary.json")
        if whole and not any(out.glob(f"rollouts/*/{FAILURES_NAME}")):
            return out
        places = list(zip(scenes, scene_ids, strict=True))
        units = [
            EvaluationUnit(driver, path, scene_id, indices, out, config, simulation, seed, resolved)
            for driver in drivers
            for path, scene_id in places
            for indices in chunks(config.rollouts_per_scene, config.batch_size)
        ]
        _drive_missing(units, workers)
        judged = tuple(driver for driver in drivers if driver.baseline != "expert")
        open_loop_units = [
            OpenLoopUnit(judged, path, scene_id, out, config, simulation, seed, resolved) for path, scene_id in places
        ] if config.open_loop else []  # fmt: skip
        _judge_missing(open_loop_units, workers)
        result = _collect(units, open_loop_units, drivers, _conditions(settings, places))
        result = replace(result, progress=progress)
        made = provenance("evaluate", settings)
        versions = {"commit": str(made["commit"]), **made["versions"]}
        write_report(out, result, provenance=versions, config_yaml=yaml.safe_dump(settings, sort_keys=False))
    return out


def recorded_policies(out: Path) -> dict[str, str]:
    """Hashes of the policies in the report `out` by name, in its order; none when there is no report."""
    record = provenance_path(out)
    if not out.exists() or not record.is_file():
        return {}
    return json.loads(record.read_text())["settings"].get("policies", {})


def _hash_of(driver: Driver, out: Path) -> str:
    """Hash of a checkpoint; of one that was deleted since it was evaluated, the recorded hash."""
    recorded = recorded_policies(out).get(driver.name)
    return recorded if recorded and not driver.seen_by.exists() else policy_hash(driver.seen_by)


def _drive_missing(units: Sequence[EvaluationUnit], workers: int) -> None:
    """Drive what was not driven before or failed then."""
    missing = [unit for unit in units if not unit.folder.exists() or (unit.folder / FAILURES_NAME).exists()]
    for _, failures in run_units(evaluate_unit, missing, workers, "evaluate"):
        for item in failures:
            logger.warning(
                "%s failed in %s, rollout %d: %s", item.policy, item.scene_id, item.rollout_index, item.reason
            )


def _judge_missing(units: Sequence[OpenLoopUnit], workers: int) -> None:
    """Compute the open-loop metrics that are not there yet."""
    missing = []
    for unit in units:
        drivers = tuple(driver for driver in unit.drivers if not unit.path(driver).exists())
        if drivers:
            missing.append(OpenLoopUnit(**{**vars(unit), "drivers": drivers}))
    for _ in run_units(open_loop_unit, missing, workers, "open loop"):
        pass


def _collect(
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


def _conditions(settings: Mapping[str, Any], places: Sequence[tuple[Path, str]]) -> dict[str, Any]:
    """What must be equal for two reports to be compared, beside scenes, rollouts and protocol."""
    of_evaluation = settings["evaluate"]
    return {
        "seed": settings["seed"],
        "temperature": of_evaluation["temperature"],
        "batch_size": of_evaluation["batch_size"],
        "renderer": of_evaluation["renderer"],
        "simulation": settings["simulation"],
        "scene_files": {scene_id: _scene_fingerprint(path) for path, scene_id in places},
        **({"nerfs": settings["nerfs"]} if "nerfs" in settings else {}),
    }


def _scene_fingerprint(path: Path) -> str:
    """Short hash of the names, sizes and checksums of a scene's members; the members themselves are not read."""
    with zipfile.ZipFile(path) as archive:
        members = sorted((info.filename, info.file_size, info.CRC) for info in archive.infolist())
    return hashlib.sha256(repr(members).encode()).hexdigest()[:16]


def _admit_further_policies(out: Path, settings: dict[str, Any]) -> None:
    """Let a report that differs only in lacking some of the policies be continued with them."""
    record = provenance_path(out)
    if not out.exists() or not record.is_file():
        return
    settings = json.loads(json.dumps(settings))
    old = json.loads(record.read_text())["settings"]
    had = old.get("policies", {})
    if had.items() < settings["policies"].items() and {**old, "policies": settings["policies"]} == settings:
        (out / "summary.json").unlink(missing_ok=True)
        write_json(record, provenance("evaluate", settings))
