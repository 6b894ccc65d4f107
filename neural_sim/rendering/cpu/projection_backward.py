"""Gradient of projection: from pair gradients to Gaussian parameters and poses, parallel over Gaussians."""

import numpy as np
from numba import njit, prange

from neural_sim.rendering.cpu.gaussian_backward import project_one_backward
from neural_sim.rendering.cpu.layout import CHUNKS, GRADIENT, JIT, PARALLEL, chunk_bounds
from neural_sim.rendering.cpu.located_backward import located_one_backward
from neural_sim.rendering.cpu.view_vector import MODEL, PINHOLE

# Gaussians whose pair gradients are fetched together: misses overlap only in a loop without arithmetic.
BLOCK = 64


@njit(**JIT)
def sum_pairs(
    pair_gradients: np.ndarray,
    pair_range: np.ndarray,
    visible: np.ndarray,
    first: int,
    last: int,
    totals: np.ndarray,
) -> None:
    """Sum the gradient rows of Gaussians `first` to `last` over their tiles into `totals` [BLOCK, GRADIENT], float64.

    The order of the sum is that of the tiles, whichever thread drew them.
    """
    for i in range(first, last):
        for column in range(GRADIENT):
            totals[i - first, column] = 0.0
        if visible[i]:
            for j in range(pair_range[i, 0], pair_range[i, 1]):
                for column in range(GRADIENT):
                    totals[i - first, column] += pair_gradients[j, column]


@njit(**JIT)
def pinhole_block_backward(
    parameters: tuple,
    gradients: tuple,
    first: int,
    last: int,
    owners: np.ndarray,
    knots: np.ndarray,
    view: np.ndarray,
    records: np.ndarray,
    visible: np.ndarray,
    totals: np.ndarray,
    g_offset: np.ndarray,
    g_knots: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """Add the gradients of Gaussians `first` to `last`, whose pair gradients are summed in `totals`.

    A loop of its own around the one call: inside a larger one it is not inlined, and handing over ten arrays costs as
    much as the arithmetic.
    """
    frame = 0
    pose, g_pose = knots[0, 0], g_knots[0, 0]
    for i in range(first, last):
        if not visible[i]:
            continue
        if len(owners) and owners[i] != frame:
            frame = owners[i]
            pose, g_pose = knots[0, frame], g_knots[0, frame]
        project_one_backward(
            parameters, gradients, i, pose, view, records, totals, i - first, g_offset, g_pose, scratch
        )


@njit(**JIT)
def located_block_backward(
    parameters: tuple,
    gradients: tuple,
    first: int,
    last: int,
    owners: np.ndarray,
    knots: np.ndarray,
    view: np.ndarray,
    times: np.ndarray,
    records: np.ndarray,
    visible: np.ndarray,
    totals: np.ndarray,
    g_offset: np.ndarray,
    g_knots: np.ndarray,
    scratch: np.ndarray,
    poses: np.ndarray,
) -> None:
    """As `pinhole_block_backward`, through any lens, each Gaussian at its own time; `poses` [2, 3, 4] is scratch."""
    for i in range(first, last):
        if not visible[i]:
            continue
        frame, time = owners[i] if len(owners) else 0, times[i] if len(knots) > 1 else 0.0
        located_one_backward(
            parameters,
            gradients,
            i,
            frame,
            knots,
            time,
            view,
            records,
            totals,
            i - first,
            g_offset,
            g_knots,
            scratch,
            poses,
        )


@njit(**PARALLEL)
def project_backward(
    parameters: tuple,
    gradients: tuple,
    owners: np.ndarray,
    knots: np.ndarray,
    view: np.ndarray,
    times: np.ndarray,
    records: np.ndarray,
    visible: np.ndarray,
    pair_gradients: np.ndarray,
    pair_range: np.ndarray,
    g_offset: np.ndarray,
) -> np.ndarray:
    """Add to `gradients`, shaped like `parameters` (means, quaternions, log scales, logits, sh); fill `g_offset`.

    Returns the gradient float64 [S, frames, 3, 4] with respect to the top rows of `knots`.
    """
    count, one_by_one = len(visible), view[MODEL] != PINHOLE or len(knots) > 1
    g_knots = np.zeros((CHUNKS, knots.shape[0], knots.shape[1], 3, 4), np.float64)
    for chunk in prange(CHUNKS):
        start, end = chunk_bounds(chunk, count)
        totals, scratch = np.empty((BLOCK, GRADIENT)), np.empty((2, parameters[4].shape[1]))
        poses, g_chunk = np.empty((2, 3, 4)), np.zeros(g_knots.shape[1:], np.float64)
        for first in range(start, end, BLOCK):
            last = min(first + BLOCK, end)
            sum_pairs(pair_gradients, pair_range, visible, first, last, totals)
            if one_by_one:
                located_block_backward(
                    parameters,
                    gradients,
                    first,
                    last,
                    owners,
                    knots,
                    view,
                    times,
                    records,
                    visible,
                    totals,
                    g_offset,
                    g_chunk,
                    scratch,
                    poses,
                )
            else:
                pinhole_block_backward(
                    parameters,
                    gradients,
                    first,
                    last,
                    owners,
                    knots,
                    view,
                    records,
                    visible,
                    totals,
                    g_offset,
                    g_chunk,
                    scratch,
                )
        g_knots[chunk] = g_chunk
    total = np.zeros(g_knots.shape[1:], np.float64)
    for chunk in range(CHUNKS):
        total += g_knots[chunk]
    return total
