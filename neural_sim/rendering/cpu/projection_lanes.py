"""Projection of a block of Gaussians side by side: branch-free loops over lanes, all float32, for the vector units.

Scratch is one array in which each quantity has `LANES` consecutive places, at fixed distances: only then does the
compiler see that the loops may be vectorised.
"""

import math

import numpy as np
from numba import njit

from neural_sim.rendering.cpu.elementary import exp, log2
from neural_sim.rendering.cpu.layout import INLINE, JIT, LOG2_255, ONE, WHITEN, ZERO
from neural_sim.rendering.cpu.projection_geometry import (
    CX,
    CY,
    FX,
    FY,
    HEIGHT,
    U_HIGH,
    U_LOW,
    V_HIGH,
    V_LOW,
    WIDTH,
    covariance_and_determinant,
    footprint_axes,
    misses,
    projection_rows,
    rotation_from_quaternion,
)
from neural_sim.rendering.views import ALPHA_MIN, COVARIANCE_MAX_PX2, NEAR_M, QUATERNION_NORM_MIN

LANES = 128
# First places of the quantities: camera-frame x/z, y/z and z, opacity and its log2, 1 - opacity, scales, offset, then
# what the record takes over, and 1 where the Gaussian is drawn.
L_U, L_V, L_Z, L_OPACITY, L_LOG2, L_REST, L_S0, L_S1, L_S2 = (i * LANES for i in range(9))
L_OFFSET_X, L_OFFSET_Y, L_X, L_Y, L_P, L_R, L_K, L_REACH_X, L_REACH_Y, L_KEEP = (i * LANES for i in range(9, 19))
LANE_ROWS = 19

NEAR, INFINITY = np.float32(NEAR_M), np.float32(math.inf)
OPACITY_MIN, LEVEL_0 = np.float32(ALPHA_MIN), np.float32(LOG2_255)
COVARIANCE_MAX, NORM_MIN = np.float32(COVARIANCE_MAX_PX2), np.float32(QUATERNION_NORM_MIN)
WHITEN_1, WHITEN_2 = np.float32(WHITEN), np.float32(WHITEN * WHITEN)


@njit(**JIT)
def transform_lanes(means: np.ndarray, pose: np.ndarray, lanes: np.ndarray) -> bool:
    """Camera-frame points of `means` [n, 3]; false if all lie behind the near plane."""
    r00, r01, r02, t0 = pose[0, 0], pose[0, 1], pose[0, 2], pose[0, 3]
    r10, r11, r12, t1 = pose[1, 0], pose[1, 1], pose[1, 2], pose[1, 3]
    r20, r21, r22, t2 = pose[2, 0], pose[2, 1], pose[2, 2], pose[2, 3]
    ahead = 0
    for j in range(len(means)):
        x, y, z = means[j, 0], means[j, 1], means[j, 2]
        depth = np.float32(r20 * x + r21 * y + r22 * z + t2)
        inverse = ONE / depth
        lanes[L_U + j] = np.float32(r00 * x + r01 * y + r02 * z + t0) * inverse
        lanes[L_V + j] = np.float32(r10 * x + r11 * y + r12 * z + t1) * inverse
        lanes[L_Z + j] = depth
        ahead += 1 if depth >= NEAR else 0
    return ahead > 0


@njit(**JIT)
def activate_lanes(log_scales: np.ndarray, logits: np.ndarray, offsets: np.ndarray, lanes: np.ndarray) -> None:
    """Scales from `log_scales` [n, 3], opacities from `logits` [n], offsets from `offsets` [n or 1, 2]."""
    for j in range(len(logits)):
        odds = exp(-logits[j])
        opacity = ONE / (ONE + odds)
        lanes[L_OPACITY + j] = opacity if logits[j] == logits[j] else ZERO
        lanes[L_LOG2 + j] = -log2(ONE + odds)
        lanes[L_REST + j] = odds * opacity
    for j in range(len(logits)):
        lanes[L_S0 + j] = exp(log_scales[j, 0])
        lanes[L_S1 + j] = exp(log_scales[j, 1])
        lanes[L_S2 + j] = exp(log_scales[j, 2])
        sound = abs(log_scales[j, 0]) + abs(log_scales[j, 1]) + abs(log_scales[j, 2]) < INFINITY
        lanes[L_KEEP + j] = ONE if sound else ZERO
    shared = len(offsets) == 1
    for j in range(len(logits)):
        row = 0 if shared else j
        lanes[L_OFFSET_X + j], lanes[L_OFFSET_Y + j] = offsets[row, 0], offsets[row, 1]


