"""Stage `rollout`: guided closed-loop rollouts become training shards (RoaD Algorithm 1, lines 3 to 14)."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from neural_sim.errors import InputError
from neural_sim.simulation.config import SimulationConfig
from pipelines.config import RolloutConfig, config_to_mapping
from pipelines.device import banner
from pipelines.disk import disk_may_fill
from pipelines.examples import ExampleOrigin
from pipelines.execution import ExecutionConfig
from pipelines.processes import default_workers, exclusive, run_units
from pipelines.provenance import begin_artifact
from pipelines.quality import COPY_OF_A_FAILURE, Failure, copies_of_failures
from pipelines.rollout_table import JobSummary, RolloutFailure, RolloutSummary
from pipelines.rollout_units import RolloutUnit, drive_unit, lost_unit, shard_unit_name, without_examples
from pipelines.shards.index import INDEX_NAME, read_index
from pipelines.shards.writer import finalize, finished_units, move_unit
from pipelines.units import chunks, readable_scenes
from vla.checkpoint import policy_hash

logger = logging.getLogger("roadloop")

COPIES_FOLDER = "copies"
"""Folder inside the shards for those of rollouts that failed like others; see `QualityConfig.copies_of_failure`."""


def rollout(
    policy: Path,
    scenes: Sequence[Path],
    *,
    out: Path,
    config: RolloutConfig,
    simulation: SimulationConfig,
    round_index: int = 1,
    seed: int = 0,
    device: str = "auto",
    workers: int = 0,
    resume: bool = True,
    execution: ExecutionConfig | None = None,
    retry_failed: bool = True,
) -> Path:
    """Let the policy drive every scene several times, guided by the expert, and write the drives as shards.

    An interrupted job finishes only what is missing. The result depends on neither the number and kind of workers nor
    on interruptions. A scene or a rollout that fails is named in the summary of the index, the others go on; started
    again, only what failed is tried again.

    `round_index` is recorded in every example, for weighting by age. `workers` is 0 for one per processor, on Ray for
    as many as the cluster holds. `retry_failed`: whether a finished job in which something failed is taken up again.

    Returns:
        `out`, with shards, `index.json`, and a record of each rollout under `records/`.

    Raises:
        InputError: the policy is unsound, not a single rollout was finished, the disk is full, or `out` is in use or
            holds rollouts with other settings.
    """
    execution = execution or ExecutionConfig()
    places, unreadable = readable_scenes(scenes)
    driver = policy_hash(policy)
    settings: dict[str, Any] = {
        "policy": driver, "scenes": [name for _, name in places] + [name for name, _ in unreadable], "seed": seed,
        "round": round_index, "rollout": config_to_mapping(config), "simulation": config_to_mapping(simulation),
    }  # fmt: skip
    resolved, workers = _resources(execution, device, workers, seed)
    with exclusive(out), disk_may_fill(out):
        whole = begin_artifact(out, "rollout", settings, resume=resume, complete=out / INDEX_NAME)
        if whole and not (retry_failed and read_summary(out).failures):
            return out
        origin = ExampleOrigin(seed, round_index, driver)
        units = [
            RolloutUnit(policy, path, scene_id, indices, out, config, simulation, origin, resolved)
            for path, scene_id in places
            for indices in chunks(config.rollouts_per_scene, config.batch_size)
        ]
        failures = [
            *(RolloutFailure(name, tuple(range(config.rollouts_per_scene)), reason) for name, reason in unreadable),
            *_drive_missing(out, units, workers, execution),
        ]
        summary = _finish(out, units, failures)
    logger.info("%s", summary.table())
    return out


def _resources(execution: ExecutionConfig, device: str, workers: int, seed: int) -> tuple[str, int]:
    """Log the banner of the stage. Returns the device that workers compute on, and how many there are (0: any)."""
    if execution.engine == "processes":
        workers = workers or default_workers()
    resolved = banner("rollout", device, seed, workers)
    # The GPUs that Ray hands out are those of the workers; this machine may have none.
    on_gpus = execution.engine == "ray" and execution.gpus_per_worker > 0 and device == "auto"
    return "cuda" if on_gpus else resolved, workers


def read_summary(shards: Path) -> JobSummary:
    """Summary of a finished job of rollouts. Raises `InputError` when `shards` holds none."""
    try:
        return JobSummary.from_json(read_index(shards).summary)
    except (KeyError, TypeError) as error:
        raise InputError(f"{shards}: shards without a summary of rollouts ({error}); write them anew") from error


def job_problems(shards: Path) -> list[str]:
    """What is wrong with a finished job of rollouts, a line each: what failed, or that it gave no example."""
    problems = [
        f"{failure.scene_id}, rollouts {', '.join(map(str, failure.rollout_indices))} failed: {failure.reason}"
        for failure in read_summary(shards).failures
    ]
    if not read_index(shards).examples:
        problems.append(f"{shards}: no rollout gave a training window; the table says why they were dropped")
    return problems


def _drive_missing(
    out: Path, units: Sequence[RolloutUnit], workers: int, execution: ExecutionConfig
) -> list[RolloutFailure]:
    """Drive what was not driven before or failed then. Returns the failures, in the order of the units."""
    done = _finished(out)
    missing = [unit for unit in units if not done.keys() >= unit.shard_units.keys()]
    failures: dict[str, RolloutFailure] = {}
    for unit, failure in _run(missing, workers, execution):
        if failure is not None:
            failures[unit.name] = failure
            logger.warning("%s, rollouts %s failed: %s", unit.scene_id, list(unit.rollout_indices), failure.reason)
    return [failures[unit.name] for unit in missing if unit.name in failures]


def _run(
    units: Sequence[RolloutUnit], workers: int, execution: ExecutionConfig
) -> Iterator[tuple[RolloutUnit, RolloutFailure | None]]:
    if execution.engine == "ray":
        from pipelines.ray_units import run_units_on_ray

        return run_units_on_ray(drive_unit, units, workers, "rollout", execution, lost_unit)
    return run_units(drive_unit, units, workers, "rollout", retries=execution.retries, on_lost=lost_unit)


def _finish(out: Path, units: Sequence[RolloutUnit], failures: Sequence[RolloutFailure]) -> JobSummary:
    """Put copies of failures aside and write the index over what was finished.

    Raises `InputError` when nothing was.
    """
    finished = _finished(out)
    names = [name for unit in units for name in unit.shard_units if name in finished]
    if not names:
        reason = failures[0].reason if failures else "there are no rollouts"
        raise InputError(f"{out}: not a single rollout was finished; the first reason: {reason}")
    rows = [RolloutSummary(**row) for name in names for row in finished[name]["rollouts"]]
    copies = _copies(rows, units[0].config)
    kept = []
    for name in names:
        if name not in copies:
            kept.append(name)
        move_unit(name, out, out / COPIES_FOLDER) if name in copies else move_unit(name, out / COPIES_FOLDER, out)
    rows = [without_examples(row, COPY_OF_A_FAILURE) if _shard_unit(row) in copies else row for row in rows]
    summary = JobSummary(tuple(rows), tuple(failures))
    finalize(out, kept, summary.to_json())
    return summary


def _finished(out: Path) -> dict[str, dict[str, Any]]:
    """Summaries of the finished units of shards by name, those put aside included."""
    return finished_units(out / COPIES_FOLDER) | finished_units(out)


def _copies(rows: Sequence[RolloutSummary], config: RolloutConfig) -> set[str]:
    """Units of shards whose rollout fails like others of its scene."""
    scenes: dict[str, list[Failure]] = {}
    for row in rows:
        at_m = None if row.incident_at_m is None else (row.incident_at_m[0], row.incident_at_m[1])
        if row.examples:
            scenes.setdefault(row.scene_id, []).append(Failure(row.rollout_index, row.incident, at_m))
    return {
        shard_unit_name(scene_id, index)
        for scene_id, failed in scenes.items()
        for index in copies_of_failures(failed, config.quality)
    }


def _shard_unit(row: RolloutSummary) -> str:
    return shard_unit_name(row.scene_id, row.rollout_index)
