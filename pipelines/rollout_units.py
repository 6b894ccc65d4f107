"""The work of the rollout stage, cut into units: some rollouts of one scene, driven together and written as shards."""

import traceback
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from neural_sim.artifacts import atomic_file
from neural_sim.errors import InputError
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.observation import PLAN_STEP_US, PLAN_STEPS
from neural_sim.simulation.record import write_record
from neural_sim.simulation.simulator import Simulator
from pipelines.config import RolloutConfig
from pipelines.disk import FullDiskError, disk_may_fill
from pipelines.drive import Drive, drive
from pipelines.examples import ExampleOrigin, rollout_examples, window_times
from pipelines.failures import failure_reason
from pipelines.outcome import rollout_outcome
from pipelines.quality import rollout_weight
from pipelines.rollout_table import RolloutFailure, RolloutSummary
from pipelines.shards.example import safe_name
from pipelines.shards.writer import ShardWriter
from pipelines.worlds import cached_policy, cached_scene, image_format, make_simulator
from vla.checkpoint import read_policy_config

_MEGABYTE = 1_000_000


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
        return shard_unit_name(self.scene_id, self.rollout_indices[0])

    @property
    def shard_units(self) -> dict[str, tuple[int, ...]]:
        """Rollouts by the shards' unit that holds their examples; one each where some may be left out later."""
        if self.config.quality.copies_of_failure:
            return {shard_unit_name(self.scene_id, index): (index,) for index in self.rollout_indices}
        return {self.name: self.rollout_indices}


def shard_unit_name(scene_id: str, first_rollout: int) -> str:
    """Name of the unit of shards that begins with this rollout."""
    return f"{safe_name(scene_id)}-r{first_rollout:03d}"


def drive_unit(unit: RolloutUnit) -> RolloutFailure | None:
    """Drive the rollouts of one unit and write their shards and records. Runs in a worker process.

    Whatever goes wrong with scene or policy is returned as a failure, with a traceback beside the records; only a full
    disk is raised (`FullDiskError`), because it concerns every unit.
    """
    trace = unit.out / "records" / f"{unit.name}.error.txt"
    try:
        with disk_may_fill(unit.out):
            _drive(unit)
            trace.unlink(missing_ok=True)
    except FullDiskError:
        raise
    except Exception as error:  # a policy or a scene may fail in any way
        with disk_may_fill(unit.out), atomic_file(trace) as partial:
            partial.write_text(traceback.format_exc())
        return RolloutFailure(unit.scene_id, unit.rollout_indices, failure_reason(error))
    return None


def lost_unit(unit: RolloutUnit, attempts: int) -> RolloutFailure:
    """The failure of a unit whose worker died every time."""
    reason = f"its worker process died {attempts} times, for example for want of memory; lower rollout.batch_size"
    return RolloutFailure(unit.scene_id, unit.rollout_indices, reason)


def _drive(unit: RolloutUnit) -> None:
    scene, images = cached_scene(unit.scene), image_format(read_policy_config(unit.policy))
    policy = cached_policy(unit.policy, unit.device) if unit.config.guidance.samples_per_step else None
    simulator = make_simulator(scene, images, unit.simulation, unit.device)
    require_horizon(simulator)
    times_us = window_times(
        simulator.handover_us, simulator.num_steps, unit.simulation.control_step_us, unit.config.window_stride_s
    )
    kept = frozenset(times_us)
    driven = drive(
        simulator, policy, unit.rollout_indices, unit.origin.seed, unit.config.guidance, scene.ego_vehicle,
        keep_images=kept.__contains__,
    )  # fmt: skip
    for name, indices in unit.shard_units.items():
        with ShardWriter(unit.out, name, round(unit.config.shard_mb * _MEGABYTE)) as writer:
            rows = [_write(unit, driven, index, times_us, simulator.end_us, writer) for index in indices]
            writer.summary["rollouts"] = [asdict(row) for row in rows]


def require_horizon(simulator: Simulator) -> None:
    """Raise `InputError` when a scene is too short for a single training window."""
    horizon_us = PLAN_STEPS * PLAN_STEP_US
    left_us = simulator.end_us - simulator.handover_us
    if left_us < horizon_us:
        raise InputError(
            f"scene {simulator.scene.scene_id}: {left_us * 1e-6:.1f} s are left of its recording after the hand-over, "
            f"but a training window needs {horizon_us * 1e-6:.1f} s; take a longer drive, or raise "
            "simulation.duration_us if that ends it"
        )


def _write(
    unit: RolloutUnit, driven: Drive, index: int, times_us: list[int], end_us: int, writer: ShardWriter
) -> RolloutSummary:
    """Write record and examples of one rollout and sum it up."""
    place = unit.rollout_indices.index(index)
    record, scene = driven.records[place], cached_scene(unit.scene)
    write_record(record, unit.out / "records" / f"{unit.name}-{index:03d}.npz")
    outcome = rollout_outcome(record, scene, unit.config.max_distance_to_log_m)
    dropped: Counter[str] = Counter()
    examples = 0
    for example in rollout_examples(driven, place, times_us, outcome, end_us, unit.config, unit.origin, dropped):
        writer.write(example)
        examples += 1
    distances = driven.chosen_distance_m(place)
    return RolloutSummary(
        scene_id=record.scene_id,
        rollout_index=index,
        driven_m=round(outcome.driven_m, 3),
        driven_s=round(outcome.driven_s, 3),
        steps=len(driven.steps),
        recovered_share=round(float(driven.recovered(place).mean()), 4),
        chosen_distance_m=None if np.isnan(distances).any() else round(float(distances.mean()), 4),
        incident=outcome.failure,
        incident_at_m=outcome.failed_at_m,
        windows=len(times_us),
        examples=examples,
        weight=rollout_weight(outcome, unit.config.quality),
        dropped=dict(dropped),
    )


def without_examples(row: RolloutSummary, reason: str) -> RolloutSummary:
    """The row of a rollout whose examples are left out after all."""
    if not row.examples:
        return row
    dropped = Counter(row.dropped)
    dropped[reason] += row.examples
    return replace(row, examples=0, dropped=dict(dropped))
