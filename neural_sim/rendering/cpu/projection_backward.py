"""Gradient of projection: from pair gradients to Gaussian parameters and the camera pose, parallel over Gaussians."""

import math

import numpy as np
from numba import njit, prange

from neural_sim.rendering.cpu.harmonics import basis_gradient, fill_basis
from neural_sim.rendering.cpu.layout import (
    CHUNKS,
    G_1,
    G_DEPTH,
    G_RED,
    G_T,
    G_TT,
    G_TY,
    G_Y,
    G_YY,
    GRADIENT,
    JIT,
    LOG2_E,
    PARALLEL,
    RED,
    WHITEN,
    K,
    P,
    R,
    chunk_bounds,
)
from neural_sim.rendering.cpu.projection import (
    EYE_X,
    EYE_Y,
    EYE_Z,
    FX,
    FY,
    U_HIGH,
    U_LOW,
    V_HIGH,
    V_LOW,
    footprint_axes,
    rotation_from_quaternion,
)


@njit(**JIT)
def sum_pairs(pairs: np.ndarray, slots: np.ndarray, first: int, last: int, total: np.ndarray) -> None:
    """Sum a splat's gradient rows over its tiles into `total` [GRADIENT], float64, in the order of tiles."""
    total[:] = 0.0
    for j in range(first, last):
        row = pairs[slots[j]]
        for column in range(GRADIENT):
            total[column] += row[column]


@njit(**JIT)
def center_and_covariance_gradient(record: np.ndarray, g: np.ndarray) -> tuple:
    """Gradient with respect to the centre (x, y) px and the covariance (a, b, c), b once per off-diagonal entry.

    e = level - whiten^2 d^T C d with C the inverse covariance, and whiten^2 C d = (p t, r t + k dy); so
    dL/dcovariance = sum g_e (C d)(C d)^T whiten^2.
    """
    p, r, k = float(record[P]), float(record[R]), float(record[K])
    scale = 1.0 / (WHITEN * WHITEN)
    g_a = scale * p * p * g[G_TT]
    g_b = scale * p * (r * g[G_TT] + k * g[G_TY])
    g_c = scale * (r * r * g[G_TT] + 2.0 * r * k * g[G_TY] + k * k * g[G_YY])
    return 2.0 * p * g[G_T], 2.0 * (k * g[G_Y] + r * g[G_T]), g_a, g_b, g_c


@njit(**JIT)
def quaternion_gradient(q: tuple, norm: float, g: np.ndarray, out: np.ndarray) -> None:
    """Add to `out` [4] the gradient through a rotation matrix with gradient `g` [3, 3]; `q` is the unit quaternion."""
    x, y, z, w = q
    g_x = y * (g[0, 1] + g[1, 0]) + z * (g[0, 2] + g[2, 0]) - 2.0 * x * (g[1, 1] + g[2, 2]) + w * (g[2, 1] - g[1, 2])
    g_y = x * (g[0, 1] + g[1, 0]) + z * (g[1, 2] + g[2, 1]) - 2.0 * y * (g[0, 0] + g[2, 2]) + w * (g[0, 2] - g[2, 0])
    g_z = x * (g[0, 2] + g[2, 0]) + y * (g[1, 2] + g[2, 1]) - 2.0 * z * (g[0, 0] + g[1, 1]) + w * (g[1, 0] - g[0, 1])
    g_w = x * (g[2, 1] - g[1, 2]) + y * (g[0, 2] - g[2, 0]) + z * (g[1, 0] - g[0, 1])
    along = x * g_x + y * g_y + z * g_z + w * g_w
    scale = 2.0 / norm
    out[0] += scale * (g_x - x * along)
    out[1] += scale * (g_y - y * along)
    out[2] += scale * (g_z - z * along)
    out[3] += scale * (g_w - w * along)


