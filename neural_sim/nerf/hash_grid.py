"""The multi-resolution hash grid of nerfstudio, on the CPU at many times its speed.

`nerfstudio.field_components.encodings.HashEncoding.pytorch_fwd` looks up the eight corners of a cell by eight torch
gathers of every level, and differentiates them by eight scatters into a table of its own each. The kernels here compute
the same function of the same table in one pass, so the weights stay nerfstudio's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

# Factors of Instant-NGP's hash (Mueller et al. 2022, equation 4).
_FACTOR_X, _FACTOR_Y, _FACTOR_Z = np.uint32(1), np.uint32(2654435761), np.uint32(805459861)
_BLOCK = 8192


class _Encode(torch.autograd.Function):
    """Hash grid features, differentiable in the table; positions get no gradient."""

    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, scalings: Tensor) -> Tensor:
        found = torch.empty(len(positions), 2 * len(scalings), dtype=torch.float32)
        arrays = positions.detach().contiguous().numpy(), table.detach().numpy(), scalings.numpy()
        _look_up(*arrays, found.numpy())
        ctx.arrays = arrays
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        positions, table, scalings = ctx.arrays
        gradient = np.zeros_like(table)
        _scatter(positions, gradients[0].contiguous().numpy(), scalings, gradient)
        return None, torch.from_numpy(gradient), None


def encode(
    positions: Float[Tensor, "n 3"], table: Float[Tensor, "rows 2"], scalings: Float[Tensor, "levels"]
) -> Float[Tensor, "n features"]:
    """The two trilinear features of positions in 0..1 at every level, level by level; CPU tensors, float32.

    The rows of `table` hold the levels one after the other, each a hash table of the same size, a power of two;
    `scalings` are the cells along an edge. Differentiable in `table`. Independent of the number of threads.
    """
    found = _Encode.apply(positions, table, scalings.float())
    assert isinstance(found, Tensor)
    return found


def use_fast_hash_grids(model: torch.nn.Module) -> None:
    """Let every nerfstudio hash grid in `model` compute by `encode` when it is given CPU tensors."""
    from nerfstudio.field_components.encodings import HashEncoding  # pyright: ignore[reportMissingImports]

    for module in model.modules():
        if isinstance(module, HashEncoding):
            slow: Any = module.pytorch_fwd
            vars(module)["pytorch_fwd"] = _fast(module, slow)


def _fast(module: Any, slow: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def pytorch_fwd(in_tensor: Tensor) -> Tensor:
        if in_tensor.is_cuda:
            return slow(in_tensor)
        found = encode(in_tensor.reshape(-1, 3).float(), module.hash_table, module.scalings)
        return found.view(*in_tensor.shape[:-1], found.shape[-1])

    return pytorch_fwd


@njit(cache=True, inline="always")
def _cell(x: np.float32, factor: np.uint32) -> tuple[np.uint32, np.uint32, np.float32, np.float32]:
    """Hashed lower and upper corner of a coordinate and their weights.

    Only the low bits of a hash are used, and those of a product do not depend on the high bits of its factors.
    """
    low = np.floor(x)
    corner = np.uint32(np.int32(low)) * factor
    above = x - low
    return corner, corner + factor, np.float32(1) - above, above


@njit(cache=True, parallel=True, error_model="numpy", fastmath={"contract"})
def _look_up(positions: np.ndarray, table: np.ndarray, scalings: np.ndarray, found: np.ndarray) -> None:
    count, levels = len(positions), len(scalings)
    size = len(table) // levels
    mask = np.uint32(size - 1)
    for block in prange((count + _BLOCK - 1) // _BLOCK):
        # Level by level, so that one level's table stays in the cache.
        for level in range(levels):
            scaling, rows = scalings[level], table[level * size : (level + 1) * size]
            for i in range(block * _BLOCK, min(count, (block + 1) * _BLOCK)):
                x0, x1, wx0, wx1 = _cell(positions[i, 0] * scaling, _FACTOR_X)
                y0, y1, wy0, wy1 = _cell(positions[i, 1] * scaling, _FACTOR_Y)
                z0, z1, wz0, wz1 = _cell(positions[i, 2] * scaling, _FACTOR_Z)
                first, second = np.float32(0), np.float32(0)
                for x, wx in ((x0, wx0), (x1, wx1)):
                    for y, wy in ((y0, wy0), (y1, wy1)):
                        for z, wz in ((z0, wz0), (z1, wz1)):
                            row, weight = (x ^ y ^ z) & mask, wx * wy * wz
                            first += weight * rows[row, 0]
                            second += weight * rows[row, 1]
                found[i, 2 * level] = first
                found[i, 2 * level + 1] = second


@njit(cache=True, parallel=True, error_model="numpy", fastmath={"contract"})
def _scatter(positions: np.ndarray, upstream: np.ndarray, scalings: np.ndarray, gradient: np.ndarray) -> None:
    """Add the gradient of each position to the corners it was read from; threads share no level, so none collide."""
    levels = len(scalings)
    size = len(gradient) // levels
    mask = np.uint32(size - 1)
    for level in prange(levels):
        scaling, rows = scalings[level], gradient[level * size : (level + 1) * size]
        for i in range(len(positions)):
            first, second = upstream[i, 2 * level], upstream[i, 2 * level + 1]
            x0, x1, wx0, wx1 = _cell(positions[i, 0] * scaling, _FACTOR_X)
            y0, y1, wy0, wy1 = _cell(positions[i, 1] * scaling, _FACTOR_Y)
            z0, z1, wz0, wz1 = _cell(positions[i, 2] * scaling, _FACTOR_Z)
            for x, wx in ((x0, wx0), (x1, wx1)):
                for y, wy in ((y0, wy0), (y1, wy1)):
                    for z, wz in ((z0, wz0), (z1, wz1)):
                        row, weight = (x ^ y ^ z) & mask, wx * wy * wz
                        rows[row, 0] += weight * first
                        rows[row, 1] += weight * second
