"""Sorting of each tile's list by depth: radix, stable, parallel over tiles."""

import numpy as np
from numba import njit, prange

from neural_sim.rendering.cpu.layout import JIT, PARALLEL, spread_step

DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS
# Shorter lists are sorted by insertion.
SHORT = 24


@njit(**JIT)
def sort_by_insertion(keys: np.ndarray) -> None:
    """Sort a few `keys` in place by their upper halves, stable."""
    for i in range(1, len(keys)):
        key, j = keys[i], i
        while j > 0 and keys[j - 1] >> np.uint64(32) > key >> np.uint64(32):
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = key


@njit(**JIT)
def sort_by_radix(keys: np.ndarray) -> np.ndarray:
    """`keys` uint64 in order of their upper halves, stable; in place or in a new array."""
    low, high = keys[0], keys[0]
    for key in keys:
        low, high = min(low, key), max(high, key)
    base = low >> np.uint64(32)
    span = (high >> np.uint64(32)) - base
    source, target = keys, np.empty_like(keys)
    places, mask, shift = np.empty(DIGITS, np.int32), np.uint64(DIGITS - 1), np.uint64(0)
    while span >> shift > np.uint64(0):
        places[:] = 0
        for key in source:
            places[(((key >> np.uint64(32)) - base) >> shift) & mask] += 1
        total = np.int32(0)
        for digit in range(DIGITS):
            here = places[digit]
            places[digit] = total
            total += here
        for key in source:
            digit = (((key >> np.uint64(32)) - base) >> shift) & mask
            target[places[digit]] = key
            places[digit] += 1
        source, target = target, source
        shift += np.uint64(DIGIT_BITS)
    return source


@njit(**PARALLEL)
def sort_lists(lists: np.ndarray, starts: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gaussians int32 [pairs] of each tile in order of depth, from the keys `lists`, which are used up; stable.

    Those of tile t are the places `starts[t]` to `starts[t + 1]`. If the lower halves of the keys are pairs, whose
    Gaussians are `owners` [pairs], then also these int32 [pairs] in the same order; else an empty array.
    """
    members, pairs = np.empty(len(lists), np.int32), np.empty(len(owners), np.int32)
    tiles = len(starts) - 1
    step = spread_step(tiles)
    for piece in prange(tiles):
        tile = piece * step % tiles
        first, last = starts[tile], starts[tile + 1]
        keys = lists[first:last]
        if last - first > SHORT:
            keys = sort_by_radix(keys)
        else:
            sort_by_insertion(keys)
        for j in range(last - first):
            members[first + j] = np.int32(keys[j] & np.uint64(0xFFFFFFFF))
        if len(owners):
            for j in range(first, last):
                pairs[j] = members[j]
                members[j] = owners[pairs[j]]
    return members, pairs
