"""Stage `evaluate`: checkpoints drive in closed loop without guidance, and a report compares them."""

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from eval.report import write_report
from eval.results import EvaluationResult, TrainingProgress
from neural_sim.nerf.storage import nerf_path
from neural_sim.simulation.config import SimulationConfig
from pipelines.config import EvaluationConfig, config_to_mapping
from pipelines.device import banner
from pipelines.evaluation_results import collect
from pipelines.evaluation_units import (
    FAILURES_NAME,
    Driver,
    EvaluationUnit,
    OpenLoopUnit,
    drivers_of,
    evaluate_unit,
    open_loop_unit,
)
from pipelines.processes import default_workers, exclusive, run_units
from pipelines.provenance import begin_artifact, begun_with, provenance, provenance_path, write_record
from pipelines.shards.reader import file_sha256
from pipelines.units import chunks, read_scene_ids
from pipelines.worlds import require_renderable
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
    places = list(zip(scenes, scene_ids, strict=True))
    settings = _settings(drivers, places, out, config, simulation, seed)
    workers = workers or default_workers()
    resolved = banner("evaluate", device, seed, workers)
    with exclusive(out):
        if resume:
            _admit_further_policies(out, settings)
        whole = begin_artifact(out, "evaluate", settings, resume=resume, complete=out / "summary.json")
        if whole and not any(out.glob(f"rollouts/*/{FAILURES_NAME}")):
            return out
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
        result = collect(units, open_loop_units, drivers, _conditions(settings, places))
        _report(out, replace(result, progress=progress), settings)
    return out


def _settings(
    drivers: Sequence[Driver],
    places: Sequence[tuple[Path, str]],
    out: Path,
    config: EvaluationConfig,
    simulation: SimulationConfig,
    seed: int,
) -> dict[str, Any]:
    """What makes this evaluation: another value of any of it is another evaluation."""
    settings = {
        "policies": {driver.name: _hash_of(driver, out) for driver in drivers if driver.baseline is None},
        "scenes": [name for _, name in places], "seed": seed, "evaluate": config_to_mapping(config),
        "simulation": config_to_mapping(simulation),
    }  # fmt: skip
    if config.renderer == "nerf":
        settings["nerfs"] = {name: file_sha256(nerf_path(path)) for path, name in places}
    return settings


def _report(out: Path, result: EvaluationResult, settings: dict[str, Any]) -> None:
    made, earlier = provenance("evaluate", settings), begun_with(out)
    versions = {"commit": str(made["commit"]), **made["versions"]}
    if earlier:
        commits = ", ".join(dict.fromkeys(str(item["commit"]) for item in earlier))
        note = f"Made with several versions: what was finished before with commit {commits} was kept."
        result = replace(result, notes=(*result.notes, note))
    write_report(out, result, provenance=versions, config_yaml=yaml.safe_dump(settings, sort_keys=False))


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
        write_record(out, "evaluate", settings)


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
