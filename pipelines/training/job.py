"""What one training run is, and the checks made before any process starts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_sim.artifacts import write_json
from neural_sim.errors import InputError
from pipelines.config import CheckpointEvaluation, config_from_mapping, config_to_mapping
from pipelines.shards.index import common_image_shapes, read_index
from pipelines.shards.reader import check_shard
from pipelines.training.config import TrainingConfig
from pipelines.training.source import ExampleSource
from vla.checkpoint import policy_hash, read_policy_config
from vla.errors import PolicyError

_WITHOUT_EFFECT_ON_THE_RESULT = (
    "num_processes", "loader_workers", "loader_threads", "prefetch", "save_every", "keep", "log_every", "stall_s",
    "wandb_project",
)  # fmt: skip
_ONLY_ROUNDING = ("zero_stage", "offload", "gradient_checkpointing")


@dataclass(frozen=True)
class TrainingJob:
    """One training run.

    Attributes:
        policy: checkpoint folder to start from.
        shards: folders of shards.
        out: checkpoint folder to write.
        config: optimisation.
        seed: of the order of examples, of the noise in the loss, and of new weights.
        device: "cpu" or "cuda".
        evaluation: how checkpoints are evaluated on the way, which changes nothing of the result; None for not at all.
    """

    policy: Path
    shards: tuple[Path, ...]
    out: Path
    config: TrainingConfig
    seed: int
    device: str
    evaluation: CheckpointEvaluation | None = None

    @property
    def work(self) -> Path:
        """Folder beside `out` with resume states and logs until the run has finished."""
        return self.out.parent / f".{self.out.name}.training"

    @property
    def steps(self) -> Path:
        """Folder beside `out` with the checkpoints saved on the way, `step_NNNNNNNN`."""
        return self.out.with_name(f"{self.out.name}.steps")

    @property
    def report(self) -> Path:
        """Folder beside `out` with the report on its checkpoints."""
        return self.out.with_name(f"{self.out.name}.report")

    def identity(self) -> dict[str, Any]:
        """Everything that the result depends on, plain JSON values; two runs with the same may share a resume state."""
        return {
            "policy": policy_hash(self.policy),
            "shards": [read_index(folder).sha256 for folder in self.shards],
            "seed": self.seed,
            **result_settings(self.config),
        }

    def layout(self, world_size: int) -> dict[str, Any]:
        """How the work is spread, which changes the result by rounding only; plain JSON values."""
        return {"processes": world_size, **{name: getattr(self.config, name) for name in _ONLY_ROUNDING}}


def result_settings(config: TrainingConfig) -> dict[str, Any]:
    """The settings that the result depends on beyond rounding, plain JSON values."""
    without = (*_WITHOUT_EFFECT_ON_THE_RESULT, *_ONLY_ROUNDING)
    return {name: value for name, value in config_to_mapping(config).items() if name not in without}


def write_job(job: TrainingJob, path: Path) -> None:
    """Write a job for the worker processes, atomically."""
    write_json(path, config_to_mapping(job))


def read_job(path: Path) -> TrainingJob:
    """Read what `write_job` wrote."""
    return config_from_mapping(TrainingJob, json.loads(path.read_text()), str(path))


def check_job(job: TrainingJob, world_size: int) -> None:
    """Raise `InputError` for whatever would stop the run later.

    Checks the policy folder, every shard with its checksum, that the shards have the images that the policy reads, that
    there are at least as many examples as one step takes, and that the batch divides over `world_size` processes.
    """
    try:
        policy = read_policy_config(job.policy)
    except PolicyError as error:
        raise InputError(str(error)) from error
    job.config.accumulation(world_size)
    shapes = check_examples(job.shards, job.config.batch_size)
    if job.config.source_weights and len(job.config.source_weights) != len(job.shards):
        raise InputError(
            f"training source_weights: found {len(job.config.source_weights)} for {len(job.shards)} folders of shards; "
            "give one for each, in the order of --shards"
        )
    make_source(job)
    wanted = {name: [policy.num_frames, policy.image_height_px, policy.image_width_px] for name in policy.cameras}
    if shapes != wanted:
        raise InputError(
            f"{job.policy} reads images {wanted} ([frames, height, width] by camera), but the shards hold {shapes}; "
            "write shards for this policy, or train one for these"
        )


def make_source(job: TrainingJob) -> ExampleSource:
    """The examples of the job with their weights. Raises `InputError` when the weighting leaves too few."""
    weighting = job.config.weighting
    source = ExampleSource(job.shards, None if weighting.is_off else weighting)
    if source.num_kept < job.config.batch_size:
        raise InputError(
            f"the weighting keeps {source.num_kept} of {len(source)} examples, fewer than batch_size "
            f"{job.config.batch_size}; loosen training.weighting or lower batch_size"
        )
    for folder, kept in zip(job.shards, source.kept, strict=True):
        if job.config.source_weights and not len(kept):
            raise InputError(f"{folder}: has a share in source_weights but the weighting keeps none of its examples")
    return source


def check_examples(folders: Sequence[Path], batch_size: int) -> dict[str, list[int]]:
    """The [F, H, W] by camera of all examples.

    Raises `InputError` unless the shards are whole, alike, and hold at least `batch_size` examples.
    """
    if not folders:
        raise InputError("training needs at least one folder of shards, found none; pass --shards")
    indices = [read_index(folder) for folder in folders]
    shapes = common_image_shapes((str(index.folder), index.image_shapes) for index in indices)
    total = sum(index.examples for index in indices)
    if total < batch_size:
        counts = ", ".join(f"{index.folder}: {index.examples}" for index in indices)
        raise InputError(
            f"{total} examples ({counts}) are fewer than batch_size {batch_size}; write more windows "
            "(a smaller stride, more rollouts) or lower batch_size"
        )
    for index in indices:
        for shard in index.shards:
            check_shard(index.folder, shard, checksum=True)
    return shapes
