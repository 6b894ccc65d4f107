"""From Gaussians to projected records: culling, EWA projection and colour, one pass, parallel over Gaussians."""

import math

import numpy as np
from numba import njit, prange

from neural_sim.rendering.cpu.harmonics import fill_basis
from neural_sim.rendering.cpu.layout import (
    BLUE,
    CHUNKS,
    DEPTH,
    GREEN,
    INLINE,
    JIT,
    LOG2_OPACITY,
    MEAN_X,
    MEAN_Y,
    PARALLEL,
    REACH_X,
    REACH_Y,
    RED,
    SCALE,
    TILE,
    TRANSPARENCY,
    ZERO,
    K,
    P,
    R,
    aligned_scratch,
    chunk_bounds,
)
from neural_sim.rendering.cpu.projection_lanes import (
    L_K,
    L_KEEP,
    L_LOG2,
    L_P,
    L_R,
    L_RAY,
    L_REACH_X,
    L_REACH_Y,
    L_REST,
    L_S0,
    L_S1,
    L_S2,
    L_X,
    L_Y,
    L_Z,
    LANE_ROWS,
    LANES,
    activate_lanes,
    footprint_lanes,
    locate_lanes,
    project_lanes,
    transform_lanes,
)
from neural_sim.rendering.cpu.view_vector import HEIGHT, MODEL, PINHOLE, WIDTH
from neural_sim.rendering.harmonics import SH_0


@njit(**INLINE)
def store_record(lanes: np.ndarray, j: int, records: np.ndarray, i: int) -> None:
    """Write all of record `i` but its colour from lane `j`."""
    records[i, MEAN_X], records[i, MEAN_Y], records[i, DEPTH] = lanes[L_X + j], lanes[L_Y + j], lanes[L_Z + j]
    records[i, P], records[i, R], records[i, K] = lanes[L_P + j], lanes[L_R + j], lanes[L_K + j]
    records[i, LOG2_OPACITY], records[i, TRANSPARENCY] = lanes[L_LOG2 + j], lanes[L_REST + j]
    records[i, REACH_X], records[i, REACH_Y] = lanes[L_REACH_X + j], lanes[L_REACH_Y + j]
    records[i, SCALE], records[i, SCALE + 1] = lanes[L_S0 + j], lanes[L_S1 + j]
    records[i, SCALE + 2] = lanes[L_S2 + j]


@njit(**JIT)
def color_one(sh: np.ndarray, i: int, ray: tuple, basis: np.ndarray, records: np.ndarray) -> bool:
    """Write the colour of record `i` seen along `ray`, of any length; false if it is not finite."""
    red, green, blue = 0.5, 0.5, 0.5
    if len(basis) > 1:
        x, y, z = ray
        scale = 1.0 / math.sqrt(x * x + y * y + z * z)
        fill_basis(basis, x * scale, y * scale, z * scale)
    else:
        basis[0] = SH_0
    for k in range(len(basis)):
        red += basis[k] * sh[i, k, 0]
        green += basis[k] * sh[i, k, 1]
        blue += basis[k] * sh[i, k, 2]
    records[i, RED], records[i, GREEN], records[i, BLUE] = max(red, 0.0), max(green, 0.0), max(blue, 0.0)
    return abs(red) + abs(green) + abs(blue) < math.inf


@njit(**JIT)
def run_end(owners: np.ndarray, start: int, last: int) -> int:
    """End of the block of up to LANES Gaussians from `start` on that are in one frame."""
    end = min(start + LANES, last)
    if len(owners):
        for i in range(start + 1, end):
            if owners[i] != owners[start]:
                return i
    return end


@njit(**JIT)
def lane_ray(means: np.ndarray, i: int, lanes: np.ndarray, j: int, located: bool, eye: np.ndarray) -> tuple:
    """Vector from the camera centre to mean `i`, in the frame of the Gaussian, m."""
    if located:
        ray = L_RAY + j
        return float(lanes[ray]), float(lanes[ray + LANES]), float(lanes[ray + 2 * LANES])
    return means[i, 0] - eye[0], means[i, 1] - eye[1], means[i, 2] - eye[2]


