"""Colours of a block of Gaussians side by side, float32; lanes and flat arrays as in `projection_lanes`."""

import math

import numpy as np
from numba import njit

from neural_sim.rendering.cpu.harmonics import A0, fill_basis
from neural_sim.rendering.cpu.layout import HALF, JIT, ONE, ZERO
from neural_sim.rendering.cpu.projection_lanes import INFINITY, L_BLUE, L_GREEN, L_KEEP, L_RAY, L_RED, LANES


@njit(**JIT)
def ray_lanes(means: np.ndarray, eye: np.ndarray, lanes: np.ndarray) -> None:
    """Vectors from the camera centre `eye` [3] to `means` [3 n], m."""
    x, y, z = eye[0], eye[1], eye[2]
    for j in range(len(means) // 3):
        lanes[L_RAY + j] = means[3 * j] - x
        lanes[L_RAY + LANES + j] = means[3 * j + 1] - y
        lanes[L_RAY + 2 * LANES + j] = means[3 * j + 2] - z


@njit(**JIT)
def basis_lanes(count: int, lanes: np.ndarray, basis: np.ndarray) -> None:
    """Fill `basis` [terms * LANES] for the first `count` lanes, each seen along its ray of any length."""
    terms = len(basis) // LANES
    for j in range(count):
        x, y, z = lanes[L_RAY + j], lanes[L_RAY + LANES + j], lanes[L_RAY + 2 * LANES + j]
        scale = ONE / math.sqrt(x * x + y * y + z * z)
        fill_basis(basis, j, LANES, terms, x * scale, y * scale, z * scale)


@njit(**JIT)
def color_lanes(sh: np.ndarray, count: int, lanes: np.ndarray, basis: np.ndarray) -> None:
    """Colours of the lanes that are drawn, from `sh` [3 * terms * count]; one that is not finite is not drawn.

    `basis` [terms * LANES] is filled; with one term it is not looked at.
    """
    terms = len(basis) // LANES
    if terms == 1:
        for j in range(count):
            lanes[L_RED + j], lanes[L_GREEN + j] = HALF + A0 * sh[3 * j], HALF + A0 * sh[3 * j + 1]
            lanes[L_BLUE + j] = HALF + A0 * sh[3 * j + 2]
    else:
        for j in range(count):
            if lanes[L_KEEP + j] > ZERO:
                red, green, blue = HALF, HALF, HALF
                for k in range(terms):
                    weight, place = basis[k * LANES + j], 3 * (terms * j + k)
                    red += weight * sh[place]
                    green += weight * sh[place + 1]
                    blue += weight * sh[place + 2]
                lanes[L_RED + j], lanes[L_GREEN + j], lanes[L_BLUE + j] = red, green, blue
    for j in range(count):
        red, green, blue = lanes[L_RED + j], lanes[L_GREEN + j], lanes[L_BLUE + j]
        lanes[L_KEEP + j] = lanes[L_KEEP + j] if abs(red) + abs(green) + abs(blue) < INFINITY else ZERO
        lanes[L_RED + j], lanes[L_GREEN + j], lanes[L_BLUE + j] = max(red, ZERO), max(green, ZERO), max(blue, ZERO)
