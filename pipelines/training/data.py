"""The order of examples, and decoding them ahead of the trainer.

Which examples a step sees depends on nothing but the seed and the step, so the data cursor of a resume state is the
step itself, and every process has the same number of steps by construction.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from pipelines.shards.example import ShardExample
from pipelines.shards.index import ShardFile, read_index
from pipelines.shards.reader import read_example, stack_examples
from pipelines.training.config import TrainingConfig
from vla.policy import PLAN_STEPS, TrainingBatch

MAX_EXAMPLES_FOR_STATISTICS = 4096


class ExampleSource:
    """All examples of some folders of shards, by number, in the order of folders, shards and places."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._shards: list[tuple[Path, ShardFile]] = [
            (folder, shard) for folder in folders for shard in read_index(folder).shards
        ]
        self._ends = np.cumsum([shard.examples for _, shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, number: int) -> ShardExample:
        """Decode one example. Raises `InputError` naming its shard when it is broken."""
        which = int(np.searchsorted(self._ends, number, side="right"))
        folder, shard = self._shards[which]
        return read_example(folder, shard, number - int(self._ends[which]) + shard.examples)

    def targets_and_speeds(self) -> tuple[Float[np.ndarray, "n 64 3"], Float[np.ndarray, "n"]]:
        """Targets (m and rad, rig frame) and speeds (m/s) of evenly spaced examples, 4096 at most."""
        numbers = np.unique(np.linspace(0, len(self) - 1, min(len(self), MAX_EXAMPLES_FOR_STATISTICS)).astype(int))
        targets, speeds = np.zeros((len(numbers), PLAN_STEPS, 3), np.float32), np.zeros(len(numbers), np.float32)
        for row, number in enumerate(numbers):
            example = self.read(int(number))
            targets[row], speeds[row] = example.target, example.speed_mps
        return targets, speeds


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass sees.

    Attributes:
        step: optimiser step, from 0.
        index: which micro-batch of the step, from 0 over all processes.
        keys: names of the examples.
        batch: the examples.
        waited_s: how long the trainer waited for it.
    """

    step: int
    index: int
    keys: tuple[str, ...]
    batch: TrainingBatch
    waited_s: float


def example_numbers(seed: int, total: int, config: TrainingConfig, step: int, index: int) -> Int[np.ndarray, "m"]:
    """Numbers of the examples in micro-batch `index` of `step`.

    The stream of examples is one seeded permutation of all `total` per epoch after the other, cut into steps and
    micro-batches.
    """
    start = step * config.batch_size + index * config.micro_batch_size
    places = np.arange(start, start + config.micro_batch_size)
    return np.array([_permutation(seed, place // total, total)[place % total] for place in places])


def generator_seed(seed: int, step: int, index: int) -> int:
    """Seed of the noise in the loss of one micro-batch, the same on whichever process it runs."""
    return int(np.random.SeedSequence([seed, step, index]).generate_state(1, np.uint64)[0] >> 1)


class Loader:
    """Micro-batches of one process from `first_step` on, decoded ahead in threads.

    Process `rank` of `world_size` takes micro-batches rank, rank + world_size, ... of each step.
    """

    def __init__(
        self, source: ExampleSource, config: TrainingConfig, seed: int, rank: int, world_size: int, first_step: int
    ) -> None:
        self._source, self._config, self._seed = source, config, seed
        self._rank, self._world_size, self._first_step = rank, world_size, first_step
        self._pool = ThreadPoolExecutor(config.loader_threads, thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[MicroBatch]:
        waiting: deque[tuple[int, int, Future[list[ShardExample]]]] = deque()
        for step, index in self._schedule():
            waiting.append((step, index, self._pool.submit(self._decode, step, index)))
            if len(waiting) > self._config.prefetch:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())

    def _schedule(self) -> Iterator[tuple[int, int]]:
        for step in range(self._first_step, self._config.steps):
            for round_index in range(self._config.accumulation(self._world_size)):
                yield step, round_index * self._world_size + self._rank

    def _decode(self, step: int, index: int) -> list[ShardExample]:
        numbers = example_numbers(self._seed, len(self._source), self._config, step, index)
        return [self._source.read(int(number)) for number in numbers]


def _finished(step: int, index: int, future: Future[list[ShardExample]]) -> MicroBatch:
    started_s = time.perf_counter()
    examples = future.result()
    waited_s = time.perf_counter() - started_s
    return MicroBatch(step, index, tuple(example.key for example in examples), stack_examples(examples), waited_s)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, total: int) -> Int[np.ndarray, "n"]:
    return np.random.default_rng([seed, epoch]).permutation(total)
