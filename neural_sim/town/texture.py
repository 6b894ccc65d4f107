"""Procedural patterns that stand still in the world, filtered to the footprint of a pixel.

Every function is compiled by numba, without checks for division by zero, and works on scalars. A footprint is the
width of a pixel on the surface along one texture coordinate, in the units of that coordinate; patterns finer than it
fade to their mean, so that markings and windows do not alias.
"""

import math

from numba import njit

_MASK = 0xFFFFFFFF


@njit(cache=True, error_model="numpy")
def cell_hash(i: int, j: int, k: int) -> float:
    """A fixed pseudo-random value in [0, 1] for an integer cell."""
    h = (i * 374761393 + j * 668265263 + k * 1103515245) & _MASK
    h = ((h ^ (h >> 13)) * 1274126177) & _MASK
    return ((h ^ (h >> 16)) & _MASK) / 4294967295.0


@njit(cache=True, error_model="numpy")
def noise(x: float, y: float, seed: int) -> float:
    """Smooth noise in [-1, 1] over the plane, with one random value per unit cell."""
    i, j = math.floor(x), math.floor(y)
    fx, fy = x - i, y - j
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    i, j = int(i), int(j)
    low = cell_hash(i, j, seed) * (1 - fx) + cell_hash(i + 1, j, seed) * fx
    high = cell_hash(i, j + 1, seed) * (1 - fx) + cell_hash(i + 1, j + 1, seed) * fx
    return 2 * (low * (1 - fy) + high * fy) - 1


@njit(cache=True, error_model="numpy")
def filtered_noise(x: float, y: float, cell: float, footprint: float, seed: int) -> float:
    """Noise with cells of size `cell`, faded out where a pixel covers more than one cell."""
    weight = min(1.0, 1.5 - footprint / cell)
    if weight <= 0.0:
        return 0.0
    return weight * noise(x / cell, y / cell, seed)


@njit(cache=True, error_model="numpy")
def filtered_noise_3d(x: float, y: float, z: float, cell: float, footprint: float, seed: int) -> float:
    """Like `filtered_noise`, over space: layers of plane noise blended along z."""
    layer = math.floor(z / cell)
    share = z / cell - layer
    share = share * share * (3 - 2 * share)
    below = filtered_noise(x, y, cell, footprint, seed + 131 * int(layer))
    above = filtered_noise(x, y, cell, footprint, seed + 131 * (int(layer) + 1))
    return below * (1 - share) + above * share


@njit(cache=True, error_model="numpy")
def _pulse_integral(x: float, period: float, width: float) -> float:
    whole = math.floor(x / period)
    return whole * width + min(x - whole * period, width)


@njit(cache=True, error_model="numpy")
def stripes(x: float, period: float, width: float, footprint: float) -> float:
    """Share of a pixel covered by stripes [n period, n period + width): the exact box filter, 0..1."""
    half = max(footprint, 1e-6) / 2
    return (_pulse_integral(x + half, period, width) - _pulse_integral(x - half, period, width)) / (2 * half)


@njit(cache=True, error_model="numpy")
def band(x: float, low: float, high: float, footprint: float) -> float:
    """Share of a pixel covered by the band [low, high]: the exact box filter, 0..1."""
    half = max(footprint, 1e-6) / 2
    covered = min(x + half, high) - max(x - half, low)
    return max(covered, 0.0) / (2 * half)
