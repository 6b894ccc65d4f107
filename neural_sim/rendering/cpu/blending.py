"""Front-to-back compositing of one tile after another, forward."""

import numpy as np
from numba import njit, prange

from neural_sim.rendering.cpu.layout import (
    BATCH,
    BLUE,
    DEPTH,
    GREEN,
    HALF,
    INLINE,
    JIT,
    LOG2_OPACITY,
    MEAN_X,
    MEAN_Y,
    ONE,
    PARALLEL,
    REACH_Y,
    RECORD,
    RED,
    TILE,
    ZERO,
    K,
    P,
    R,
    aligned_scratch,
    gather,
    prefetch_batch,
    spread_step,
)
from neural_sim.rendering.cpu.projection_lanes import EDGE
from neural_sim.rendering.views import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN

ALPHA_LOW, ALPHA_HIGH = np.float32(ALPHA_MIN), np.float32(ALPHA_MAX)
T_LOW = np.float32(TRANSMITTANCE_MIN)

# 2^f on [-1, 0], least largest relative error (7.5e-8).
E0, E1, E2 = np.float32(0.999999925), np.float32(0.693142253), np.float32(0.240172189)
E3, E4, E5 = np.float32(0.0552797225), np.float32(0.00918861169), np.float32(0.000938788323)
EIGHTH, E_MIN = np.float32(0.125), np.float32(-8.0)


@njit(**INLINE)
def exp2_above_minus_8(e: np.floating) -> np.floating:
    """2^e for e in [-8, 0] as the eighth power of 2^(e / 8), relative error below 1e-6; 2^-8 below that range.

    Alpha matters only from 1/255 up, so the short range is enough, and without a library call loops vectorise.
    """
    f = max(e, E_MIN) * EIGHTH
    value = E0 + f * (E1 + f * (E2 + f * (E3 + f * (E4 + f * E5))))
    value *= value
    value *= value
    return value * value


@njit(**INLINE)
def row_range(mean_y: float, reach_y: float, tile_top: int) -> tuple[int, int]:
    """First and one-past-last row, 0..TILE, of the tile whose pixel centres the splat's bounding box reaches."""
    top, last = np.float32(tile_top), np.float32(TILE)
    # Truncation is the floor: what would be negative is clipped before.
    low = int(min(max(mean_y - reach_y + EDGE - top, ZERO), last))
    return low, max(int(min(max(mean_y + reach_y - EDGE - top + ONE, ZERO), last)), low)


@njit(**JIT)
def clear_tile(pixels: np.ndarray, left: int, top: int, shape: tuple[int, int]) -> None:
    """Fill `pixels` [TILE, n * TILE] with transmittance 1 inside the image of this `shape`, 0 outside, then zeros."""
    height, width = shape
    pixels[:] = ZERO
    for y in range(min(TILE, height - top)):
        for x in range(min(TILE, width - left)):
            pixels[y, x] = ONE


@njit(**JIT)
def find_live_rows(pixels: np.ndarray, live: np.ndarray) -> int:
    """How many rows of a tile have a pixel that has not ended; rows of `pixels` start with transmittance, <= 0 at ends.

    `live` [2, TILE + 1] gets their indices, and how many lie before each row.
    """
    count = 0
    for y in range(TILE):
        live[1, y] = count
        highest = pixels[y, 0]
        for x in range(TILE):
            highest = max(highest, pixels[y, x])
        live[0, count] = y
        count += 1 if highest > ZERO else 0
    live[1, TILE] = count
    return count


@njit(**INLINE)
def blend_row(pixels: np.ndarray, y: int, p: float, q: float, level: float, color: tuple) -> None:
    """Blend one splat over one row of a tile; alpha = 2^(level - (p x + q)^2) at column x."""
    red, green, blue, depth = color
    for x in range(TILE):
        t = p * np.float32(x) + q
        alpha = min(exp2_above_minus_8(level - t * t), ALPHA_HIGH)
        before = pixels[y, x]
        after = before * (ONE - alpha)
        touched = alpha >= ALPHA_LOW
        drawn = touched and after > T_LOW
        weight = alpha * before if drawn else ZERO
        ended = -abs(before) if touched else before
        pixels[y, x] = after if drawn else ended
        pixels[y, TILE + x] += weight * red
        pixels[y, 2 * TILE + x] += weight * green
        pixels[y, 3 * TILE + x] += weight * blue
        pixels[y, 4 * TILE + x] += weight * depth


@njit(**JIT)
def blend_tile(records: np.ndarray, members: np.ndarray, left: int, top: int, pixels: np.ndarray) -> None:
    """Composite the splats `members` into `pixels` [TILE, 5 * TILE].

    Each row of pixels holds, TILE columns each: transmittance, red, green, blue, sum of weight * depth. Where `pixels`
    has no transmittance at first, outside the image, nothing is drawn.
    """
    batch, live = aligned_scratch(BATCH, RECORD), np.empty((2, TILE + 1), np.int64)
    prefetch_batch(records, members, 0)
    for first in range(0, len(members), BATCH):
        if find_live_rows(pixels, live) == 0:
            break
        for j in range(gather(records, members, first, batch)):
            p, r, k, log2_opacity = batch[j, P], batch[j, R], batch[j, K], batch[j, LOG2_OPACITY]
            color = (batch[j, RED], batch[j, GREEN], batch[j, BLUE], batch[j, DEPTH])
            mean_y = batch[j, MEAN_Y]
            start = p * (np.float32(left) + HALF - batch[j, MEAN_X])
            low, high = row_range(mean_y, batch[j, REACH_Y], top)
            for place in range(live[1, low], live[1, high]):
                y = live[0, place]
                dy = np.float32(top + y) + HALF - mean_y
                blend_row(pixels, y, p, start + r * dy, log2_opacity - k * dy * dy, color)


@njit(**JIT)
def store_tile(
    pixels: np.ndarray, left: int, top: int, rgb: np.ndarray, depth_sum: np.ndarray, opacity: np.ndarray
) -> None:
    """Copy the part of a tile that lies inside the image into the outputs."""
    height, width = opacity.shape
    for y in range(min(TILE, height - top)):
        for x in range(min(TILE, width - left)):
            opacity[top + y, left + x] = ONE - abs(pixels[y, x])
            depth_sum[top + y, left + x] = pixels[y, 4 * TILE + x]
            rgb[top + y, left + x, 0] = pixels[y, TILE + x]
            rgb[top + y, left + x, 1] = pixels[y, 2 * TILE + x]
            rgb[top + y, left + x, 2] = pixels[y, 3 * TILE + x]


@njit(**PARALLEL)
def blend(
    records: np.ndarray,
    lists: np.ndarray,
    starts: np.ndarray,
    rgb: np.ndarray,
    depth_sum: np.ndarray,
    opacity: np.ndarray,
) -> None:
    """Draw all tiles into `rgb` [H, W, 3], `depth_sum` [H, W], `opacity` [H, W]."""
    tiles = len(starts) - 1
    tiles_x = (opacity.shape[1] + TILE - 1) // TILE
    step = spread_step(tiles)
    for i in prange(tiles):
        tile = i * step % tiles
        left, top = tile % tiles_x * TILE, tile // tiles_x * TILE
        pixels = aligned_scratch(TILE, 5 * TILE)
        clear_tile(pixels, left, top, opacity.shape)
        blend_tile(records, lists[starts[tile] : starts[tile + 1]], left, top, pixels)
        store_tile(pixels, left, top, rgb, depth_sum, opacity)
