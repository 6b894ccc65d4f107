"""One training process: `python -m pipelines.training.worker JOB.json [preflight]`, started by `torchrun`."""

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
from pipelines.training.checkpoints import require_disk, training_mode
from pipelines.training.data import Loader, MicroBatch, generator_seed
from pipelines.training.engine import TrainingEngine, start_distributed
from pipelines.training.evaluation import evaluate_saved, is_due
from pipelines.training.export import export, save
from pipelines.training.figures import peak_memory_gb
from pipelines.training.heartbeat import Heartbeat
from pipelines.training.job import TrainingJob, make_source, read_job
from pipelines.training.log import TrainingLog, mean_of
from pipelines.training.preflight import check_machines
from pipelines.training.ranks import Ranks
from pipelines.training.source import ExampleSource
from pipelines.training.state import check_resume, drop_leftovers, load_optimizer, load_weights
from vla.checkpoint import from_pretrained
from vla.driving_policy import DrivingPolicy
from vla.errors import PolicyError
from vla.training_modes import ParameterTable, apply_training_mode

logger = logging.getLogger("roadloop")

LINE_PREFIX = "roadloop| "
USER_ERROR_EXIT_CODE = 2
PREFLIGHT = "preflight"


def run_worker(job: TrainingJob, ranks: Ranks) -> None:
    """Train as one of the processes; the first one writes the checkpoint.

    Raises `InputError` on a loss that is not finite (naming the examples), on broken examples, on a full disk, and when
    another running job trains into the same folder.
    """
    with contextlib.ExitStack() as stack:
        first_step = ranks.first("resume", lambda: _begin(job, ranks, stack))
        deepspeed = start_distributed(job.device, ranks)
        try:
            with Heartbeat(ranks, job.config.stall_s) as heartbeat:
                _train(job, deepspeed, ranks, first_step, heartbeat)
        finally:
            deepspeed.comm.destroy_process_group()


def _begin(job: TrainingJob, ranks: Ranks, stack: contextlib.ExitStack) -> int:
    """Lock the run and find the step to start from."""
    stack.enter_context(exclusive(job.work / "run"))
    drop_leftovers(job.work)
    return check_resume(job.work, job.identity(), job.layout(ranks.world_size))


def _train(job: TrainingJob, deepspeed: Any, ranks: Ranks, first_step: int, heartbeat: Heartbeat) -> None:
    started_s = time.monotonic()
    source = make_source(job)
    policy, table = _load_policy(job, source)
    ranks.first("disk", lambda: require_disk(job, table.total.trained))
    exact = load_weights(policy, job.work, first_step, ranks.is_first, job.device) if first_step else {}
    engine = TrainingEngine(deepspeed, policy, job.config, ranks)
    if first_step:
        load_optimizer(engine, exact, job.work, first_step, ranks.is_first, job.device)
    if ranks.is_first:
        _announce(job, table, source.num_kept, first_step, ranks)
    # A run killed during an evaluation finishes it first; one that is in the report costs nothing.
    _evaluate(job, ranks, first_step, heartbeat)
    _run_steps(job, engine, source, ranks, first_step, heartbeat)
    heartbeat.enter(job.config.steps, "export")
    export(job, engine, table, ranks, time.monotonic() - started_s)


def _load_policy(job: TrainingJob, source: ExampleSource) -> tuple[DrivingPolicy, ParameterTable]:
    """The policy to train, with adapters and frozen parts, and the table of its parameters."""
    policy = from_pretrained(job.policy)
    if job.config.fit_action_statistics:
        targets, speeds_mps = source.targets_and_speeds()
        policy.fit_action_statistics(torch.from_numpy(targets), torch.from_numpy(speeds_mps))
    table = apply_training_mode(policy, training_mode(job), job.seed)
    if not table.total.trained:
        raise InputError(f"{job.policy}: mode {job.config.mode!r} trains no weights of this policy; choose another")
    return policy, table


def _announce(job: TrainingJob, table: ParameterTable, examples: int, first_step: int, ranks: Ranks) -> None:
    config = job.config
    for line in str(table).splitlines():
        logger.info("%s", line)
    logger.info(
        "training on %d examples, %d steps of %d (%.2f epochs), %d process(es) on %s, ZeRO %d%s",
        examples, config.steps, config.batch_size, config.steps * config.batch_size / examples,
        ranks.world_size, job.device, config.zero_stage,
        f", resumed after step {first_step}" if first_step else "",
    )  # fmt: skip


