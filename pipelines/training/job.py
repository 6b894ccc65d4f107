"""What one training run is, and the checks made before any process starts."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from neural_sim.artifacts import write_json
from neural_sim.errors import InputError
from pipelines.shards.index import common_image_shapes, read_index
from pipelines.shards.reader import check_shard
from pipelines.training.config import TrainingConfig
from vla.checkpoint import policy_hash, read_policy_config
from vla.errors import PolicyError

_WITHOUT_EFFECT_ON_THE_RESULT = ("num_processes", "loader_threads", "prefetch", "save_every", "keep", "log_every")


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
    """

    policy: Path
    shards: tuple[Path, ...]
    out: Path
    config: TrainingConfig
    seed: int
    device: str

    @property
    def work(self) -> Path:
        """Folder beside `out` with resume states and logs until the run has finished."""
        return self.out.parent / f".{self.out.name}.training"

    def identity(self, world_size: int) -> dict[str, Any]:
        """Everything that the result depends on, plain JSON values; two runs with the same may share a resume state."""
        config = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self.config).items()
            if key not in _WITHOUT_EFFECT_ON_THE_RESULT
        }
        return {
            "policy": policy_hash(self.policy),
            "shards": [read_index(folder).sha256 for folder in self.shards],
            "seed": self.seed,
            "processes": world_size,
            **config,
        }


def write_job(job: TrainingJob, path: Path) -> None:
    """Write a job for the worker processes, atomically."""
    value = asdict(job)
    value["shards"] = [str(folder) for folder in job.shards]
    write_json(path, {key: str(item) if isinstance(item, Path) else item for key, item in value.items()})


def read_job(path: Path) -> TrainingJob:
    """Read what `write_job` wrote."""
    value = json.loads(path.read_text())
    config = TrainingConfig(**{item.name: value["config"][item.name] for item in fields(TrainingConfig)})
    return TrainingJob(
        policy=Path(value["policy"]),
        shards=tuple(Path(folder) for folder in value["shards"]),
        out=Path(value["out"]),
        config=config,
        seed=value["seed"],
        device=value["device"],
    )


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
    wanted = {name: [policy.num_frames, policy.image_height_px, policy.image_width_px] for name in policy.cameras}
    if shapes != wanted:
        raise InputError(
            f"{job.policy} reads images {wanted} ([frames, height, width] by camera), but the shards hold {shapes}; "
            "write shards for this policy, or train one for these"
        )


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
