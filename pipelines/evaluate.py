"""Stage `evaluate`: checkpoints drive in closed loop without guidance, and a report compares them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import UInt8

from eval.protocol import EvaluationProtocol
from eval.report import write_report
from eval.results import EvaluationResult, RolloutKey, RolloutScore
from eval.scorers import score_rollout
from eval.video import render_rollout_video
from neural_sim.artifacts import atomic_folder
from neural_sim.errors import InputError
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.record import RolloutRecord, read_record, write_record
from pipelines.config import EvaluationConfig, config_to_mapping
from pipelines.device import banner
from pipelines.drive import Drive, drive
from pipelines.guidance import GuidanceConfig
from pipelines.processes import default_workers, exclusive, run_units
from pipelines.provenance import begin_artifact, provenance
from pipelines.shards.example import safe_name
from pipelines.units import chunks, read_scene_ids
from pipelines.worlds import cached_policy, cached_scene, make_simulator
from vla.checkpoint import policy_hash

logger = logging.getLogger("roadloop")


@dataclass(frozen=True)
class EvaluationUnit:
    """Some rollouts of one policy in one scene, driven together: what one worker does at a time."""

    name: str
    policy: Path
    scene: Path
    scene_id: str
    rollout_indices: tuple[int, ...]
    out: Path
    config: EvaluationConfig
    simulation: SimulationConfig
    seed: int
    device: str

    @property
    def folder(self) -> Path:
        """Where the unit's records and videos lie; it exists once the unit is finished."""
        return self.out / "rollouts" / f"{self.name}-{safe_name(self.scene_id)}-r{self.rollout_indices[0]:03d}"

    def record_path(self, index: int) -> Path:
        """Record of one rollout."""
        return self.folder / f"{index:03d}.npz"

    def video_path(self, index: int) -> Path:
        """Video of one rollout."""
        return self.folder / f"{index:03d}.mp4"


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
) -> Path:
    """Drive every policy in every scene several times and write the report.

    All policies get the same seeds. An interrupted job finishes only what is missing; the result depends on neither
    the number of workers nor on interruptions.

    Returns:
        `out`, with `report.html`, `summary.json`, `metrics.parquet` and the rollouts' records and videos.

    Raises:
        InputError: a scene or policy is unsound, two policies share a name, or `out` holds another evaluation.
    """
    names = _policy_names(policies)
    scene_ids = read_scene_ids(scenes)
    settings = {
        "policies": {name: policy_hash(path) for name, path in zip(names, policies, strict=True)},
        "scenes": scene_ids, "seed": seed, "evaluate": config_to_mapping(config),
        "simulation": config_to_mapping(simulation),
    }  # fmt: skip
    workers = workers or default_workers()
    resolved = banner("evaluate", device, seed, workers)
    with exclusive(out):
        if begin_artifact(out, "evaluate", settings, resume=resume, complete=out / "summary.json"):
            return out
        units = [
            EvaluationUnit(name, policy, path, scene_id, indices, out, config, simulation, seed, resolved)
            for name, policy in zip(names, policies, strict=True)
            for path, scene_id in zip(scenes, scene_ids, strict=True)
            for indices in chunks(config.rollouts_per_scene, config.batch_size)
        ]
        missing = [unit for unit in units if not unit.folder.exists()]
        for _ in run_units(evaluate_unit, missing, workers, "evaluate"):
            pass
        result = _collect(units, config.protocol)
        made = provenance("evaluate", settings)
        versions = {"commit": str(made["commit"]), **made["versions"]}
        write_report(out, result, provenance=versions, config_yaml=yaml.safe_dump(settings, sort_keys=False))
    return out


def evaluate_unit(unit: EvaluationUnit) -> None:
    """Drive the rollouts of one unit and write their records and videos. Runs in a worker process."""
    scene = cached_scene(unit.scene)
    policy = cached_policy(unit.policy, unit.device)
    simulator = make_simulator(scene, policy, unit.simulation, unit.device)
    alone = GuidanceConfig(strategy="none", temperature=unit.config.temperature)
    driven = drive(simulator, policy, unit.rollout_indices, unit.seed, alone, scene.ego_vehicle)
    with atomic_folder(unit.folder) as folder:
        for place, record in enumerate(driven.records):
            write_record(record, folder / unit.record_path(record.rollout_index).name)
            if unit.config.videos:
                _write_video(unit, driven, place, folder / unit.video_path(record.rollout_index).name)


def _write_video(unit: EvaluationUnit, driven: Drive, place: int, path: Path) -> None:
    record = driven.records[place]
    camera = next(iter(driven.steps[0].observation.images))
    frames = _frame_per_step(record, driven, place, camera)
    render_rollout_video(
        record, cached_scene(unit.scene), frames, path, policy=unit.name, protocol=unit.config.protocol
    )


def _frame_per_step(record: RolloutRecord, driven: Drive, place: int, camera: str) -> UInt8[np.ndarray, "t h w 3"]:
    """The newest image at each step of the record; steps without a decision repeat the nearest one."""
    nearest = np.abs(record.t_us[:, None] - driven.decision_times_us()[None]).argmin(axis=1)
    return driven.frames(place, camera)[nearest]


def _collect(units: Sequence[EvaluationUnit], protocol: EvaluationProtocol) -> EvaluationResult:
    """Score every rollout from its record."""
    scores: list[RolloutScore] = []
    videos: dict[RolloutKey, Path] = {}
    for unit in units:
        for index in unit.rollout_indices:
            record = read_record(unit.record_path(index))
            scores.append(score_rollout(record, cached_scene(unit.scene), protocol, policy=unit.name))
            if unit.config.videos:
                videos[scores[-1].key] = unit.video_path(index)
    maps = {unit.scene_id: cached_scene(unit.scene).road_map for unit in units}
    return EvaluationResult(protocol, tuple(scores), road_maps=maps, videos=videos)


def _policy_names(policies: Sequence[Path]) -> list[str]:
    """A name for each policy: that of its folder."""
    if not policies:
        raise InputError("no policies given; pass at least one checkpoint folder after --policies")
    names = [safe_name(folder.resolve().name) for folder in policies]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two policies are named {name!r}; rename one of the checkpoint folders")
    return names