def _run_steps(
    job: TrainingJob, engine: TrainingEngine, source: ExampleSource, ranks: Ranks, first_step: int, heartbeat: Heartbeat
) -> None:
    config = job.config
    loader = Loader(source, config, job.seed, ranks.rank, ranks.world_size, first_step)
    accumulation = config.accumulation(ranks.world_size)
    tokens = engine.policy.tokens_per_example
    log = TrainingLog(job, first_step, tokens) if ranks.is_first else None
    losses: list[float] = []
    with loader, log or contextlib.nullcontext(), Progress("train", config.steps, "step") as progress:
        progress.done = first_step
        batches = iter(loader)
        for step in range(first_step, config.steps):
            heartbeat.enter(step + 1, "data")
            figures, waited_s = _run_step(job, engine, [next(batches) for _ in range(accumulation)], step, heartbeat)
            losses.append(figures["loss"])
            if log is not None:
                log.add(step + 1, figures, waited_s, engine.learning_rates(step))
                progress.advance(loss=figures["loss"])
            if (step + 1) % config.save_every == 0 and step + 1 < config.steps:
                heartbeat.enter(step + 1, "save")
                save(job, engine, ranks, step + 1, sum(losses) / len(losses))
                losses.clear()
                _evaluate(job, ranks, step + 1, heartbeat)


def _evaluate(job: TrainingJob, ranks: Ranks, step: int, heartbeat: Heartbeat) -> None:
    """Let the first process evaluate the checkpoint after `step` steps if it is due; the others wait without limit."""
    if is_due(job, step):
        heartbeat.enter(step, "evaluate")
        ranks.first(f"evaluate {step}", lambda: evaluate_saved(job, step))


def _run_step(
    job: TrainingJob, engine: TrainingEngine, batches: list[MicroBatch], step: int, heartbeat: Heartbeat
) -> tuple[dict[str, float], float]:
    """One optimiser step. Returns its figures, averaged over all processes, and the time spent waiting for data, s."""
    parts = []
    heartbeat.enter(step + 1, "forward and backward")
    for micro in batches:
        seed = generator_seed(job.seed, step, micro.index)
        torch.manual_seed(seed)
        losses = engine.accumulate(micro.batch, torch.Generator().manual_seed(seed), micro is batches[-1])
        _require_finite(float(losses["loss"]), "loss", job, step, micro.keys)
        parts.append(losses)
    heartbeat.enter(step + 1, "optimiser step")
    norm = engine.step(step)
    _require_finite(norm, "gradient norm", job, step, tuple(key for micro in batches for key in micro.keys))
    heartbeat.enter(step + 1, "average")
    figures = _average(mean_of(parts), job.device)
    memory = {"peak_memory_gb": peak_memory_gb(job.device)}
    return {**figures, "gradient_norm": norm, **memory}, sum(micro.waited_s for micro in batches)


def _average(figures: dict[str, float], device: str) -> dict[str, float]:
    """Mean of each figure over the processes."""
    values = torch.tensor([figures[name] for name in sorted(figures)], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values)
    means = (values / torch.distributed.get_world_size()).tolist()
    return dict(zip(sorted(figures), means, strict=True))


def _require_finite(value: float, what: str, job: TrainingJob, step: int, keys: tuple[str, ...]) -> None:
    if not math.isfinite(value):
        raise InputError(
            f"{what} is {value} at step {step + 1} on examples {', '.join(keys)}; the last checkpoint is untouched: "
            f"inspect these examples, lower learning_rate (now {job.config.learning_rate:g}) or raise warmup_steps"
        )


def main() -> None:
    """Run the job in the file named on the command line; a user's mistake goes to `errors/` beside it."""
    die_with_parent()
    path, task = Path(sys.argv[1]), sys.argv[2:]
    ranks = Ranks.from_environment()
    logging.basicConfig(format=LINE_PREFIX + "%(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO if ranks.is_first else logging.WARNING)
    try:
        job = read_job(path)
        check_machines(job, ranks) if task == [PREFLIGHT] else run_worker(job, ranks)
    except (InputError, PolicyError) as error:
        write_json(path.parent / "errors" / f"rank_{ranks.rank:05d}.json", {"message": str(error)})
        sys.exit(USER_ERROR_EXIT_CODE)


if __name__ == "__main__":
    main()
