"""Shapes, columns and compiler options that the CPU kernels share.

A projected Gaussian is one float32 record of `RECORD` columns (one cache line). With dx, dy the offset of a pixel
centre from the splat centre, its alpha is 2^e:

    t = p dx + r dy,    e = log2(opacity) - k dy^2 - t^2

which is the Cholesky form of the usual quadratic: never above log2(opacity), whatever rounding does.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from neural_sim.rendering.cpu.prefetching import prefetch

TILE = 16  # px; a row of a tile is one AVX-512 register
# Work is cut into this many pieces whatever the number of threads, so sums are the same for any number of threads.
CHUNKS = 32

MEAN_X, MEAN_Y, P, R, K, LOG2_OPACITY, RED, GREEN, BLUE, DEPTH, REACH_X, REACH_Y = range(12)
# Kept for the backward pass: the three scales, m, and 1 - opacity.
SCALE, TRANSPARENCY = 12, 15
RECORD = 16

# Gradient columns of one (tile, splat) pair: moments of dL/de over the pixels, then gradients of colour and depth.
G_1, G_T, G_TT, G_TY, G_Y, G_YY, G_RED, G_GREEN, G_BLUE, G_DEPTH = range(10)
GRADIENT = 10

LOG2_E = math.log2(math.e)
# p, r, k carry this factor so that exp becomes exp2.
WHITEN = math.sqrt(0.5 * LOG2_E)
# log2(255), and a margin that keeps culling on the safe side of the exact test in the pixel.
LOG2_255 = math.log2(255.0)
CULL_MARGIN = 0.002

# Splats of a tile gathered at a time, and between two looks at whether the whole tile is opaque.
BATCH = 32

ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)

# NaN and infinity keep their meaning: projection relies on them to drop unsound Gaussians.
JIT: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "arcp", "reassoc"},
}
# For bodies of hot loops: a call per row of pixels costs more than the row.
INLINE: dict[str, Any] = {**JIT, "forceinline": True}
PARALLEL: dict[str, Any] = {**JIT, "parallel": True}


@njit(**JIT)
def spread_step(count: int) -> int:
    """A step coprime to `count` near its golden section: `i * step % count` visits all, neighbours far apart.

    Static scheduling hands out contiguous ranges; visiting in this order gives each thread its share of heavy pieces.
    """
    step = max(1, int(0.618 * count))
    while True:
        a, b = step, count
        while b:
            a, b = b, a % b
        if a == 1:
            return step
        step += 1


@njit(**JIT)
def chunk_bounds(chunk: int, count: int) -> tuple[int, int]:
    """First and one-past-last item of a chunk of `count` items."""
    return chunk * count // CHUNKS, (chunk + 1) * count // CHUNKS


@njit(**JIT)
def aligned_scratch(rows: int, columns: int) -> np.ndarray:
    """Uninitialised float32 [rows, columns] that starts on a cache line, so that no row of 16 pixels straddles two."""
    raw = np.empty(rows * columns + 16, np.float32)
    skip = (64 - raw.ctypes.data % 64) % 64 // 4
    return raw[skip : skip + rows * columns].reshape(rows, columns)


@njit(**JIT)
def prefetch_batch(records: np.ndarray, members: np.ndarray, first: int) -> None:
    """Start to fetch the records of up to BATCH `members` from `first` on.

    They lie far apart: asked for a batch ahead they arrive while the present one is drawn, instead of one by one.
    """
    flat = records.reshape(-1)
    for j in range(first, min(first + BATCH, len(members))):
        prefetch(flat, np.int64(members[j]) * RECORD)  # pyright: ignore[reportCallIssue]


@njit(**JIT)
def gather(records: np.ndarray, members: np.ndarray, first: int, batch: np.ndarray) -> int:
    """Copy the records of up to BATCH `members` from `first` on into `batch` [BATCH, RECORD]; return how many."""
    count = min(len(members) - first, BATCH)
    for j in range(count):
        i = members[first + j]
        for column in range(RECORD):
            batch[j, column] = records[i, column]
    prefetch_batch(records, members, first + BATCH)
    return count
