"""Which tiles each splat touches: lists per tile by counting and prefix sums, no atomics."""

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

# A pixel centre this close to an edge is on it.
EQUAL_PX = 1e-9
# A row of a box that is at most so wide is packed into two numbers of `SPAN_BITS`, its spans into one of 64 bits.
SPAN_BITS, PACKED_WIDTH, PACKED_ROWS = 4, 15, 8


@njit(**INLINE)
def reached_ellipse(records: np.ndarray, i: int) -> tuple[float, float, float, float, float, float, float, float]:
    """The ellipse k dy^2 + (p dx + r dy)^2 <= level of alpha = 1/255, float64, with what `tile_span` needs of it.

    x and y of the centre, half its height, the dy at which its right edge is farthest right; then level, k, r and 1/p.
    """
    p, r, k = float(records[i, P]), float(records[i, R]), float(records[i, K])
    level = float(records[i, LOG2_OPACITY]) + LOG2_255 + CULL_MARGIN
    top = math.sqrt(level / k)
    stationary = -r * top / math.sqrt(r * r + k)
    return float(records[i, MEAN_X]), float(records[i, MEAN_Y]), top, stationary, level, k, r, 1.0 / p


@njit(**INLINE)
def tile_span(ellipse: tuple, left: int, right: int, tile_y: int) -> tuple[int, int]:
    """First and one-past-last tile of row `tile_y` from `left` to `right` that the ellipse of alpha = 1/255 reaches.

    Within a band of dy its right edge dx(dy) = (-r dy + sqrt(level - k dy^2)) / p is concave, so its maximum is at the
    stationary dy clamped to the band; the left edge is its mirror image.
    """
    mean_x, mean_y, top, stationary, level, k, r, inverse_p = ellipse
    low = min(max(tile_y * TILE + 0.5 - mean_y, -top), top)
    high = max(min(tile_y * TILE + TILE - 0.5 - mean_y, top), -top)
    down, up = min(max(stationary, low), high), min(max(-stationary, low), high)
    last = mean_x + (math.sqrt(max(level - k * down * down, 0.0)) - r * down) * inverse_p
    first = mean_x - (math.sqrt(max(level - k * up * up, 0.0)) + r * up) * inverse_p
    # From an edge to the tile of the first pixel centre inside, and to the tile after that of the last. Clipped first:
    # then truncation is the floor, and a huge splat stays inside the integer range.
    start, end = (first + 0.5 - EQUAL_PX) * (1.0 / TILE), (last - 0.5 + TILE) * (1.0 / TILE)
    return int(min(max(start, float(left)), float(right))), int(min(max(end, float(left)), float(right)))


@njit(**INLINE)
def needs_spans(boxes: np.ndarray, i: int) -> bool:
    """Whether a box has corners to cut: only with several rows and columns can the ellipse miss some of its tiles."""
    return boxes[i, 1] - boxes[i, 0] > 1 and boxes[i, 3] - boxes[i, 2] > 1


@njit(**INLINE)
def small_box(boxes: np.ndarray, i: int, tiles_x: int) -> tuple[int, int, int]:
    """How many tiles a box has, none between pixel centres, and the first and the last of them.

    Most boxes have one or two, at random: a loop over them would cost more in mispredicted branches than in writing.
    """
    wide, high, first_tile = boxes[i, 1] - boxes[i, 0], boxes[i, 3] - boxes[i, 2], boxes[i, 2] * tiles_x + boxes[i, 0]
    return wide * high, first_tile, first_tile + (wide - 1) + (high - 1) * tiles_x


@njit(**INLINE)
def count_tiles(
    records: np.ndarray,
    boxes: np.ndarray,
    spans: np.ndarray,
    i: int,
    tiles_x: int,
    counts: np.ndarray,
    chunk: int,
) -> None:
    """Add 1 to `counts` [chunks, tiles] in each tile that splat `i` touches, and note which ones in `spans` [N].

    Meanwhile its record is at hand; when the lists are filled it would have to be fetched from far away. Boxes of up to
    two tiles need no note, very large ones do not fit.
    """
    tiles, first_tile, second_tile = small_box(boxes, i, tiles_x)
    if 0 < tiles <= 2:
        counts[chunk, first_tile] += 1
        counts[chunk, second_tile] += tiles - 1
        return
    left, right, top, with_spans = boxes[i, 0], boxes[i, 1], boxes[i, 2], needs_spans(boxes, i)
    ellipse, packed = reached_ellipse(records, i), np.uint64(0)
    for row in range(boxes[i, 3] - top):
        start, end = tile_span(ellipse, left, right, top + row) if with_spans else (np.int64(left), np.int64(right))
        for tile in range((top + row) * tiles_x + start, (top + row) * tiles_x + end):
            counts[chunk, tile] += 1
        if row < PACKED_ROWS:
            pair = np.uint64((start - left) | (max(end, start) - left) << SPAN_BITS)
            packed |= pair << np.uint64(2 * SPAN_BITS * row)
    spans[i] = packed


