"""Spherical harmonics of one direction, with gradient; same basis as `neural_sim.rendering.harmonics`."""

import numpy as np
from numba import njit

from neural_sim.rendering.cpu.layout import INLINE, JIT, ONE
from neural_sim.rendering.harmonics import SH_0, SH_1, SH_2, SH_3

# Float32, so that float32 stays float32; with float64 operands they are exact to 4e-8.
A0, A1 = np.float32(SH_0), np.float32(SH_1)
A2, B2, C2 = (np.float32(factor) for factor in SH_2)
A3, B3, C3, D3, E3 = (np.float32(factor) for factor in SH_3)
THREE, FIVE = np.float32(3.0), np.float32(5.0)


@njit(**INLINE)
def fill_basis(basis: np.ndarray, first: int, step: int, terms: int, x: float, y: float, z: float) -> None:
    """Write the `terms` (1, 4, 9 or 16) basis values of unit direction (x, y, z) to every `step`-th place of `basis`.

    `first` is the place of the first.
    """
    basis[first] = A0
    if terms > 1:
        basis[first + step], basis[first + 2 * step], basis[first + 3 * step] = -A1 * y, A1 * z, -A1 * x
    if terms > 4:
        basis[first + 4 * step], basis[first + 5 * step] = A2 * x * y, -A2 * y * z
        basis[first + 6 * step] = B2 * (THREE * z * z - ONE)
        basis[first + 7 * step], basis[first + 8 * step] = -A2 * x * z, C2 * (x * x - y * y)
    if terms > 9:
        basis[first + 9 * step], basis[first + 10 * step] = -A3 * y * (THREE * x * x - y * y), B3 * x * y * z
        basis[first + 11 * step] = C3 * y * (ONE - FIVE * z * z)
        basis[first + 12 * step] = D3 * z * (FIVE * z * z - THREE)
        basis[first + 13 * step] = C3 * x * (ONE - FIVE * z * z)
        basis[first + 14 * step] = E3 * z * (x * x - y * y)
        basis[first + 15 * step] = -A3 * x * (x * x - THREE * y * y)


@njit(**JIT)
def basis_gradient(g: np.ndarray, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Gradient with respect to (x, y, z) of the sum of `g` [k] times the basis values."""
    gx, gy, gz = 0.0, 0.0, 0.0
    if len(g) > 1:
        gx, gy, gz = -A1 * g[3], -A1 * g[1], A1 * g[2]
    if len(g) > 4:
        gx += A2 * y * g[4] - A2 * z * g[7] + 2.0 * C2 * x * g[8]
        gy += A2 * x * g[4] - A2 * z * g[5] - 2.0 * C2 * y * g[8]
        gz += -A2 * y * g[5] + 6.0 * B2 * z * g[6] - A2 * x * g[7]
    if len(g) > 9:
        xx, yy, zz = x * x, y * y, z * z
        gx += -6.0 * A3 * x * y * g[9] + B3 * y * z * g[10] + C3 * (1.0 - 5.0 * zz) * g[13]
        gx += 2.0 * E3 * x * z * g[14] - 3.0 * A3 * (xx - yy) * g[15]
        gy += -3.0 * A3 * (xx - yy) * g[9] + B3 * x * z * g[10] + C3 * (1.0 - 5.0 * zz) * g[11]
        gy += -2.0 * E3 * y * z * g[14] + 6.0 * A3 * x * y * g[15]
        gz += B3 * x * y * g[10] - 10.0 * C3 * y * z * g[11] + D3 * (15.0 * zz - 3.0) * g[12]
        gz += -10.0 * C3 * x * z * g[13] + E3 * (xx - yy) * g[14]
    return gx, gy, gz
