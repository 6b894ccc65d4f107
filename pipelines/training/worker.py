"""One training process: `python -m pipelines.training.worker JOB.json`, started by `torchrun` or `deepspeed`."""

import contextlib
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from neural_sim.artifacts import write_json
from neural_sim.errors import InputError
from neural_sim.progress import Progress
from pipelines.processes import die_with_parent, exclusive
from pipelines.training.data import ExampleSource, Loader, MicroBatch, generator_seed
from pipelines.training.engine import Processes, TrainingEngine, start_distributed
from pipelines.training.export import export
from pipelines.training.job import TrainingJob, read_job
from pipelines.training.log import TrainingLog, mean_of
from pipelines.training.state import check_resume, drop_unfinished_states, load_state, save_state
from vla.checkpoint import from_pretrained
from vla.errors import PolicyError
from vla.model import DrivingPolicy
from vla.training_modes import ParameterTable, TrainingModeConfig, apply_training_mode

logger = logging.getLogger("roadloop")

LINE_PREFIX = "roadloop| "
USER_ERROR_EXIT_CODE = 2


def run_worker(job: TrainingJob) -> None:
    """Train as one of the processes that the environment names; rank 0 writes the checkpoint.

    Raises `InputError` on a loss that is not finite (naming the examples), on broken examples, and when another
    running job trains into the same folder.
    """
    processes = Processes.from_environment()
    lock = exclusive(job.work / "run") if processes.rank == 0 else contextlib.nullcontext()
    with lock:
        deepspeed = start_distributed(job.device, processes)
        try:
            _train(job, deepspeed, processes)
        finally:
            torch.distributed.destroy_process_group()


def _train(job: TrainingJob, deepspeed: Any, processes: Processes) -> None:
    started_s = time.monotonic()
    identity = job.identity(processes.world_size)
    first_step = check_resume(job.work, identity)
    torch.distributed.barrier()
    if processes.rank == 0:
        drop_unfinished_states(job.work, first_step)
    torch.distributed.barrier()
    source = ExampleSource(job.shards)
    policy, table = _load_policy(job, source)
    engine = TrainingEngine(deepspeed, policy, job.config, processes)
    if first_step:
        load_state(engine.deepspeed, job.work, first_step)
    if processes.rank == 0:
        _announce(job, table, len(source), first_step, processes)
    _run_steps(job, engine, source, processes, first_step, identity)
    export(job, engine, table, processes, identity, time.monotonic() - started_s)


def _load_policy(job: TrainingJob, source: ExampleSource) -> tuple[DrivingPolicy, ParameterTable]:
    """The policy to train, with adapters and frozen parts, and the table of its parameters."""
    policy = from_pretrained(job.policy)
    if job.config.fit_action_statistics:
        targets, speeds_mps = source.targets_and_speeds()
        policy.fit_action_statistics(torch.from_numpy(targets), torch.from_numpy(speeds_mps))
    config = job.config
    # New adapters draw from the global generator inside peft.
    torch.manual_seed(job.seed)
    mode = TrainingModeConfig(config.mode, config.lora_rank, config.lora_alpha, lora_targets=config.lora_targets)
    table = apply_training_mode(policy, mode)
    if not table.total.trained:
        raise InputError(f"{job.policy}: mode {config.mode!r} trains no weights of this policy; choose another mode")
    return policy, table


def _announce(job: TrainingJob, table: ParameterTable, examples: int, first_step: int, processes: Processes) -> None:
    config = job.config
    for line in str(table).splitlines():
        logger.info("%s", line)
    logger.info(
        "training on %d examples, %d steps of %d (%.2f epochs), %d process(es) on %s, ZeRO %d%s",
        examples, config.steps, config.batch_size, config.steps * config.batch_size / examples,
        processes.world_size, job.device, config.zero_stage,
        f", resumed after step {first_step}" if first_step else "",
    )  # fmt: skip


def _run_steps(
    job: TrainingJob,
    engine: TrainingEngine,
    source: ExampleSource,
    processes: Processes,
    first_step: int,
    identity: dict[str, Any],
) -> None:
    config = job.config
    loader = Loader(source, config, job.seed, processes.rank, processes.world_size, first_step)
    accumulation = config.accumulation(processes.world_size)
    is_first = processes.rank == 0
    log = TrainingLog(job.work, first_step, config.log_every, config.batch_size) if is_first else None
    with loader, log or contextlib.nullcontext(), Progress("train", config.steps, "step") as progress:
        progress.done = first_step
        batches = iter(loader)
        for step in range(first_step, config.steps):
            figures, waited_s = _run_step(job, engine, [next(batches) for _ in range(accumulation)], step)
            if log is not None:
                log.add(step + 1, figures, waited_s, engine.learning_rates(step))
                progress.advance(loss=figures["loss"])
            if (step + 1) % config.save_every == 0 and step + 1 < config.steps:
                save_state(engine.deepspeed, job.work, step + 1, identity, config.keep, processes.rank)


def _run_step(
    job: TrainingJob, engine: TrainingEngine, batches: list[MicroBatch], step: int
) -> tuple[dict[str, float], float]:
    """One optimiser step. Returns its figures, averaged over all processes, and the time spent waiting for data, s."""
    parts = []
    for micro in batches:
        seed = generator_seed(job.seed, step, micro.index)
        torch.manual_seed(seed)
        losses = engine.accumulate(micro.batch, torch.Generator().manual_seed(seed), micro is batches[-1])
        _require_finite(float(losses["loss"]), "loss", job, step, micro.keys)
        parts.append(losses)
    norm = engine.step(step)
    _require_finite(norm, "gradient norm", job, step, tuple(key for micro in batches for key in micro.keys))
    figures = _average(mean_of(parts), job.device)
    return {**figures, "gradient_norm": norm}, sum(micro.waited_s for micro in batches)


def _average(figures: dict[str, float], device: str) -> dict[str, float]:
    """Mean of each figure over the processes."""
    values = torch.tensor([figures[name] for name in sorted(figures)], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values)
    means = (values / torch.distributed.get_world_size()).tolist()
    return dict(zip(sorted(figures), means, strict=True))


def _require_finite(value: float, what: str, job: TrainingJob, step: int, keys: tuple[str, ...]) -> None:
    if not math.isfinite(value):
        raise InputError(
            f"{what} is {value} at step {step + 1} on examples {', '.join(keys)}; the last resume state is untouched: "
            f"inspect these examples, lower learning_rate (now {job.config.learning_rate:g}) or raise warmup_steps"
        )


def main() -> None:
    """Run the job in the file named on the command line; a user's mistake goes to `errors/` beside it."""
    die_with_parent()
    path = Path(sys.argv[1])
    rank = Processes.from_environment().rank
    logging.basicConfig(format=LINE_PREFIX + "%(message)s", level=logging.INFO if rank == 0 else logging.WARNING)
    logging.getLogger().setLevel(logging.WARNING)
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    try:
        run_worker(read_job(path))
    except (InputError, PolicyError) as error:
        write_json(path.parent / "errors" / f"rank_{rank:05d}.json", {"message": str(error)})
        sys.exit(USER_ERROR_EXIT_CODE)


if __name__ == "__main__":
    main()