@njit(**JIT)
def color_gradient(
    mean: np.ndarray,
    sh: np.ndarray,
    record: np.ndarray,
    view: np.ndarray,
    g: np.ndarray,
    scratch: np.ndarray,
    g_sh: np.ndarray,
) -> tuple[float, float, float]:
    """Add to `g_sh` [k, 3]; return the gradient with respect to the vector from the camera centre to the mean."""
    x, y, z = mean[0] - view[EYE_X], mean[1] - view[EYE_Y], mean[2] - view[EYE_Z]
    inverse = 1.0 / math.sqrt(x * x + y * y + z * z)
    x, y, z = x * inverse, y * inverse, z * inverse
    basis, g_basis = scratch[0], scratch[1]
    fill_basis(basis, x, y, z)
    g_basis[:] = 0.0
    for channel in range(3):
        # The clamp at zero passes no gradient.
        g_color = g[G_RED + channel] if record[RED + channel] > 0.0 else 0.0
        for k in range(len(basis)):
            g_sh[k, channel] += basis[k] * g_color
            g_basis[k] += sh[k, channel] * g_color
    g_x, g_y, g_z = basis_gradient(g_basis, x, y, z)
    along = x * g_x + y * g_y + z * g_z
    return inverse * (g_x - x * along), inverse * (g_y - y * along), inverse * (g_z - z * along)


@njit(**JIT)
def shape_gradient(
    record: np.ndarray,
    g: np.ndarray,
    quaternion: np.ndarray,
    log_scale: np.ndarray,
    pose: np.ndarray,
    view: np.ndarray,
    camera_point: tuple,
    scratch: np.ndarray,
    g_quaternion: np.ndarray,
    g_log_scale: np.ndarray,
    g_pose: np.ndarray,
) -> tuple[float, float, float]:
    """Gradient through the projected covariance M M^T, M = B Q S, B = J R; returns that of (u, v, z) through J."""
    u, v, z = camera_point
    _, _, g_a, g_b, g_c = center_and_covariance_gradient(record, g)
    norm = math.sqrt(quaternion[0] ** 2 + quaternion[1] ** 2 + quaternion[2] ** 2 + quaternion[3] ** 2)
    q = (quaternion[0] / norm, quaternion[1] / norm, quaternion[2] / norm, quaternion[3] / norm)
    rotation = rotation_from_quaternion(q[0], q[1], q[2], q[3])
    s = (math.exp(log_scale[0]), math.exp(log_scale[1]), math.exp(log_scale[2]))
    m = footprint_axes(pose, view, u, v, z, rotation, s[0], s[1], s[2])
    g_m, g_rotation, g_b0, g_b1, b0, b1 = scratch[0:2], scratch[2:5], scratch[5], scratch[6], scratch[7], scratch[8]
    for i in range(3):
        g_m[0, i], g_m[1, i] = 2.0 * (g_a * m[i] + g_b * m[3 + i]), 2.0 * (g_b * m[i] + g_c * m[3 + i])
        g_log_scale[i] += g_m[0, i] * m[i] + g_m[1, i] * m[3 + i]
        g_m[0, i] *= s[i]
        g_m[1, i] *= s[i]
        b0[i] = view[FX] / z * (pose[0, i] - u * pose[2, i])
        b1[i] = view[FY] / z * (pose[1, i] - v * pose[2, i])
    for i in range(3):
        for j in range(3):
            g_rotation[i, j] = b0[i] * g_m[0, j] + b1[i] * g_m[1, j]
        g_b0[i] = g_m[0, 0] * rotation[3 * i] + g_m[0, 1] * rotation[3 * i + 1] + g_m[0, 2] * rotation[3 * i + 2]
        g_b1[i] = g_m[1, 0] * rotation[3 * i] + g_m[1, 1] * rotation[3 * i + 1] + g_m[1, 2] * rotation[3 * i + 2]
    quaternion_gradient(q, norm, g_rotation, g_quaternion)
    g_u, g_v, g_z = 0.0, 0.0, 0.0
    for i in range(3):
        g_pose[0, i] += view[FX] / z * g_b0[i]
        g_pose[1, i] += view[FY] / z * g_b1[i]
        g_pose[2, i] -= view[FX] / z * u * g_b0[i] + view[FY] / z * v * g_b1[i]
        g_u -= view[FX] / z * pose[2, i] * g_b0[i]
        g_v -= view[FY] / z * pose[2, i] * g_b1[i]
        g_z -= (g_b0[i] * b0[i] + g_b1[i] * b1[i]) / z
    return g_u, g_v, g_z


