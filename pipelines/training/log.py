"""The log of a training run: JSON lines, TensorBoard, Weights & Biases, and a summary of the loss curve."""

import json
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from pipelines.config import config_to_mapping
from pipelines.training.job import TrainingJob

LOG_NAME = "log.jsonl"
TENSORBOARD_NAME = "tensorboard"


class TrainingLog:
    """Collects the figures of steps and writes their mean every `log_every` steps, on one process.

    A resumed run continues the file after its state; entries of steps that are done again are dropped.
    """

    def __init__(self, job: TrainingJob, first_step: int, tokens_per_example: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path, self._log_every = job.work / LOG_NAME, job.config.log_every
        self._batch_size, self._tokens = job.config.batch_size, tokens_per_example
        _cut_log(self._path, first_step)
        self._board = SummaryWriter(str(job.work / TENSORBOARD_NAME), purge_step=first_step)
        self._wandb = _start_wandb(job)
        self._sums: dict[str, float] = defaultdict(float)
        self._steps = 0
        self._waited_s, self._started_s = 0.0, time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)

    def add(self, step: int, figures: Mapping[str, float], waited_s: float, rates: Mapping[str, float]) -> None:
        """Count one finished step (from 1): losses and gradient norm, time spent waiting for data, learning rates."""
        for name, value in figures.items():
            self._sums[name] += value
        self._steps += 1
        self._waited_s += waited_s
        if step % self._log_every == 0:
            self._write(step, rates)

    def _write(self, step: int, rates: Mapping[str, float]) -> None:
        elapsed_s = time.perf_counter() - self._started_s
        samples_per_s = self._steps * self._batch_size / elapsed_s
        entry = {
            "step": step,
            **{name: value / self._steps for name, value in self._sums.items()},
            **{f"lr_{name}": rate for name, rate in rates.items()},
            "samples_per_s": samples_per_s,
            "tokens_per_s": samples_per_s * self._tokens,
            "data_wait_share": self._waited_s / elapsed_s,
        }
        with self._path.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        figures = {name: value for name, value in entry.items() if name != "step"}
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(figures, step=step)
        self._sums.clear()
        self._steps, self._waited_s, self._started_s = 0, 0.0, time.perf_counter()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Entries of a `log.jsonl`; a last line that a kill cut is dropped."""
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def loss_summary(entries: list[dict[str, Any]]) -> dict[str, float]:
    """First, last and least logged loss, and the means over the first and the last tenth of the entries."""
    losses = [entry["loss"] for entry in entries]
    if not losses:
        return {}
    tenth = max(len(losses) // 10, 1)
    return {
        "first": losses[0],
        "last": losses[-1],
        "least": min(losses),
        "mean_of_first_tenth": sum(losses[:tenth]) / tenth,
        "mean_of_last_tenth": sum(losses[-tenth:]) / tenth,
    }


def mean_of(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of each figure over micro-batches."""
    return {name: sum(float(part[name]) for part in parts) / len(parts) for name in parts[0]}


def _start_wandb(job: TrainingJob) -> Any:
    """A Weights & Biases run where wandb is installed and a project is set, else None; offline without a key."""
    if not job.config.wandb_project or find_spec("wandb") is None:
        return None
    wandb: Any = import_module("wandb")
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    return wandb.init(
        project=job.config.wandb_project,
        name=job.out.name,
        id=f"{job.out.name}-{zlib.crc32(str(job.out.resolve()).encode()):08x}",
        resume="allow",
        dir=str(job.work),
        mode=mode,
        config=config_to_mapping(job.config),
    )


def _cut_log(path: Path, first_step: int) -> None:
    kept = [entry for entry in read_log(path) if entry["step"] <= first_step]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
