"""Training a policy on shards: everything is checked first, then the processes start."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from neural_sim.errors import InputError
from pipelines.training.config import TrainingConfig
from pipelines.training.engine import Processes
from pipelines.training.job import TrainingJob, check_job
from pipelines.training.launch import launch
from pipelines.training.state import check_resume
from pipelines.training.worker import run_worker


def train(
    policy_folder: Path,
    shards: Sequence[Path],
    out: Path,
    config: TrainingConfig,
    *,
    seed: int,
    device: str = "auto",
    resume: bool = True,
) -> Path:
    """Train the policy in `policy_folder` on `shards` with DeepSpeed and write the result to `out`.

    Run plainly, it starts the processes on this machine itself. Under `torchrun` or `deepspeed --hostfile` (RANK is in
    the environment) it is one of the processes.

    Args:
        policy_folder: checkpoint to start from.
        shards: folders of shards.
        out: checkpoint folder to write; it appears whole at the end, with `training.json` and the log.
        config: optimisation.
        seed: of the order of examples, of the noise in the loss, and of new adapters.
        device: "auto", "cpu" or "cuda".
        resume: continue from the resume states that a stopped run of the same job left beside `out`; otherwise
            delete them and whatever lies at `out`.

    Returns:
        `out`.

    Raises:
        InputError: anything wrong with policy, shards, configuration or `out`, a resume with another configuration,
            or a loss that is not finite.
        RuntimeError: a process died; running the same call again resumes.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    job = TrainingJob(policy_folder, tuple(shards), out, config, seed, device)
    is_worker = "RANK" in os.environ
    processes = Processes.from_environment()
    world_size = processes.world_size if is_worker else _num_processes(config, device)
    if processes.local_rank == 0:
        check_job(job, world_size)
    if not resume and processes.rank == 0:
        _forget(job)
    if resume:
        if _is_finished(job, world_size):
            return out
        check_resume(job.work, job.identity(world_size))
    if is_worker:
        run_worker(job)
    else:
        launch(job, world_size)
    return out


def _num_processes(config: TrainingConfig, device: str) -> int:
    return config.num_processes or (torch.cuda.device_count() if device == "cuda" else 1)


def _is_finished(job: TrainingJob, world_size: int) -> bool:
    """Whether `out` holds the result of this very job. Raises `InputError` when it holds anything else."""
    if not job.out.exists():
        return False
    record = job.out / "training.json"
    made_by = json.loads(record.read_text())["job"] if record.is_file() else None
    if made_by != job.identity(world_size):
        raise InputError(f"{job.out}: already exists and is not the result of this run; choose another --out")
    shutil.rmtree(job.work, ignore_errors=True)
    return True


def _forget(job: TrainingJob) -> None:
    for folder in (job.work, job.out):
        if folder.exists():
            shutil.rmtree(folder)
