"""From Gaussians to projected records: culling, EWA projection and colour, one pass, parallel over Gaussians."""

import math

import numpy as np
from numba import njit, prange

from neural_sim.rendering.cpu.binning import count_tiles
from neural_sim.rendering.cpu.color_lanes import basis_lanes, color_lanes, ray_lanes
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
    L_BLUE,
    L_BOTTOM,
    L_GREEN,
    L_K,
    L_KEEP,
    L_LEFT,
    L_LOG2,
    L_P,
    L_R,
    L_REACH_X,
    L_REACH_Y,
    L_RED,
    L_REST,
    L_RIGHT,
    L_S0,
    L_S1,
    L_S2,
    L_TOP,
    L_X,
    L_Y,
    L_Z,
    LANE_ROWS,
    LANES,
    activate_lanes,
    box_lanes,
    footprint_lanes,
    locate_lanes,
    project_lanes,
    transform_lanes,
)
from neural_sim.rendering.cpu.view_vector import HEIGHT, MODEL, PINHOLE, WIDTH


@njit(**INLINE)
def store_record(lanes: np.ndarray, j: int, records: np.ndarray, i: int) -> None:
    """Write record `i` from lane `j`."""
    records[i, MEAN_X], records[i, MEAN_Y], records[i, DEPTH] = lanes[L_X + j], lanes[L_Y + j], lanes[L_Z + j]
    records[i, P], records[i, R], records[i, K] = lanes[L_P + j], lanes[L_R + j], lanes[L_K + j]
    records[i, LOG2_OPACITY], records[i, TRANSPARENCY] = lanes[L_LOG2 + j], lanes[L_REST + j]
    records[i, RED], records[i, GREEN], records[i, BLUE] = lanes[L_RED + j], lanes[L_GREEN + j], lanes[L_BLUE + j]
    records[i, REACH_X], records[i, REACH_Y] = lanes[L_REACH_X + j], lanes[L_REACH_Y + j]
    records[i, SCALE], records[i, SCALE + 1] = lanes[L_S0 + j], lanes[L_S1 + j]
    records[i, SCALE + 2] = lanes[L_S2 + j]


@njit(**JIT)
def store_lanes(
    lanes: np.ndarray,
    start: int,
    end: int,
    records: np.ndarray,
    boxes: np.ndarray,
    spans: np.ndarray,
    visible: np.ndarray,
    keys: np.ndarray,
    counts: np.ndarray,
    chunk: int,
    tiles_x: int,
) -> int:
    """Records, boxes and `keys` of the Gaussians `start` to `end` that are drawn, and how many these are.

    Adds to row `chunk` of `counts` [chunks, tiles] in which tiles they are.
    """
    drawn, bits = 0, lanes.view(np.uint32)
    for i in range(start, end):
        j = i - start
        visible[i] = lanes[L_KEEP + j] > ZERO
        if visible[i]:
            store_record(lanes, j, records, i)
            boxes[i, 0], boxes[i, 1] = np.int16(lanes[L_LEFT + j]), np.int16(lanes[L_RIGHT + j])
            boxes[i, 2], boxes[i, 3] = np.int16(lanes[L_TOP + j]), np.int16(lanes[L_BOTTOM + j])
            count_tiles(records, boxes, spans, i, tiles_x, counts, chunk)
            keys[drawn] = (np.uint64(bits[L_Z + j]) << np.uint64(32)) | np.uint64(i)
            drawn += 1
    return drawn


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


@njit(**JIT)
def fill_lanes(
    parameters: tuple,
    offsets: np.ndarray,
    frame: int,
    start: int,
    end: int,
    poses: tuple,
    view: np.ndarray,
    lanes: np.ndarray,
    basis: np.ndarray,
) -> None:
    """Everything about the Gaussians `start` to `end`, all in `frame` of a pinhole view, or which are located already.

    `frame` is -1 for those that are located; `poses` are float32 knots and the camera centres; `view` is float32.
    """
    _, quaternions, log_scales, logits, sh = parameters
    knots, eyes = poses
    count, terms = end - start, sh.shape[1]
    block_offsets = offsets.reshape(-1) if len(offsets) == 1 else offsets[start:end].reshape(-1)
    activate_lanes(log_scales[start:end].reshape(-1), logits[start:end], block_offsets, lanes)
    if frame >= 0:
        project_lanes(quaternions[start:end].reshape(-1), knots[0, frame], view, lanes)
    else:
        footprint_lanes(quaternions[start:end].reshape(-1), view, lanes)
    if terms > 1:
        if frame >= 0:
            ray_lanes(parameters[0][start:end].reshape(-1), eyes[frame], lanes)
        basis_lanes(count, lanes, basis)
    color_lanes(sh[start:end].reshape(-1), count, lanes, basis)


@njit(**PARALLEL)
def project(
    parameters: tuple,
    offsets: np.ndarray,
    owners: np.ndarray,
    knots: np.ndarray,
    view: np.ndarray,
    records: np.ndarray,
    boxes: np.ndarray,
    spans: np.ndarray,
    visible: np.ndarray,
    times: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fill `records` [N, RECORD], `boxes` int16 [N, 4], `spans` uint64 [N] and `visible` [N] of all that is drawn.

    `parameters` are means, quaternions, log scales, logits and sh. Centres are moved by `offsets` [N or 1, 2] px.
    `owners` int32 [N], or [0] for all 0, says in which frame of `knots` [S, frames, 4, 4] a Gaussian is. `times` [N]
    gets when each is drawn, unless it is empty. A box is the tiles (first x, past x, first y, past y) that a splat's
    bounding box reaches, for its span see `count_tiles`.

    Returns keys uint64 [N], those of each chunk from its first place on; how many each chunk has, [CHUNKS]; and how
    many of them are in each tile, int32 [CHUNKS, tiles]. A key is the bits of the depth above the Gaussian's index:
    depths are positive, so the order of their float32 bits is their own.
    """
    count, tiles_x, tiles_y = len(visible), math.ceil(view[WIDTH] / TILE), math.ceil(view[HEIGHT] / TILE)
    keys, found = np.empty(count, np.uint64), np.zeros(CHUNKS, np.int64)
    counts = np.zeros((CHUNKS, tiles_x * tiles_y), np.int32)
    view_32, poses = view.astype(np.float32), (knots.astype(np.float32), camera_centers(knots))
    located = view[MODEL] != PINHOLE or len(knots) > 1
    for chunk in prange(CHUNKS):
        first, last = chunk_bounds(chunk, count)
        lanes, basis = aligned_scratch(LANE_ROWS, LANES).ravel(), aligned_scratch(parameters[4].shape[1], LANES).ravel()
        pose, drawn, end = np.empty((3, 4), np.float64), 0, first
        while end < last:
            start = end
            end = min(start + LANES, last) if located else run_end(owners, start, last)
            frame = -1 if located else (owners[start] if len(owners) else 0)
            if located:
                ahead = locate_lanes(parameters[0], owners, start, end, knots, view, lanes, pose, times)
            else:
                ahead = transform_lanes(parameters[0][start:end].reshape(-1), knots[0, frame], lanes)
            if not ahead:
                visible[start:end] = False
                continue
            fill_lanes(parameters, offsets, frame, start, end, poses, view_32, lanes, basis)
            box_lanes(end - start, tiles_x, tiles_y, lanes)
            drawn += store_lanes(
                lanes, start, end, records, boxes, spans, visible, keys[first + drawn :], counts, chunk, tiles_x
            )
        found[chunk] = drawn
    return keys, found, counts