@njit(**INLINE)
def is_packed(boxes: np.ndarray, i: int) -> bool:
    """Whether `spans` says which tiles of box `i` the splat touches."""
    return boxes[i, 1] - boxes[i, 0] <= PACKED_WIDTH and boxes[i, 3] - boxes[i, 2] <= PACKED_ROWS


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


@njit(**INLINE)
def put_in_two(
    lists: np.ndarray,
    positions: np.ndarray,
    chunk: int,
    key: int,
    more: int,
    first_tile: int,
    second_tile: int,
    numbered: bool,
) -> int:
    """Append `key` to the list of `first_tile`, and with 1 for `more` also to that of the other; returns how many.

    Without a branch: with 0 for `more` the two tiles are one, and its entry is written twice.
    """
    place = positions[chunk, first_tile]
    positions[chunk, first_tile] = place + 1
    other = positions[chunk, second_tile]
    positions[chunk, second_tile] = other + more
    lists[place] = key
    lists[other if more else place] = key + np.uint64(more if numbered else 0)
    return 1 + more


@njit(**INLINE)
def put_in_many(
    lists: np.ndarray,
    positions: np.ndarray,
    chunk: int,
    key: int,
    records: np.ndarray,
    boxes: np.ndarray,
    spans: np.ndarray,
    i: int,
    tiles_x: int,
    numbered: bool,
) -> int:
    """Append `key` to the lists of all tiles that splat `i` touches, 1 more in each if `numbered`; returns how many."""
    left, right, top, packed = boxes[i, 0], boxes[i, 1], boxes[i, 2], spans[i]
    count, step, mask = 0, np.uint64(numbered), np.uint64((1 << SPAN_BITS) - 1)
    from_spans = is_packed(boxes, i)
    ellipse = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0) if from_spans else reached_ellipse(records, i)
    for tile_y in range(top, boxes[i, 3]):
        if from_spans:
            start, end = left + np.int64(packed & mask), left + np.int64((packed >> np.uint64(SPAN_BITS)) & mask)
            packed >>= np.uint64(2 * SPAN_BITS)
        elif needs_spans(boxes, i):
            start, end = tile_span(ellipse, left, right, tile_y)
        else:
            start, end = np.int64(left), np.int64(right)
        for tile in range(tile_y * tiles_x + start, tile_y * tiles_x + end):
            lists[positions[chunk, tile]] = key + np.uint64(count) * step
            positions[chunk, tile] += 1
            count += 1
    return count


@njit(**PARALLEL)
def fill_lists(
    keys: np.ndarray,
    found: np.ndarray,
    records: np.ndarray,
    boxes: np.ndarray,
    spans: np.ndarray,
    tiles_x: int,
    positions: np.ndarray,
    before: np.ndarray,
    pair_range: np.ndarray,
    owners: np.ndarray,
) -> np.ndarray:
    """Keys uint64 [pairs] of the pairs of tile and splat, tile after tile, not yet in order of depth.

    Unless `pair_range` [N, 2] is empty, pairs are numbered splat after splat: it gets the first and one-past-last of
    each splat, `owners` [pairs] the Gaussian of each, and the lower half of a key is the pair instead of the Gaussian.
    """
    lists = np.empty(before[CHUNKS], np.uint64)
    step, numbered = spread_step(CHUNKS), len(pair_range) > 0
    upper, lower = np.uint64(0xFFFFFFFF00000000), np.uint64(0xFFFFFFFF)
    for piece in prange(CHUNKS):
        chunk = piece * step % CHUNKS
        first, _ = chunk_bounds(chunk, len(keys))
        pair = before[chunk]
        for m in range(first, first + found[chunk]):
            i, first_pair = np.int64(keys[m] & lower), pair
            key = (keys[m] & upper) | np.uint64(pair) if numbered else keys[m]
            tiles, first_tile, second_tile = small_box(boxes, i, tiles_x)
            if 0 < tiles <= 2:
                pair += put_in_two(lists, positions, chunk, key, tiles - 1, first_tile, second_tile, numbered)
            else:
                pair += put_in_many(lists, positions, chunk, key, records, boxes, spans, i, tiles_x, numbered)
            if numbered:
                pair_range[i, 0], pair_range[i, 1] = first_pair, pair
                for place in range(first_pair, pair):
                    owners[place] = i
    return lists
