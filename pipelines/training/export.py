"""Saving: checkpoints on the way and the result, each a whole Hugging Face folder written by one process."""

import contextlib
import shutil
from typing import Any

import torch
from torch import Tensor

from neural_sim.artifacts import atomic_folder, write_json
from pipelines.config import config_to_mapping
from pipelines.provenance import source_commit
from pipelines.training.checkpoints import disk_may_fill, mark_best_by_loss, prune, step_name, write_policy
from pipelines.training.engine import TrainingEngine
from pipelines.training.job import TrainingJob
from pipelines.training.log import LOG_NAME, TENSORBOARD_NAME, loss_summary, read_log
from pipelines.training.ranks import Ranks
from pipelines.training.state import save_state, state_folder
from vla.training_modes import ParameterTable

TRAINING_FORMAT_VERSION = 2


def save(job: TrainingJob, engine: TrainingEngine, ranks: Ranks, step: int, loss: float) -> None:
    """Save the policy and the resume state after `step` steps; all processes take part.

    `loss`: mean training loss since the checkpoint before, which marks the best. Raises `InputError` on a full disk,
    with the checkpoint before untouched.
    """
    weights = engine.whole_tensors(None, keep=ranks.is_first)
    with disk_may_fill(job, step):
        if ranks.is_first:
            write_policy(job, weights, engine.policy.statistics, job.steps / step_name(step))
            mark_best_by_loss(job.steps, step, loss)
        layout = job.layout(ranks.world_size)
        save_state(engine, weights, job.work, step, job.identity(), layout, ranks.is_first)
        if ranks.is_first:
            prune(job.steps, state_folder(job.work), job.config.keep)
    torch.distributed.barrier()


def export(job: TrainingJob, engine: TrainingEngine, table: ParameterTable, ranks: Ranks, wall_s: float) -> None:
    """Write `job.out` from the first process, then remove the work folder; all processes take part.

    The folder appears whole: weights, `training.json` and the log. The first process holds the policy once more.
    """
    weights = engine.whole_tensors(None, keep=ranks.is_first)
    if ranks.is_first:
        with disk_may_fill(job, job.config.steps):
            _write(job, engine, weights, _training_record(job, table, ranks, wall_s))
    torch.distributed.barrier()
    if ranks.is_first:
        shutil.rmtree(job.work, ignore_errors=True)


def _write(job: TrainingJob, engine: TrainingEngine, weights: dict[str, Tensor], record: dict[str, Any]) -> None:
    with atomic_folder(job.out) as partial:
        write_policy(job, weights, engine.policy.statistics, partial)
        write_json(partial / "training.json", record)
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(job.work / LOG_NAME, partial / LOG_NAME)
        if (job.work / TENSORBOARD_NAME).is_dir():
            shutil.copytree(job.work / TENSORBOARD_NAME, partial / TENSORBOARD_NAME)


def _training_record(job: TrainingJob, table: ParameterTable, ranks: Ranks, wall_s: float) -> dict[str, Any]:
    return {
        "format_version": TRAINING_FORMAT_VERSION,
        "job": job.identity(),
        "layout": job.layout(ranks.world_size),
        "policy": str(job.policy),
        "shards": [str(folder) for folder in job.shards],
        "config": config_to_mapping(job.config),
        "device": job.device,
        "commit": source_commit(),
        "parameters": table.to_json(),
        "loss": loss_summary(read_log(job.work / LOG_NAME)),
        "wall_s_of_last_start": wall_s,
    }
