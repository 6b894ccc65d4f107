"""Gradient of compositing: replays each tile front to back and leaves one gradient row per (tile, splat) pair.

With S the cotangent-weighted sum of all that a pixel drew and `rest` what of S is still behind the current splat,
dL/dalpha = T s - rest / (1 - alpha), s the cotangent-weighted colour, depth and 1 of the splat. So the replay needs
only S, known from the outputs, and takes exactly the decisions of the forward pass.
"""

import math

import numpy as np
from numba import njit, prange

from neural_sim.rendering.cpu.blending import (
    ALPHA_HIGH,
    ALPHA_LOW,
    T_LOW,
    clear_tile,
    exp2_above_minus_8,
    find_live_rows,
    row_range,
)
from neural_sim.rendering.cpu.layout import (
    BATCH,
    BLUE,
    DEPTH,
    G_1,
    G_BLUE,
    G_DEPTH,
    G_GREEN,
    G_RED,
    G_T,
    G_TT,
    G_TY,
    G_Y,
    G_YY,
    GRADIENT,
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

LN_2 = np.float32(math.log(2.0))
# The scratch of a tile, [TILE, COLUMNS]: each row of pixels holds, TILE columns each, transmittance, rest of S and the
# cotangents of red, green, blue, depth sum and opacity. With these at fixed distances in one array the compiler sees
# that they do not overlap, and vectorises.
T, REST, GR, GG, GB, GD, GO = (i * TILE for i in range(7))
COLUMNS = 7 * TILE


@njit(**JIT)
def load_tile(
    pixels: np.ndarray,
    left: int,
    top: int,
    images: tuple,
    cotangents: tuple,
) -> None:
    """Fill `pixels` [TILE, COLUMNS] from outputs (rgb, depth_sum, opacity) and their cotangents."""
    rgb, depth_sum, opacity = images
    g_rgb, g_depth, g_opacity = cotangents
    clear_tile(pixels, left, top, opacity.shape)
    height, width = opacity.shape
    for y in range(min(TILE, height - top)):
        for x in range(min(TILE, width - left)):
            v, u = top + y, left + x
            pixels[y, GR + x], pixels[y, GG + x], pixels[y, GB + x] = g_rgb[v, u, 0], g_rgb[v, u, 1], g_rgb[v, u, 2]
            pixels[y, GD + x], pixels[y, GO + x] = g_depth[v, u], g_opacity[v, u]
            total = g_rgb[v, u, 0] * rgb[v, u, 0] + g_rgb[v, u, 1] * rgb[v, u, 1] + g_rgb[v, u, 2] * rgb[v, u, 2]
            pixels[y, REST + x] = total + g_depth[v, u] * depth_sum[v, u] + g_opacity[v, u] * opacity[v, u]


@njit(**INLINE)
def backward_row(
    pixels: np.ndarray, sums: np.ndarray, y: int, p: float, q: float, level: float, dy: float, color: tuple
) -> None:
    """Replay one splat over one row and add its gradient, column by column, to `sums` [GRADIENT * TILE]."""
    red, green, blue, depth = color
    for x in range(TILE):
        t = p * np.float32(x) + q
        alpha = min(exp2_above_minus_8(level - t * t), ALPHA_HIGH)
        before = pixels[y, T + x]
        after = before * (ONE - alpha)
        touched = alpha >= ALPHA_LOW
        drawn = touched and after > T_LOW
        weight = alpha * before if drawn else ZERO
        ended = -abs(before) if touched else before
        pixels[y, T + x] = after if drawn else ended
        g_red, g_green, g_blue, g_depth = pixels[y, GR + x], pixels[y, GG + x], pixels[y, GB + x], pixels[y, GD + x]
        share = weight * (red * g_red + green * g_green + blue * g_blue + depth * g_depth + pixels[y, GO + x])
        rest = pixels[y, REST + x] - share
        pixels[y, REST + x] = rest
        g_e = LN_2 * (share - alpha / (ONE - alpha) * rest)
        g_e = g_e if drawn and alpha < ALPHA_HIGH else ZERO
        g_t, g_y = g_e * t, g_e * dy
        sums[G_1 * TILE + x] += g_e
        sums[G_T * TILE + x] += g_t
        sums[G_TT * TILE + x] += g_t * t
        sums[G_TY * TILE + x] += g_t * dy
        sums[G_Y * TILE + x] += g_y
        sums[G_YY * TILE + x] += g_y * dy
        sums[G_RED * TILE + x] += weight * g_red
        sums[G_GREEN * TILE + x] += weight * g_green
        sums[G_BLUE * TILE + x] += weight * g_blue
        sums[G_DEPTH * TILE + x] += weight * g_depth


@njit(**JIT)
def backward_tile(
    records: np.ndarray,
    members: np.ndarray,
    pairs: np.ndarray,
    left: int,
    top: int,
    pixels: np.ndarray,
    gradients: np.ndarray,
) -> None:
    """Write the gradient [GRADIENT] of the j-th of `members` into row `pairs[j]` of `gradients`."""
    sums = aligned_scratch(1, GRADIENT * TILE)[0]
    batch, live = aligned_scratch(BATCH, RECORD), np.empty((2, TILE + 1), np.int64)
    prefetch_batch(records, members, 0)
    for first in range(0, len(members), BATCH):
        if find_live_rows(pixels, live) == 0:
            for j in range(first, len(members)):
                gradients[pairs[j]] = ZERO
            break
        for j in range(gather(records, members, first, batch)):
            p, r, k, log2_opacity = batch[j, P], batch[j, R], batch[j, K], batch[j, LOG2_OPACITY]
            color = (batch[j, RED], batch[j, GREEN], batch[j, BLUE], batch[j, DEPTH])
            mean_y = batch[j, MEAN_Y]
            start = p * (np.float32(left) + HALF - batch[j, MEAN_X])
            low, high = row_range(mean_y, batch[j, REACH_Y], top)
            for x in range(GRADIENT * TILE):
                sums[x] = ZERO
            for place in range(live[1, low], live[1, high]):
                y = live[0, place]
                dy = np.float32(top + y) + HALF - mean_y
                backward_row(pixels, sums, y, p, start + r * dy, log2_opacity - k * dy * dy, dy, color)
            for column in range(GRADIENT):
                total = ZERO
                for x in range(TILE):
                    total += sums[column * TILE + x]
                gradients[pairs[first + j], column] = total


@njit(**PARALLEL)
def blend_backward(
    records: np.ndarray, lists: np.ndarray, starts: np.ndarray, pairs: np.ndarray, images: tuple, cotangents: tuple
) -> np.ndarray:
    """Gradient rows float32 [pairs, GRADIENT]; `pairs` [pairs] has the row of each entry of `lists`.

    `images` are the forward outputs (rgb, depth_sum, opacity), `cotangents` the loss gradients with respect to them.
    """
    tiles = len(starts) - 1
    tiles_x = (images[2].shape[1] + TILE - 1) // TILE
    gradients = np.empty((len(lists), GRADIENT), np.float32)
    step = spread_step(tiles)
    for i in prange(tiles):
        tile = i * step % tiles
        left, top = tile % tiles_x * TILE, tile // tiles_x * TILE
        first, last = starts[tile], starts[tile + 1]
        pixels = aligned_scratch(TILE, COLUMNS)
        load_tile(pixels, left, top, images, cotangents)
        backward_tile(records, lists[first:last], pairs[first:last], left, top, pixels, gradients)
    return gradients
