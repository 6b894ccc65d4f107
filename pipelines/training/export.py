"""The end of a run: one process writes the whole policy as a Hugging Face folder."""

import contextlib
import shutil
from dataclasses import asdict
from typing import Any

import torch

from neural_sim.artifacts import atomic_folder, write_json
from pipelines.training.engine import Processes, TrainingEngine
from pipelines.training.job import TrainingJob
from pipelines.training.log import LOG_NAME, TENSORBOARD_NAME, loss_summary, read_log
from vla.checkpoint import save_pretrained
from vla.training_modes import ParameterTable, merge_lora

TRAINING_FORMAT_VERSION = 1


def export(
    job: TrainingJob,
    engine: TrainingEngine,
    table: ParameterTable,
    processes: Processes,
    identity: dict[str, Any],
    wall_s: float,
) -> None:
    """Gather the weights from all processes and write `job.out` from rank 0, then remove the work folder.

    The folder appears whole: weights, `training.json` and the log. Every process holds the whole policy for a moment.
    """
    exact = engine.exact_weights()
    with engine.gathered_weights():
        if processes.rank == 0:
            _restore(engine, exact)
            if job.config.merge_lora:
                merge_lora(engine.policy)
            _write(job, engine, _training_record(job, table, identity, wall_s))
    torch.distributed.barrier()
    if processes.rank == 0:
        shutil.rmtree(job.work, ignore_errors=True)


def _restore(engine: TrainingEngine, exact: dict[str, torch.Tensor]) -> None:
    """Give every weight its number format from before training; `exact` ones are copied."""
    for name, weight in engine.policy.named_parameters():
        weight.data = exact.get(name, weight.data).to(engine.dtypes[name])


def _write(job: TrainingJob, engine: TrainingEngine, record: dict[str, Any]) -> None:
    with atomic_folder(job.out) as partial:
        save_pretrained(engine.policy.eval(), partial)
        write_json(partial / "training.json", record)
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(job.work / LOG_NAME, partial / LOG_NAME)
        if (job.work / TENSORBOARD_NAME).is_dir():
            shutil.copytree(job.work / TENSORBOARD_NAME, partial / TENSORBOARD_NAME)


def _training_record(
    job: TrainingJob, table: ParameterTable, identity: dict[str, Any], wall_s: float
) -> dict[str, Any]:
    return {
        "format_version": TRAINING_FORMAT_VERSION,
        "job": identity,
        "policy": str(job.policy),
        "shards": [str(folder) for folder in job.shards],
        "config": asdict(job.config),
        "device": job.device,
        "parameters": table.to_json(),
        "loss": loss_summary(read_log(job.work / LOG_NAME)),
        "wall_s_of_last_start": wall_s,
    }
