"""The examples that a run trains on, by number, with their weights."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from neural_sim.errors import InputError
from pipelines.shards.example import ShardExample
from pipelines.shards.index import ShardFile, read_index
from pipelines.shards.reader import read_example, read_facts
from pipelines.training.weighting import ExampleFacts, SampleWeighting, WeightingConfig
from vla.policy import PLAN_STEPS

MAX_EXAMPLES_FOR_STATISTICS = 4096


class ExampleSource:
    """All examples of some folders of shards, numbered in the order of folders, shards and places.

    Attributes:
        kept: numbers of the examples of weight above 0, one array for each folder.
    """

    def __init__(self, folders: Sequence[Path], weighting: SampleWeighting | None = None) -> None:
        """Read the indices, and where examples have weights or there is a `weighting`, their facts, but no image.

        Raises `InputError` when a folder is unsound or the weighting gives a weight that is not finite.
        """
        indices = [read_index(folder) for folder in folders]
        self._shards: list[tuple[Path, ShardFile]] = [
            (index.folder, shard) for index in indices for shard in index.shards
        ]
        self._ends = np.cumsum([0, *(shard.examples for _, shard in self._shards)])[1:]
        if weighting is None and any(index.summary.get("weighted_examples") for index in indices):
            weighting = WeightingConfig()
        weights = np.ones(len(self)) if weighting is None else _checked(weighting.weights(self.facts()))
        kept = weights > 0
        # Of mean 1 over what is drawn, so that the learning rate keeps its meaning.
        self._weights = weights / weights[kept].mean() if kept.any() else weights
        bounds = np.cumsum([0, *(index.examples for index in indices)])
        self.kept = [start + np.flatnonzero(kept[start:end]) for start, end in itertools.pairwise(bounds)]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def num_kept(self) -> int:
        """How many examples are drawn."""
        return sum(map(len, self.kept))

    def read(self, number: int) -> ShardExample:
        """Decode one example. Raises `InputError` naming its shard when it is broken."""
        return read_example(*self._place(number))

    def weights(self, numbers: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
        """Weights in the loss, of mean 1 over all kept examples."""
        return self._weights[numbers]

    def facts(self) -> ExampleFacts:
        """Facts of all examples. Raises `InputError` naming the shard of a broken one."""
        rows = [read_facts(*self._place(number)) for number in range(len(self))]
        return ExampleFacts(
            round=np.array([int(row.meta.get("round", 0)) for row in rows], np.int64),
            distance_m=np.array([row.least_distance_m for row in rows], np.float64),
            recovered=np.array([row.recovered for row in rows], bool),
            meta=tuple(dict(row.meta) for row in rows),
        )

    def targets_and_speeds(self) -> tuple[Float[np.ndarray, "n 64 3"], Float[np.ndarray, "n"]]:
        """Targets (m and rad, rig frame) and speeds (m/s) of evenly spaced kept examples, 4096 at most."""
        kept = np.concatenate(self.kept)
        places = np.unique(np.linspace(0, len(kept) - 1, min(len(kept), MAX_EXAMPLES_FOR_STATISTICS)).astype(int))
        targets, speeds = np.zeros((len(places), PLAN_STEPS, 3), np.float32), np.zeros(len(places), np.float32)
        for row, number in enumerate(kept[places]):
            example = self.read(int(number))
            targets[row], speeds[row] = example.target, example.speed_mps
        return targets, speeds

    def _place(self, number: int) -> tuple[Path, ShardFile, int]:
        which = int(np.searchsorted(self._ends, number, side="right"))
        folder, shard = self._shards[which]
        return folder, shard, number - int(self._ends[which]) + shard.examples


def _checked(weights: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if bad.size:
        raise InputError(f"weighting: example {bad[0]} has weight {weights[bad[0]]}, expected a number of 0 or more")
    return weights
