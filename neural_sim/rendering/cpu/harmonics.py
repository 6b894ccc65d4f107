"""Spherical harmonics of one direction, with gradient; same basis as `neural_sim.rendering.harmonics`."""

import numpy as np
from numba import njit

from neural_sim.rendering.cpu.layout import JIT
from neural_sim.rendering.harmonics import SH_0, SH_1, SH_2, SH_3

A2, B2, C2 = SH_2
A3, B3, C3, D3, E3 = SH_3


@njit(**JIT)
def fill_basis(basis: np.ndarray, x: float, y: float, z: float) -> None:
    """Write the basis values of unit direction (x, y, z) into `basis` [1, 4, 9 or 16]."""
    basis[0] = SH_0
    if len(basis) > 1:
        basis[1], basis[2], basis[3] = -SH_1 * y, SH_1 * z, -SH_1 * x
    if len(basis) > 4:
        basis[4], basis[5], basis[6] = A2 * x * y, -A2 * y * z, B2 * (3.0 * z * z - 1.0)
        basis[7], basis[8] = -A2 * x * z, C2 * (x * x - y * y)
    if len(basis) > 9:
        basis[9], basis[10] = -A3 * y * (3.0 * x * x - y * y), B3 * x * y * z
        basis[11], basis[12] = C3 * y * (1.0 - 5.0 * z * z), D3 * z * (5.0 * z * z - 3.0)
        basis[13], basis[14] = C3 * x * (1.0 - 5.0 * z * z), E3 * z * (x * x - y * y)
        basis[15] = -A3 * x * (x * x - 3.0 * y * y)


@njit(**JIT)
def basis_gradient(g: np.ndarray, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Gradient with respect to (x, y, z) of the sum of `g` [k] times the basis values."""
    gx, gy, gz = 0.0, 0.0, 0.0
    if len(g) > 1:
        gx, gy, gz = -SH_1 * g[3], -SH_1 * g[1], SH_1 * g[2]
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
