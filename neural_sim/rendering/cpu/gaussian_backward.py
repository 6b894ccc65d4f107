"""Gradient of the projection of one Gaussian: from its summed pair gradients to its parameters and its pose."""

import math

import numpy as np
from numba import njit

from neural_sim.rendering.cpu.exposure import camera_point
from neural_sim.rendering.cpu.harmonics import basis_gradient, fill_basis
from neural_sim.rendering.cpu.layout import (
    G_1,
    G_DEPTH,
    G_RED,
    G_T,
    G_TT,
    G_TY,
    G_Y,
    G_YY,
    INLINE,
    JIT,
    LOG2_E,
    RED,
    SCALE,
    TRANSPARENCY,
    WHITEN,
    K,
    P,
    R,
)
from neural_sim.rendering.cpu.projection_geometry import (
    BLUR,
    covariance_and_determinants,
    footprint_axes,
    projection_rows,
    rotation_from_quaternion,
    unit_quaternion,
)
from neural_sim.rendering.cpu.view_vector import ANTIALIAS, FX, FY, U_HIGH, U_LOW, V_HIGH, V_LOW


@njit(**INLINE)
def center_and_covariance_gradient(records: np.ndarray, i: int, totals: np.ndarray, row: int) -> tuple:
    """Gradient with respect to the centre (x, y) px and the covariance (a, b, c), b once per off-diagonal entry.

    e = level - whiten^2 d^T C d with C the inverse covariance, and whiten^2 C d = (p t, r t + k dy); so
    dL/dcovariance = sum g_e (C d)(C d)^T whiten^2.
    """
    p, r, k = float(records[i, P]), float(records[i, R]), float(records[i, K])
    g_t, g_tt, g_ty = totals[row, G_T], totals[row, G_TT], totals[row, G_TY]
    scale = 1.0 / (WHITEN * WHITEN)
    g_a = scale * p * p * g_tt
    g_b = scale * p * (r * g_tt + k * g_ty)
    g_c = scale * (r * r * g_tt + 2.0 * r * k * g_ty + k * k * totals[row, G_YY])
    return 2.0 * p * g_t, 2.0 * (k * totals[row, G_Y] + r * g_t), g_a, g_b, g_c


@njit(**INLINE)
def quaternion_gradient(x: float, y: float, z: float, w: float, norm: float, g: tuple) -> tuple:
    """Gradient (x, y, z, w) through a rotation matrix with gradient `g`, row by row; (x, y, z, w) has norm 1."""
    g00, g01, g02, g10, g11, g12, g20, g21, g22 = g
    g_x = y * (g01 + g10) + z * (g02 + g20) - 2.0 * x * (g11 + g22) + w * (g21 - g12)
    g_y = x * (g01 + g10) + z * (g12 + g21) - 2.0 * y * (g00 + g22) + w * (g02 - g20)
    g_z = x * (g02 + g20) + y * (g12 + g21) - 2.0 * z * (g00 + g11) + w * (g10 - g01)
    g_w = x * (g21 - g12) + y * (g02 - g20) + z * (g10 - g01)
    along = x * g_x + y * g_y + z * g_z + w * g_w
    scale = 2.0 / norm
    return scale * (g_x - x * along), scale * (g_y - y * along), scale * (g_z - z * along), scale * (g_w - w * along)


@njit(**INLINE)
def matrix_gradients(rows: tuple, rotation: tuple, n: tuple) -> tuple[tuple, tuple]:
    """Gradients of B (row by row) and R (row by row) from that of B R, `n`: n R^T and B^T n."""
    b00, b01, b02, b10, b11, b12 = rows
    q00, q01, q02, q10, q11, q12, q20, q21, q22 = rotation
    n00, n01, n02, n10, n11, n12 = n
    g_rows = (
        n00 * q00 + n01 * q01 + n02 * q02,
        n00 * q10 + n01 * q11 + n02 * q12,
        n00 * q20 + n01 * q21 + n02 * q22,
        n10 * q00 + n11 * q01 + n12 * q02,
        n10 * q10 + n11 * q11 + n12 * q12,
        n10 * q20 + n11 * q21 + n12 * q22,
    )
    g_rotation = (
        b00 * n00 + b10 * n10,
        b00 * n01 + b10 * n11,
        b00 * n02 + b10 * n12,
        b01 * n00 + b11 * n10,
        b01 * n01 + b11 * n11,
        b01 * n02 + b11 * n12,
        b02 * n00 + b12 * n10,
        b02 * n01 + b12 * n11,
        b02 * n02 + b12 * n12,
    )
    return g_rows, g_rotation


