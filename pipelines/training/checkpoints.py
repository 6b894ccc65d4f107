"""Checkpoints of a run in progress: policy folders anyone can evaluate, the newest and the best of them."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from neural_sim.artifacts import remove_partials, write_json
from neural_sim.errors import InputError
from pipelines.training.job import TrainingJob
from vla.action_space import ActionStatistics
from vla.checkpoint import from_pretrained, save_pretrained
from vla.training_modes import TrainingModeConfig, apply_training_mode, merge_lora

BEST_NAME = "best.json"
BEST_FORMAT_VERSION = 1
LOSS = "loss"
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class BestCheckpoint:
    """The best of the checkpoints so far: `step`, and the value of the metric `by` that says so."""

    step: int
    by: str
    value: float


def step_name(step: int) -> str:
    """Folder name of what belongs to `step` finished steps."""
    return f"step_{step:08d}"


def training_mode(job: TrainingJob) -> TrainingModeConfig:
    """What of the policy the job trains."""
    config = job.config
    return TrainingModeConfig(config.mode, config.lora_rank, config.lora_alpha, lora_targets=config.lora_targets)


def write_policy(job: TrainingJob, trained: dict[str, Tensor], statistics: ActionStatistics, folder: Path) -> None:
    """Write the policy that `job` started from with the weights `trained` (by name) in place of its own.

    Everything else keeps its exact value and number format. The folder appears whole.
    """
    policy = from_pretrained(job.policy)
    apply_training_mode(policy, training_mode(job), job.seed)
    policy.statistics = statistics
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if name in trained:
                weight.copy_(trained[name])
    if job.config.merge_lora:
        merge_lora(policy)
    save_pretrained(policy, folder)


def read_best(steps: Path) -> BestCheckpoint | None:
    """The best checkpoint of a folder of checkpoints; None without one."""
    path = steps / BEST_NAME
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        return BestCheckpoint(int(record["step"]), str(record["by"]), float(record["value"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the record of a best checkpoint ({error}); delete it") from error


def mark_best(steps: Path, best: BestCheckpoint) -> None:
    """Record the best checkpoint, which is then kept; an evaluation may overrule the training loss."""
    write_json(
        steps / BEST_NAME,
        {"format_version": BEST_FORMAT_VERSION, "step": best.step, "by": best.by, "value": best.value},
    )


def mark_best_by_loss(steps: Path, step: int, loss: float) -> None:
    """Record `step` as the best if its training loss is the least, unless the best was chosen by another metric."""
    best = read_best(steps)
    if best is None or (best.by == LOSS and (loss < best.value or best.step == step)):
        mark_best(steps, BestCheckpoint(step, LOSS, loss))


def prune(steps: Path, states: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and their states, and the best checkpoint."""
    remove_partials(steps)
    best = read_best(steps)
    kept = {step_name(best.step)} if best else set()
    for path in sorted(steps.glob("step_*"))[:-keep]:
        if path.name not in kept:
            shutil.rmtree(path)
    for path in sorted(states.glob("step_*"))[:-keep]:
        shutil.rmtree(path)


def require_disk(job: TrainingJob, trained: int) -> None:
    """Raise `InputError` unless the disk holds the checkpoints of the run: policy, exact weights and moments."""
    policy_bytes = sum(path.stat().st_size for path in job.policy.rglob("*") if path.is_file())
    # The newest K, the best, one being written, and the result.
    need = (job.config.keep + 3) * policy_bytes + (job.config.keep + 1) * 12 * trained
    free = shutil.disk_usage(job.out.parent).free
    if free < need:
        raise InputError(
            f"{job.out.parent}: {free / 1e9:.2f} GB free, but {job.config.keep} checkpoints, the best and the result "
            f"need {need / 1e9:.2f} GB; free some, lower keep, or choose another --out"
        )


@contextmanager
def disk_may_fill(job: TrainingJob, step: int) -> Iterator[None]:
    """Turn a full disk inside the block into an `InputError` that says what is safe."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) not in _FULL_DISK and "No space left" not in str(error):
            raise
        raise InputError(
            f"{job.out.parent}: the disk is full while writing step {step}; the checkpoint before is untouched: free "
            "some space and run the same command again to resume from it"
        ) from error
