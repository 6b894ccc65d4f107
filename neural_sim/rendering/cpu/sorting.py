"""Parallel stable radix sort of depth keys."""

import numpy as np
from numba import njit, prange

from neural_sim.rendering.cpu.layout import PARALLEL

DIGIT_BITS = 11
DIGITS = 1 << DIGIT_BITS
# Few, since every piece has a histogram to walk through; a stable sort gives the same order for any number.
PIECES = 8


@njit(**PARALLEL)
def sort_by_depth(keys: np.ndarray) -> np.ndarray:
    """Indices int32 [M] of `keys` uint64 [M] = (float32 bits << 32 | index), in order of their upper halves, stable."""
    count = len(keys)
    order = np.empty(count, np.int32)
    if count == 0:
        return order
    low, high = np.uint64(0xFFFFFFFF), np.uint64(0)
    for i in range(count):
        low, high = min(low, keys[i] >> np.uint64(32)), max(high, keys[i] >> np.uint64(32))
    source, target = keys, np.empty_like(keys)
    positions = np.empty((PIECES, DIGITS), np.int32)
    mask, base, shift = np.uint64(DIGITS - 1), low << np.uint64(32), np.uint64(32)
    while shift == np.uint64(32) or (high - low) >> (shift - np.uint64(32)) > 0:
        for piece in prange(PIECES):
            first, last = piece * count // PIECES, (piece + 1) * count // PIECES
            histogram = positions[piece]
            histogram[:] = 0
            for i in range(first, last):
                histogram[((source[i] - base) >> shift) & mask] += 1
        total = 0
        for digit in range(DIGITS):
            for piece in range(PIECES):
                here = positions[piece, digit]
                positions[piece, digit] = total
                total += here
        for piece in prange(PIECES):
            first, last = piece * count // PIECES, (piece + 1) * count // PIECES
            position = positions[piece]
            for i in range(first, last):
                digit = ((source[i] - base) >> shift) & mask
                target[position[digit]] = source[i]
                position[digit] += 1
        source, target = target, source
        shift += np.uint64(DIGIT_BITS)
    for i in prange(count):
        order[i] = np.int32(source[i] & np.uint64(0xFFFFFFFF))
    return order
