"""Training a policy on shards: everything is checked first, then the processes start."""

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from neural_sim.errors import InputError
from pipelines.config import CheckpointEvaluation
from pipelines.device import resolve_device
from pipelines.training.config import TrainingConfig
from pipelines.training.evaluation import check_evaluation, evaluate_result
from pipelines.training.job import TrainingJob, check_job
from pipelines.training.launch import launch
from pipelines.training.preflight import check_machines
from pipelines.training.ranks import Ranks
from pipelines.training.state import check_resume
from pipelines.training.worker import PREFLIGHT, run_worker

logger = logging.getLogger("roadloop")


def train(
    policy_folder: Path,
    shards: Sequence[Path],
    out: Path,
    config: TrainingConfig,
    *,
    seed: int,
    device: str = "auto",
    resume: bool = True,
    evaluation: CheckpointEvaluation | None = None,
) -> Path:
    """Train the policy in `policy_folder` on `shards` with DeepSpeed and write the result to `out`.

    Run plainly, it starts the processes on this machine itself. Under `torchrun` or `deepspeed --hostfile` (RANK is in
    the environment) it is one of the processes.

    Args:
        policy_folder: checkpoint to start from.
        shards: folders of shards.
        out: checkpoint folder to write; it appears whole at the end, with `training.json` and the log. Checkpoints on
            the way lie in `OUT.steps/`.
        config: optimisation.
        seed: of the order of examples, of the noise in the loss, and of new adapters.
        device: "auto", "cpu" or "cuda".
        resume: continue from the resume states that a stopped run of the same job left beside `out`; otherwise
            delete them and whatever lies at `out`.
        evaluation: evaluate checkpoints on the way, in one report at `OUT.report/`; None for not at all.

    Returns:
        `out`.

    Raises:
        InputError: anything wrong with policy, shards, configuration or `out`, a resume with another configuration,
            or a loss that is not finite.
        RuntimeError: a process died; running the same call again resumes.
    """
    job = replace(_job(policy_folder, shards, out, config, seed, device), evaluation=evaluation)
    ranks = Ranks.from_environment()
    world_size = ranks.world_size if ranks.is_launched else _num_processes(config, job.device)
    quiet_followers(ranks)
    # Each machine reads its own copy of the shards, or its own mount.
    ranks.together("check", lambda: check_job(job, world_size) if ranks.local_rank == 0 else None)
    ranks.first("check evaluation", lambda: check_evaluation(job))
    if not ranks.first("plan", lambda: _is_done(job, world_size, resume)):
        run_worker(job, ranks) if ranks.is_launched else launch(job, world_size, job.work)
    if ranks.is_first:
        evaluate_result(job)
    return out


def preflight(
    policy_folder: Path, shards: Sequence[Path], out: Path, config: TrainingConfig, *, seed: int, device: str = "auto"
) -> None:
    """Check machines, processes and inputs as `train` would use them, and train nothing.

    Raises `InputError` naming the hosts where something is wrong.
    """
    job = _job(policy_folder, shards, out, config, seed, device)
    ranks = Ranks.from_environment()
    quiet_followers(ranks)
    if ranks.is_launched:
        check_machines(job, ranks)
        return
    with tempfile.TemporaryDirectory(prefix="roadloop-preflight-") as folder:
        launch(job, _num_processes(config, job.device), Path(folder), PREFLIGHT)


def quiet_followers(ranks: Ranks) -> None:
    """Let only the first process speak, apart from warnings."""
    if not ranks.is_first:
        logger.setLevel(logging.WARNING)


def _job(
    policy_folder: Path, shards: Sequence[Path], out: Path, config: TrainingConfig, seed: int, device: str
) -> TrainingJob:
    return TrainingJob(policy_folder, tuple(shards), out, config, seed, resolve_device(device))


def _num_processes(config: TrainingConfig, device: str) -> int:
    return config.num_processes or (torch.cuda.device_count() if device == "cuda" else 1)


def _is_done(job: TrainingJob, world_size: int, resume: bool) -> bool:
    """Whether `out` holds the result of this very job; without `resume` everything is deleted first.

    Raises `InputError` when it holds anything else, or the work folder a run of another job.
    """
    if not resume:
        _forget(job)
    if not job.out.exists():
        job.out.parent.mkdir(parents=True, exist_ok=True)
        check_resume(job.work, job.identity(), job.layout(world_size))
        return False
    record = job.out / "training.json"
    made_by = json.loads(record.read_text())["job"] if record.is_file() else None
    if made_by != job.identity():
        raise InputError(f"{job.out}: already exists and is not the result of this run; choose another --out")
    shutil.rmtree(job.work, ignore_errors=True)
    return True


def _forget(job: TrainingJob) -> None:
    for folder in (job.work, job.steps, job.report, job.out):
        if folder.exists():
            shutil.rmtree(folder)