@njit(**INLINE)
def store_footprint(lanes: np.ndarray, j: int, a: float, b: float, c: float, determinant: float) -> None:
    """Record columns of one lane from its blurred covariance (a, b, c) px^2 and determinant."""
    scale = WHITEN_1 / math.sqrt(c * determinant)
    lanes[L_P + j], lanes[L_R + j], lanes[L_K + j] = scale * c, -scale * b, WHITEN_2 / c
    # alpha reaches 1/255 at sqrt(2 ln(255 opacity)) standard deviations.
    reach2 = (lanes[L_LOG2 + j] + LEVEL_0) / WHITEN_2
    lanes[L_REACH_X + j], lanes[L_REACH_Y + j] = math.sqrt(reach2 * a), math.sqrt(reach2 * c)


@njit(**JIT)
def project_lanes(quaternions: np.ndarray, pose: np.ndarray, view: np.ndarray, lanes: np.ndarray) -> None:
    """Footprints in the image, and which lanes are drawn; `pose` [3, 4] and `view` are float32."""
    fx, fy, cx, cy, width, height = view[FX], view[FY], view[CX], view[CY], view[WIDTH], view[HEIGHT]
    u_low, u_high, v_low, v_high = view[U_LOW], view[U_HIGH], view[V_LOW], view[V_HIGH]
    r00, r01, r02 = pose[0, 0], pose[0, 1], pose[0, 2]
    r10, r11, r12 = pose[1, 0], pose[1, 1], pose[1, 2]
    r20, r21, r22 = pose[2, 0], pose[2, 1], pose[2, 2]
    rotation_camera = (r00, r01, r02, r10, r11, r12, r20, r21, r22)
    for j in range(len(quaternions)):
        u, v, z = lanes[L_U + j], lanes[L_V + j], lanes[L_Z + j]
        mean_x, mean_y = fx * u + cx + lanes[L_OFFSET_X + j], fy * v + cy + lanes[L_OFFSET_Y + j]
        qx, qy, qz, qw = quaternions[j, 0], quaternions[j, 1], quaternions[j, 2], quaternions[j, 3]
        norm = math.sqrt(qx * qx + qy * qy + qz * qz + qw * qw)
        inverse = ONE / norm
        rotation = rotation_from_quaternion(qx * inverse, qy * inverse, qz * inverse, qw * inverse)
        u, v = min(max(u, u_low), u_high), min(max(v, v_low), v_high)
        rows = projection_rows(rotation_camera, fx / z, fy / z, u, v)
        scales = (lanes[L_S0 + j], lanes[L_S1 + j], lanes[L_S2 + j])
        a, b, c, determinant = covariance_and_determinant(footprint_axes(rows, rotation, scales))
        store_footprint(lanes, j, a, b, c, determinant)
        lanes[L_X + j], lanes[L_Y + j] = mean_x, mean_y
        sound = (z >= NEAR) & (z < INFINITY) & (lanes[L_OPACITY + j] >= OPACITY_MIN) & (norm > NORM_MIN)
        sound = sound & (norm < INFINITY) & (a < COVARIANCE_MAX) & (c < COVARIANCE_MAX) & (determinant < INFINITY)
        hit = ~misses(mean_x, lanes[L_REACH_X + j], width) & ~misses(mean_y, lanes[L_REACH_Y + j], height)
        lanes[L_KEEP + j] = lanes[L_KEEP + j] if sound & hit else ZERO