@njit(**INLINE)
def compensation_gradient(axes: tuple, g_level: float) -> tuple:
    """Gradient over the covariance (a, b, c) of `g_level` times log2 of the anti-aliasing factor of the opacity.

    The factor is sqrt(det S / det (S + blur)); the gradient of log det is the inverse.
    """
    a, b, c, determinant, sharp = covariance_and_determinants(axes)
    scale, inverse, inverse_sharp = 0.5 * LOG2_E * g_level, 1.0 / determinant, 1.0 / sharp
    return (
        scale * ((c - BLUR) * inverse_sharp - c * inverse),
        scale * b * (inverse - inverse_sharp),
        scale * ((a - BLUR) * inverse_sharp - a * inverse),
    )


@njit(**INLINE)
def shape_gradient(
    parameters: tuple, gradients: tuple, i: int, g_shape: tuple, record: np.ndarray, rows: tuple, antialias: bool
) -> tuple:
    """Add the gradients of quaternion and log scales through M M^T, M = B R S; return that of B, row by row.

    `g_shape` is the gradient of the covariance (a, b, c) and of log2 of the opacity.
    """
    g_a, g_b, g_c, g_level = g_shape
    qx, qy, qz, qw, norm = unit_quaternion(parameters[1], i)
    rotation = rotation_from_quaternion(qx, qy, qz, qw)
    s0, s1, s2 = float(record[i, SCALE]), float(record[i, SCALE + 1]), float(record[i, SCALE + 2])
    axes = footprint_axes(rows, rotation, (s0, s1, s2))
    if antialias:
        more_a, more_b, more_c = compensation_gradient(axes, g_level)
        g_a, g_b, g_c = g_a + more_a, g_b + more_b, g_c + more_c
    m00, m01, m02, m10, m11, m12 = axes
    n00, n10 = 2.0 * (g_a * m00 + g_b * m10), 2.0 * (g_b * m00 + g_c * m10)
    n01, n11 = 2.0 * (g_a * m01 + g_b * m11), 2.0 * (g_b * m01 + g_c * m11)
    n02, n12 = 2.0 * (g_a * m02 + g_b * m12), 2.0 * (g_b * m02 + g_c * m12)
    g_log_scales = gradients[2]
    g_log_scales[i, 0] += n00 * m00 + n10 * m10
    g_log_scales[i, 1] += n01 * m01 + n11 * m11
    g_log_scales[i, 2] += n02 * m02 + n12 * m12
    g_rows, g_rotation = matrix_gradients(rows, rotation, (n00 * s0, n01 * s1, n02 * s2, n10 * s0, n11 * s1, n12 * s2))
    g_x, g_y, g_z, g_w = quaternion_gradient(qx, qy, qz, qw, norm, g_rotation)
    g_quaternions = gradients[1]
    g_quaternions[i, 0] += g_x
    g_quaternions[i, 1] += g_y
    g_quaternions[i, 2] += g_z
    g_quaternions[i, 3] += g_w
    return g_rows


@njit(**INLINE)
def rows_gradient(
    pose: np.ndarray, view: np.ndarray, u: float, v: float, z: float, rows: tuple, g_rows: tuple, g_pose: np.ndarray
) -> tuple[float, float, float]:
    """Add the gradient of the pose through B = J R; return that of (u, v, z)."""
    b00, b01, b02, b10, b11, b12 = rows
    g00, g01, g02, g10, g11, g12 = g_rows
    ax, ay = view[FX] / z, view[FY] / z
    g_pose[0, 0] += ax * g00
    g_pose[0, 1] += ax * g01
    g_pose[0, 2] += ax * g02
    g_pose[1, 0] += ay * g10
    g_pose[1, 1] += ay * g11
    g_pose[1, 2] += ay * g12
    g_pose[2, 0] -= ax * u * g00 + ay * v * g10
    g_pose[2, 1] -= ax * u * g01 + ay * v * g11
    g_pose[2, 2] -= ax * u * g02 + ay * v * g12
    g_u = -ax * (pose[2, 0] * g00 + pose[2, 1] * g01 + pose[2, 2] * g02)
    g_v = -ay * (pose[2, 0] * g10 + pose[2, 1] * g11 + pose[2, 2] * g12)
    return g_u, g_v, -(b00 * g00 + b01 * g01 + b02 * g02 + b10 * g10 + b11 * g11 + b12 * g12) / z