@njit(**JIT)
def point_gradient(
    mean: np.ndarray, pose: np.ndarray, g_point: tuple, g_ray: tuple, g_mean: np.ndarray, g_pose: np.ndarray
) -> None:
    """Spread gradients of the camera-frame mean and of the viewing ray over the mean and the pose."""
    for i in range(3):
        for j in range(3):
            g_mean[j] += pose[i, j] * g_point[i]
            # The ray is mean - eye with eye = -R^T t.
            g_pose[i, j] += g_point[i] * mean[j] + pose[i, 3] * g_ray[j]
            g_pose[i, 3] += pose[i, j] * g_ray[j]
        g_pose[i, 3] += g_point[i]
        g_mean[i] += g_ray[i]


@njit(**PARALLEL)
def project_backward(
    parameters: tuple,
    pose: np.ndarray,
    view: np.ndarray,
    records: np.ndarray,
    visible: np.ndarray,
    pairs: np.ndarray,
    slots: np.ndarray,
    slot_range: np.ndarray,
    gradients: tuple,
    g_offset: np.ndarray,
) -> np.ndarray:
    """Add to `gradients`, shaped like `parameters` (means, quaternions, log scales, logits, sh); fill `g_offset`.

    Returns the gradient float64 [3, 4] with respect to the top rows of T_camera_world.
    """
    means, quaternions, log_scales, logits, sh = parameters
    g_means, g_quaternions, g_log_scales, g_logits, g_sh = gradients
    g_poses = np.zeros((CHUNKS, 3, 4), np.float64)
    for chunk in prange(CHUNKS):
        first, last = chunk_bounds(chunk, len(means))
        g, scratch, basis = np.empty(GRADIENT), np.empty((9, 3)), np.empty((2, sh.shape[1]))
        g_pose = g_poses[chunk]
        for i in range(first, last):
            if not visible[i]:
                continue
            record, mean = records[i], means[i]
            sum_pairs(pairs, slots, slot_range[i, 0], slot_range[i, 1], g)
            g_x, g_y, _, _, _ = center_and_covariance_gradient(record, g)
            g_offset[i, 0], g_offset[i, 1] = g_x, g_y
            z = pose[2, 0] * mean[0] + pose[2, 1] * mean[1] + pose[2, 2] * mean[2] + pose[2, 3]
            u = (pose[0, 0] * mean[0] + pose[0, 1] * mean[1] + pose[0, 2] * mean[2] + pose[0, 3]) / z
            v = (pose[1, 0] * mean[0] + pose[1, 1] * mean[1] + pose[1, 2] * mean[2] + pose[1, 3]) / z
            clamped = (min(max(u, view[U_LOW]), view[U_HIGH]), min(max(v, view[V_LOW]), view[V_HIGH]), z)
            g_u, g_v, g_z = shape_gradient(
                record,
                g,
                quaternions[i],
                log_scales[i],
                pose,
                view,
                clamped,
                scratch,
                g_quaternions[i],
                g_log_scales[i],
                g_pose,
            )
            g_u = view[FX] * g_x + (g_u if u == clamped[0] else 0.0)
            g_v = view[FY] * g_y + (g_v if v == clamped[1] else 0.0)
            g_point = (g_u / z, g_v / z, g_z + g[G_DEPTH] - (g_u * u + g_v * v) / z)
            g_ray = color_gradient(mean, sh[i], record, view, g, basis, g_sh[i])
            point_gradient(mean, pose, g_point, g_ray, g_means[i], g_pose)
            g_logits[i] += g[G_1] * LOG2_E / (1.0 + math.exp(logits[i]))
    total = np.zeros((3, 4), np.float64)
    for chunk in range(CHUNKS):
        total += g_poses[chunk]
    return total
