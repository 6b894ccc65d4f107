"""The order of examples: a function of seed and place in the stream alone, so the data cursor is the step itself."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int


class ExampleOrder:
    """One endless, seeded stream of examples.

    Without shares the stream is one permutation of all examples after the other. With shares every folder has such
    a stream of its own, and they are interleaved evenly: after p places a folder of share w among S folders has had
    w p of them, give or take (1 + w S) / 2, so every step has the mix.
    """

    def __init__(
        self, sources: Sequence[Int[np.ndarray, "n"]], shares: Sequence[float], seed: int, length: int
    ) -> None:
        """Arrange `sources` (numbers of the examples of each folder) for a stream of `length` places.

        `shares`: one for each folder, any positive numbers; empty for no mixing. A prefix does not depend on `length`.
        """
        self._seed = seed
        self._sources = list(sources) if shares else [np.concatenate([*sources])]
        self._turns = interleaved(np.asarray(shares or [1.0], float), length) if shares else None

    def at(self, places: Int[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
        """Numbers of the examples at `places` of the stream."""
        return np.array([self._at(int(place)) for place in places], np.int64)

    def _at(self, place: int) -> int:
        source, turn = (0, place) if self._turns is None else (int(part[place]) for part in self._turns)
        numbers = self._sources[source]
        epoch, position = divmod(turn, len(numbers))
        return int(numbers[_permutation(self._seed, source, epoch, len(numbers))[position]])


def interleaved(
    shares: Float[np.ndarray, "s"], length: int
) -> tuple[Int[np.ndarray, "length"], Int[np.ndarray, "length"]]:
    """Which source stands at each place, and how many of that source stand before it.

    The k-th example of a source of share w is due at (k + 1/2) / w; ties go to the earlier source. At time T a source
    has had w T of its own, rounded, so all S together T, give or take S / 2.
    """
    shares = shares / shares.sum()
    counts = np.ceil(shares * length).astype(int) + 1
    turns = np.concatenate([np.arange(count) for count in counts])
    sources = np.repeat(np.arange(len(shares)), counts)
    due = (turns + 0.5) / shares[sources]
    first = np.argsort(due, kind="stable")[:length]
    return sources[first], turns[first]


@lru_cache(maxsize=16)
def _permutation(seed: int, source: int, epoch: int, total: int) -> Int[np.ndarray, "n"]:
    return np.random.default_rng([seed, source, epoch]).permutation(total)
