"""Decoding examples ahead of the trainer.

Which examples a step sees depends on nothing but the seed and the step (`pipelines.training.order`), so every process
has the same number of steps by construction.
"""

import signal
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from types import TracebackType
from typing import Self

import numpy as np
import torch

from pipelines.processes import die_with_parent
from pipelines.shards.reader import stack_examples
from pipelines.training.config import TrainingConfig
from pipelines.training.order import ExampleOrder
from pipelines.training.source import ExampleSource
from vla.policy import TrainingBatch


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


def generator_seed(seed: int, step: int, index: int) -> int:
    """Seed of the noise in the loss of one micro-batch, the same on whichever process it runs."""
    return int(np.random.SeedSequence([seed, step, index]).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class Decoder:
    """Makes a micro-batch from nothing but its place, in whichever thread or process."""

    source: ExampleSource
    order: ExampleOrder
    batch_size: int
    micro_batch_size: int

    def __call__(self, step: int, index: int) -> tuple[tuple[str, ...], TrainingBatch]:
        """Names and examples of micro-batch `index` of `step`. Raises `InputError` on a broken example."""
        start = step * self.batch_size + index * self.micro_batch_size
        numbers = self.order.at(np.arange(start, start + self.micro_batch_size))
        examples = [self.source.read(int(number)) for number in numbers]
        keys = tuple(example.key for example in examples)
        return keys, stack_examples(examples, self.source.weights(numbers).tolist())


class Loader:
    """Micro-batches of one process from `first_step` on, decoded ahead, in their order whoever decodes them.

    Process `rank` of `world_size` takes micro-batches rank, rank + world_size, ... of each step.
    """

    def __init__(
        self, source: ExampleSource, config: TrainingConfig, seed: int, rank: int, world_size: int, first_step: int
    ) -> None:
        self._config = config
        order = ExampleOrder(source.kept, config.source_weights, seed, config.steps * config.batch_size)
        decoder = Decoder(source, order, config.batch_size, config.micro_batch_size)
        self._rank, self._world_size, self._first_step = rank, world_size, first_step
        self._pool: Executor
        if config.loader_workers:
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(config.loader_workers, context, _start_decoding, (decoder,))
            self._work = _decode
        else:
            self._pool = ThreadPoolExecutor(config.loader_threads, thread_name_prefix="decode")
            self._work = decoder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[MicroBatch]:
        waiting: deque[tuple[int, int, Future[tuple[tuple[str, ...], TrainingBatch]]]] = deque()
        for step, index in self._schedule():
            waiting.append((step, index, self._pool.submit(self._work, step, index)))
            if len(waiting) > self._config.prefetch:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())

    def _schedule(self) -> Iterator[tuple[int, int]]:
        for step in range(self._first_step, self._config.steps):
            for round_index in range(self._config.accumulation(self._world_size)):
                yield step, round_index * self._world_size + self._rank


_decoders: list[Decoder] = []
"""The decoder of this process, where it was started to decode."""


def _start_decoding(decoder: Decoder) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _decoders[:] = [decoder]


def _decode(step: int, index: int) -> tuple[tuple[str, ...], TrainingBatch]:
    return _decoders[0](step, index)


def _finished(step: int, index: int, future: Future[tuple[tuple[str, ...], TrainingBatch]]) -> MicroBatch:
    started_s = time.perf_counter()
    keys, batch = future.result()
    return MicroBatch(step, index, keys, batch, time.perf_counter() - started_s)
