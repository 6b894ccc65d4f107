"""Stage `rollout`: guided closed-loop rollouts become training shards (RoaD Algorithm 1, lines 3 to 14)."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.aggregate import reduce_rollout
from eval.protocol import EvaluationProtocol
from eval.scorers import score_rollout
from neural_sim.errors import InputError
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.record import write_record
from pipelines.config import RolloutConfig, config_to_mapping
from pipelines.device import banner
from pipelines.drive import Drive, drive
from pipelines.examples import ExampleOrigin, rollout_examples
from pipelines.processes import default_workers, exclusive, run_units
from pipelines.provenance import begin_artifact
from pipelines.shards.example import safe_name
from pipelines.shards.index import INDEX_NAME
from pipelines.shards.writer import ShardWriter, finalize, finished_units
from pipelines.units import chunks, read_scene_ids
from pipelines.worlds import cached_policy, cached_scene, make_simulator
from vla.checkpoint import policy_hash

logger = logging.getLogger("roadloop")


@dataclass(frozen=True)
class RolloutUnit:
    """Some rollouts of one scene, driven together: what one worker does at a time."""

    policy: Path
    scene: Path
    scene_id: str
    rollout_indices: tuple[int, ...]
    out: Path
    config: RolloutConfig
    simulation: SimulationConfig
    origin: ExampleOrigin
    device: str

    @property
    def name(self) -> str:
        """Name of the unit's files."""
        return f"{safe_name(self.scene_id)}-r{self.rollout_indices[0]:03d}"


@dataclass(frozen=True)
class RolloutSummary:
    """One line of the table at the end: how one rollout went.

    `incident` is empty when there was none; `chosen_distance_m` is the mean d^g of the executed candidates.
    """

    scene_id: str
    rollout_index: int
    driven_m: float
    steps: int
    recovered_share: float
    chosen_distance_m: float | None
    incident: str
    examples: int
    dropped: dict[str, int]


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
) -> Path:
    """Let the policy drive every scene several times, guided by the expert, and write the drives as shards.

    An interrupted job finishes only what is missing. The result depends on neither the number of workers nor on
    interruptions.

    Returns:
        `out`, with shards, `index.json`, and a record of each rollout under `records/`.

    Raises:
        InputError: a scene or the policy is unsound, or `out` holds rollouts with other settings.
    """
    scene_ids = read_scene_ids(scenes)
    driver = policy_hash(policy)
    settings: dict[str, Any] = {
        "policy": driver, "scenes": scene_ids, "seed": seed, "round": round_index,
        "rollout": config_to_mapping(config), "simulation": config_to_mapping(simulation),
    }  # fmt: skip
    workers = workers or default_workers()
    resolved = banner("rollout", device, seed, workers)
    with exclusive(out):
        if begin_artifact(out, "rollout", settings, resume=resume, complete=out / INDEX_NAME):
            return out
        origin = ExampleOrigin(seed, round_index, driver)
        units = [
            RolloutUnit(policy, path, scene_id, indices, out, config, simulation, origin, resolved)
            for path, scene_id in zip(scenes, scene_ids, strict=True)
            for indices in chunks(config.rollouts_per_scene, config.batch_size)
        ]
        done = finished_units(out)
        for _ in run_units(drive_unit, [unit for unit in units if unit.name not in done], workers, "rollout"):
            pass
        summaries = [row for unit in units for row in finished_units(out)[unit.name]["rollouts"]]
        finalize(out, [unit.name for unit in units], {"rollouts": summaries})
    logger.info("%s", rollout_table([RolloutSummary(**row) for row in summaries]))
    return out


def drive_unit(unit: RolloutUnit) -> None:
    """Drive the rollouts of one unit and write their shard and records. Runs in a worker process."""
    scene = cached_scene(unit.scene)
    policy = cached_policy(unit.policy, unit.device)
    simulator = make_simulator(scene, policy, unit.simulation, unit.device)
    driven = drive(simulator, policy, unit.rollout_indices, unit.origin.seed, unit.config.guidance, scene.ego_vehicle)
    with ShardWriter(unit.out, unit.name) as writer:
        rows = []
        for place, record in enumerate(driven.records):
            write_record(record, unit.out / "records" / f"{unit.name}-{record.rollout_index:03d}.npz")
            dropped: Counter[str] = Counter()
            examples = list(rollout_examples(driven, place, scene, unit.config, unit.origin, dropped))
            for example in examples:
                writer.write(example)
            rows.append(asdict(_summarise(driven, place, unit, len(examples), dropped)))
        writer.summary["rollouts"] = rows


def _summarise(driven: Drive, place: int, unit: RolloutUnit, examples: int, dropped: Counter[str]) -> RolloutSummary:
    record, protocol = driven.records[place], EvaluationProtocol()
    score = score_rollout(record, cached_scene(unit.scene), protocol, policy="rollout")
    reduced = reduce_rollout(score, protocol)
    distances = driven.chosen_distance_m(place)
    return RolloutSummary(
        scene_id=record.scene_id,
        rollout_index=record.rollout_index,
        driven_m=round(reduced.metrics["dist_traveled_m"], 3),
        steps=len(driven.steps),
        recovered_share=round(float(driven.recovered(place).mean()), 4),
        chosen_distance_m=None if np.isnan(distances).any() else round(float(distances.mean()), 4),
        incident=reduced.incident,
        examples=examples,
        dropped=dict(dropped),
    )


def rollout_table(rows: Sequence[RolloutSummary]) -> str:
    """The rollouts as a text table, one line each."""
    lines = [f"{'scene':<24} {'rollout':>7} {'driven':>9} {'recovered':>9} {'mean d^g':>9} {'examples':>8}  incident"]
    for row in rows:
        distance = "-" if row.chosen_distance_m is None else f"{row.chosen_distance_m:.2f} m"
        lines.append(
            f"{row.scene_id:<24} {row.rollout_index:>7} {row.driven_m:>7.1f} m {row.recovered_share:>8.0%} "
            f"{distance:>9} {row.examples:>8}  {row.incident or '-'}"
        )
        lines.extend(f"{'':<24} dropped {count} windows: {reason}" for reason, count in row.dropped.items())
    return "\n".join(lines)


def require_examples(out: Path, examples: int) -> None:
    """Raise `InputError` when the rollouts gave no training window at all."""
    if not examples:
        raise InputError(f"{out}: no rollout gave a training window; see the table of dropped windows above")