@njit(**JIT)
def color_gradient(
    sh: np.ndarray,
    g_sh: np.ndarray,
    i: int,
    records: np.ndarray,
    ray: tuple,
    totals: np.ndarray,
    row: int,
    scratch: np.ndarray,
) -> tuple[float, float, float]:
    """Add to `g_sh`; return the gradient with respect to `ray`, the vector from the camera centre to the mean."""
    degree_0 = sh.shape[1] == 1
    x, y, z = ray
    inverse = 1.0 if degree_0 else 1.0 / math.sqrt(x * x + y * y + z * z)
    x, y, z = x * inverse, y * inverse, z * inverse
    basis, g_basis = scratch[0], scratch[1]
    fill_basis(basis, 0, 1, len(basis), x, y, z)
    # The clamp at zero passes no gradient.
    g_red = totals[row, G_RED] if records[i, RED] > 0.0 else 0.0
    g_green = totals[row, G_RED + 1] if records[i, RED + 1] > 0.0 else 0.0
    g_blue = totals[row, G_RED + 2] if records[i, RED + 2] > 0.0 else 0.0
    for k in range(sh.shape[1]):
        g_sh[i, k, 0] += basis[k] * g_red
        g_sh[i, k, 1] += basis[k] * g_green
        g_sh[i, k, 2] += basis[k] * g_blue
        g_basis[k] = sh[i, k, 0] * g_red + sh[i, k, 1] * g_green + sh[i, k, 2] * g_blue
    if degree_0:
        return 0.0, 0.0, 0.0
    g_x, g_y, g_z = basis_gradient(g_basis, x, y, z)
    along = x * g_x + y * g_y + z * g_z
    return inverse * (g_x - x * along), inverse * (g_y - y * along), inverse * (g_z - z * along)


@njit(**INLINE)
def point_gradient(
    means: np.ndarray, i: int, pose: np.ndarray, g_point: tuple, g_ray: tuple, g_means: np.ndarray, g_pose: np.ndarray
) -> None:
    """Spread gradients of the camera-frame mean and of the viewing ray over the mean and the pose."""
    for column in range(3):
        g_mean = pose[0, column] * g_point[0] + pose[1, column] * g_point[1] + pose[2, column] * g_point[2]
        g_means[i, column] += g_mean + g_ray[column]
        for row in range(3):
            # The ray is mean - eye with eye = -R^T t.
            g_pose[row, column] += g_point[row] * means[i, column] + pose[row, 3] * g_ray[column]
            g_pose[row, 3] += pose[row, column] * g_ray[column]
    for row in range(3):
        g_pose[row, 3] += g_point[row]


@njit(**INLINE)
def camera_ray(means: np.ndarray, i: int, pose: np.ndarray) -> tuple[float, float, float]:
    """Vector from the camera centre, -R^T t, to mean `i`, in the frame of the Gaussian, m."""
    return (
        means[i, 0] + pose[0, 0] * pose[0, 3] + pose[1, 0] * pose[1, 3] + pose[2, 0] * pose[2, 3],
        means[i, 1] + pose[0, 1] * pose[0, 3] + pose[1, 1] * pose[1, 3] + pose[2, 1] * pose[2, 3],
        means[i, 2] + pose[0, 2] * pose[0, 3] + pose[1, 2] * pose[1, 3] + pose[2, 2] * pose[2, 3],
    )


@njit(**JIT)
def project_one_backward(
    parameters: tuple,
    gradients: tuple,
    i: int,
    pose: np.ndarray,
    view: np.ndarray,
    records: np.ndarray,
    totals: np.ndarray,
    row: int,
    g_offset: np.ndarray,
    g_pose: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """Add the gradient of Gaussian `i` of a pinhole view; its pair gradients sum to row `row` of `totals`."""
    g_x, g_y, g_a, g_b, g_c = center_and_covariance_gradient(records, i, totals, row)
    g_offset[i, 0], g_offset[i, 1] = g_x, g_y
    x, y, z = camera_point(parameters[0], i, pose)
    u, v = x / z, y / z
    u_in, v_in = min(max(u, view[U_LOW]), view[U_HIGH]), min(max(v, view[V_LOW]), view[V_HIGH])
    rotation_camera = (
        pose[0, 0],
        pose[0, 1],
        pose[0, 2],
        pose[1, 0],
        pose[1, 1],
        pose[1, 2],
        pose[2, 0],
        pose[2, 1],
        pose[2, 2],
    )
    rows = projection_rows(rotation_camera, view[FX] / z, view[FY] / z, u_in, v_in)
    g_shape = (g_a, g_b, g_c, totals[row, G_1])
    g_rows = shape_gradient(parameters, gradients, i, g_shape, records, rows, view[ANTIALIAS] > 0.0)
    g_u, g_v, g_z = rows_gradient(pose, view, u_in, v_in, z, rows, g_rows, g_pose)
    g_u = view[FX] * g_x + (g_u if u == u_in else 0.0)
    g_v = view[FY] * g_y + (g_v if v == v_in else 0.0)
    g_point = (g_u / z, g_v / z, g_z + totals[row, G_DEPTH] - (g_u * u + g_v * v) / z)
    ray = camera_ray(parameters[0], i, pose)
    g_ray = color_gradient(parameters[4], gradients[4], i, records, ray, totals, row, scratch)
    point_gradient(parameters[0], i, pose, g_point, g_ray, gradients[0], g_pose)
    g_logits = gradients[3]
    g_logits[i] += totals[row, G_1] * LOG2_E * records[i, TRANSPARENCY]
