"""Which tiles each splat touches: depth-ordered lists per tile by counting and prefix sums, no atomics."""

import math

import numpy as np
from numba import njit, prange

from neural_sim.rendering.cpu.layout import (
    CHUNKS,
    CULL_MARGIN,
    INLINE,
    JIT,
    LOG2_255,
    LOG2_OPACITY,
    MEAN_X,
    MEAN_Y,
    PARALLEL,
    TILE,
    K,
    P,
    R,
    chunk_bounds,
    spread_step,
)


@njit(**JIT)
def tile_span(record: np.ndarray, box: np.ndarray, tile_y: int) -> tuple[int, int]:
    """First and one-past-last tile of row `tile_y` that the splat's alpha = 1/255 ellipse reaches, inside its box.

    The ellipse is k dy^2 + (p dx + r dy)^2 <= level. Within a band of dy its right edge
    dx(dy) = (-r dy + sqrt(level - k dy^2)) / p is concave, so its maximum is at the stationary dy clamped to the band;
    the left edge is its mirror image.
    """
    p, r, k = float(record[P]), float(record[R]), float(record[K])
    level = float(record[LOG2_OPACITY]) + LOG2_255 + CULL_MARGIN
    top = math.sqrt(level / k)
    low = min(max(tile_y * TILE + 0.5 - record[MEAN_Y], -top), top)
    high = max(min(tile_y * TILE + TILE - 0.5 - record[MEAN_Y], top), -top)
    stationary = -r * math.sqrt(level / (k * (r * r + k)))
    right, left = min(max(stationary, low), high), min(max(-stationary, low), high)
    last = record[MEAN_X] + (math.sqrt(max(level - k * right * right, 0.0)) - r * right) / p
    first = record[MEAN_X] - (math.sqrt(max(level - k * left * left, 0.0)) + r * left) / p
    # Clipping before the conversion keeps a huge splat inside the integer range.
    first, last = max(first, float(box[0] * TILE)), min(last, float(box[1] * TILE))
    return max(math.ceil(first - 0.5) // TILE, box[0]), min(math.floor(last - 0.5) // TILE + 1, box[1])


@njit(**INLINE)
def needs_spans(box: np.ndarray) -> bool:
    """Whether the box has corners to cut: only with several rows and columns can the ellipse miss some of its tiles."""
    return box[1] - box[0] > 1 and box[3] - box[2] > 1


@njit(**PARALLEL)
def count_pairs(records: np.ndarray, boxes: np.ndarray, order: np.ndarray, tiles_x: int, tiles_y: int) -> np.ndarray:
    """Number of splats int32 [CHUNKS, tiles] that each chunk of the depth order puts into each tile."""
    counts = np.zeros((CHUNKS, tiles_x * tiles_y), np.int32)
    step = spread_step(CHUNKS)
    for i in prange(CHUNKS):
        chunk = i * step % CHUNKS
        first, last = chunk_bounds(chunk, len(order))
        row = counts[chunk]
        for j in range(first, last):
            index = order[j]
            box, left, right = boxes[index], boxes[index, 0], boxes[index, 1]
            with_spans = needs_spans(box)
            for tile_y in range(box[2], box[3]):
                if with_spans:
                    left, right = tile_span(records[index], box, tile_y)
                for tile_x in range(left, right):
                    row[tile_y * tiles_x + tile_x] += 1
    return counts


@njit(**JIT)
def prefix_sums(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the lists: tile starts [tiles + 1], write positions [CHUNKS, tiles], pairs before each chunk."""
    chunks, tiles = counts.shape
    starts, positions = np.empty(tiles + 1, np.int64), np.empty((chunks, tiles), np.int64)
    before = np.zeros(chunks + 1, np.int64)
    total = 0
    for tile in range(tiles):
        starts[tile] = total
        for chunk in range(chunks):
            positions[chunk, tile] = total
            total += counts[chunk, tile]
            before[chunk + 1] += counts[chunk, tile]
    starts[tiles] = total
    return starts, positions, np.cumsum(before)


@njit(**PARALLEL)
def fill_lists(
    records: np.ndarray,
    boxes: np.ndarray,
    order: np.ndarray,
    tiles_x: int,
    positions: np.ndarray,
    before: np.ndarray,
    slots: np.ndarray,
    slot_range: np.ndarray,
) -> np.ndarray:
    """Gaussian indices int32 [pairs], tile after tile, each tile's in depth order.

    Unless `slots` [pairs] is empty, it gets the place of each pair in that list, splat after splat, and `slot_range`
    [N, 2] the first and one-past-last of a splat's slots: what the backward pass sums over.
    """
    lists = np.empty(before[CHUNKS], np.int32)
    step = spread_step(CHUNKS)
    for i in prange(CHUNKS):
        chunk = i * step % CHUNKS
        first, last = chunk_bounds(chunk, len(order))
        position, slot = positions[chunk], before[chunk]
        for j in range(first, last):
            index = order[j]
            box, left, right = boxes[index], boxes[index, 0], boxes[index, 1]
            with_spans, slot_start = needs_spans(box), slot
            for tile_y in range(box[2], box[3]):
                if with_spans:
                    left, right = tile_span(records[index], box, tile_y)
                for tile in range(tile_y * tiles_x + left, tile_y * tiles_x + right):
                    lists[position[tile]] = index
                    if len(slots):
                        slots[slot] = position[tile]
                    position[tile] += 1
                    slot += 1
            if len(slots):
                slot_range[index, 0], slot_range[index, 1] = slot_start, slot
    return lists
