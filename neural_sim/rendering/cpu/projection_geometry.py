"""Geometry of one projected Gaussian, in the type of its arguments; shared by the forward and the backward pass."""

import math

import numpy as np
from numba import njit

from neural_sim.rendering.cpu.layout import HALF, INLINE, ONE
from neural_sim.rendering.views import BLUR_PX2

# Float32, so that float32 stays float32; with float64 operands they do not matter.
TWO, BLUR = np.float32(2.0), np.float32(BLUR_PX2)


@njit(**INLINE)
def unit_quaternion(quaternions: np.ndarray, i: int) -> tuple[float, float, float, float, float]:
    """(x, y, z, w) of norm 1, and the norm before."""
    x, y, z, w = float(quaternions[i, 0]), float(quaternions[i, 1]), float(quaternions[i, 2]), float(quaternions[i, 3])
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    inverse = 1.0 / norm
    return x * inverse, y * inverse, z * inverse, w * inverse, norm


@njit(**INLINE)
def rotation_from_quaternion(x: float, y: float, z: float, w: float) -> tuple:
    """Rotation matrix, row by row, of a unit quaternion."""
    return (
        ONE - TWO * (y * y + z * z),
        TWO * (x * y - w * z),
        TWO * (x * z + w * y),
        TWO * (x * y + w * z),
        ONE - TWO * (x * x + z * z),
        TWO * (y * z - w * x),
        TWO * (x * z - w * y),
        TWO * (y * z + w * x),
        ONE - TWO * (x * x + y * y),
    )


@njit(**INLINE)
def projection_rows(rotation_camera: tuple, ax: float, ay: float, u: float, v: float) -> tuple:
    """The 2x3 matrix B = J R_camera_world, row by row, px / m; ax = fx / z, ay = fy / z.

    (u, v) is (x / z, y / z) inside the limits of J, `rotation_camera` is R_camera_world row by row.
    """
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = rotation_camera
    return (
        ax * (r00 - u * r20),
        ax * (r01 - u * r21),
        ax * (r02 - u * r22),
        ay * (r10 - v * r20),
        ay * (r11 - v * r21),
        ay * (r12 - v * r22),
    )


@njit(**INLINE)
def footprint_axes(rows: tuple, rotation: tuple, scales: tuple) -> tuple:
    """The 2x3 matrix M = B R S, row by row, px: M M^T is the projected covariance."""
    b00, b01, b02, b10, b11, b12 = rows
    q00, q01, q02, q10, q11, q12, q20, q21, q22 = rotation
    s0, s1, s2 = scales
    return (
        (b00 * q00 + b01 * q10 + b02 * q20) * s0,
        (b00 * q01 + b01 * q11 + b02 * q21) * s1,
        (b00 * q02 + b01 * q12 + b02 * q22) * s2,
        (b10 * q00 + b11 * q10 + b12 * q20) * s0,
        (b10 * q01 + b11 * q11 + b12 * q21) * s1,
        (b10 * q02 + b11 * q12 + b12 * q22) * s2,
    )


@njit(**INLINE)
def covariance_and_determinants(axes: tuple) -> tuple[float, float, float, float, float]:
    """Blurred covariance (a, b, c) px^2, its determinant, and that before the blur; sums of squares never cancel."""
    m00, m01, m02, m10, m11, m12 = axes
    a, c = m00 * m00 + m01 * m01 + m02 * m02, m10 * m10 + m11 * m11 + m12 * m12
    b = m00 * m10 + m01 * m11 + m02 * m12
    minor_0, minor_1, minor_2 = m00 * m11 - m01 * m10, m00 * m12 - m02 * m10, m01 * m12 - m02 * m11
    # Cauchy-Binet: det(M M^T) is the sum of the squared 2x2 minors of M.
    sharp = minor_0 * minor_0 + minor_1 * minor_1 + minor_2 * minor_2
    return a + BLUR, b, c + BLUR, sharp + BLUR * (a + c + BLUR), sharp


@njit(**INLINE)
def misses(center: float, reach: float, size: float) -> bool:
    """Whether no pixel centre of an image side of `size` px lies within `reach` of `center`; true for NaN."""
    return not ((center + reach >= HALF) & (center - reach <= size - HALF))