@njit(**INLINE)
def tile_range(center: float, reach: float, tiles: int) -> tuple[int, int]:
    """First and one-past-last tile along one axis whose pixel centres lie within `reach` of `center`."""
    low, high = math.ceil(center - reach - 0.501), math.floor(center + reach - 0.499)
    return max(low // TILE, 0), min(high // TILE + 1, tiles)


@njit(**JIT)
def camera_centers(knots: np.ndarray) -> np.ndarray:
    """Camera centre [frames, 3] in each frame when the shutter opens."""
    eyes = np.empty((knots.shape[1], 3))
    for frame in range(len(eyes)):
        for column in range(3):
            total = 0.0
            for row in range(3):
                total -= knots[0, frame, row, column] * knots[0, frame, row, 3]
            eyes[frame, column] = total
    return eyes


@njit(**PARALLEL)
def project(
    parameters: tuple,
    offsets: np.ndarray,
    owners: np.ndarray,
    knots: np.ndarray,
    view: np.ndarray,
    records: np.ndarray,
    boxes: np.ndarray,
    visible: np.ndarray,
    times: np.ndarray,
) -> np.ndarray:
    """Fill `records` [N, RECORD], `boxes` int16 [N, 4] and `visible` [N]; return uint64 [M] keys of what is visible.

    `parameters` are means, quaternions, log scales, logits and sh. Centres are moved by `offsets` [N or 1, 2] px.
    `owners` int32 [N], or [0] for all 0, says in which frame of `knots` [S, frames, 4, 4] a Gaussian is. `times` [N]
    gets when each is drawn, unless it is empty. A box is the tiles (first x, past x, first y, past y) that a splat's
    bounding box reaches. A key is the bits of the depth above the Gaussian's index: depths are positive, so the order
    of their float32 bits is their own.
    """
    means, quaternions, log_scales, logits, sh = parameters
    count, tiles_x, tiles_y = len(means), math.ceil(view[WIDTH] / TILE), math.ceil(view[HEIGHT] / TILE)
    keys, found = np.empty(count, np.uint64), np.zeros(CHUNKS + 1, np.int64)
    bits = records.view(np.uint32)
    knots_32, view_32, eyes = knots.astype(np.float32), view.astype(np.float32), camera_centers(knots)
    one_by_one = view[MODEL] != PINHOLE or len(knots) > 1
    for chunk in prange(CHUNKS):
        first, last = chunk_bounds(chunk, count)
        basis, lanes, m = np.empty(sh.shape[1], np.float64), aligned_scratch(LANE_ROWS, LANES).ravel(), first
        pose, end_block = np.empty((3, 4), np.float64), first
        while end_block < last:
            start_block = end_block
            end_block = min(start_block + LANES, last) if one_by_one else run_end(owners, start_block, last)
            frame = owners[start_block] if len(owners) else 0
            visible[start_block:end_block] = False
            if one_by_one:
                ahead = locate_lanes(means, owners, start_block, end_block, knots, view, lanes, pose, times)
            else:
                ahead = transform_lanes(means[start_block:end_block], knots[0, frame], lanes)
            if not ahead:
                continue
            block_offsets = offsets if len(offsets) == 1 else offsets[start_block:end_block]
            activate_lanes(log_scales[start_block:end_block], logits[start_block:end_block], block_offsets, lanes)
            if one_by_one:
                footprint_lanes(quaternions[start_block:end_block], view_32, lanes)
            else:
                project_lanes(quaternions[start_block:end_block], knots_32[0, frame], view_32, lanes)
            for i in range(start_block, end_block):
                j = i - start_block
                if lanes[L_KEEP + j] <= ZERO:
                    continue
                if color_one(sh, i, lane_ray(means, i, lanes, j, one_by_one, eyes[frame]), basis, records):
                    visible[i] = True
                    store_record(lanes, j, records, i)
                    boxes[i, 0], boxes[i, 1] = tile_range(lanes[L_X + j], lanes[L_REACH_X + j], tiles_x)
                    boxes[i, 2], boxes[i, 3] = tile_range(lanes[L_Y + j], lanes[L_REACH_Y + j], tiles_y)
                    keys[m] = (np.uint64(bits[i, DEPTH]) << np.uint64(32)) | np.uint64(i)
                    m += 1
        found[chunk + 1] = m - first
    start = np.cumsum(found)
    packed = np.empty(start[CHUNKS], np.uint64)
    for chunk in prange(CHUNKS):
        first = chunk_bounds(chunk, count)[0]
        for j in range(found[chunk + 1]):
            packed[start[chunk] + j] = keys[first + j]
    return packed
