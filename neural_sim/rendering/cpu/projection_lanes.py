"""Projection of a block of Gaussians side by side: branch-free loops over lanes, all float32, for the vector units.

Scratch is one array in which each quantity has `LANES` consecutive places, at fixed distances, and parameters come as
flat arrays, so that the distance from one Gaussian to the next is a constant of the source: only then does the compiler
see that the loops may be vectorised. The rows of a [n, 3] array have a distance known only at run time, for which it
prepares vector code that never runs.
"""

import math

import numpy as np
from numba import njit

from neural_sim.rendering.cpu.elementary import exp, log2
from neural_sim.rendering.cpu.exposure import camera_point, expose
from neural_sim.rendering.cpu.layout import HALF, INLINE, JIT, LOG2_255, ONE, TILE, WHITEN, ZERO
from neural_sim.rendering.cpu.lens import depth_if_seen, image_jacobian, image_point
from neural_sim.rendering.cpu.projection_geometry import (
    covariance_and_determinants,
    footprint_axes,
    misses,
    projection_rows,
    rotation_from_quaternion,
)
from neural_sim.rendering.cpu.view_vector import (
    ANTIALIAS,
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
)
from neural_sim.rendering.views import ALPHA_MIN, COVARIANCE_MAX_PX2, NEAR_M, QUATERNION_NORM_MIN

LANES = 128
# First places of the quantities: camera-frame x/z, y/z and z, opacity and its log2, 1 - opacity, scales, offset, then
# what the record takes over, and 1 where the Gaussian is drawn. The tiles of a box are whole numbers.
L_U, L_V, L_Z, L_OPACITY, L_LOG2, L_REST, L_S0, L_S1, L_S2 = (i * LANES for i in range(9))
L_OFFSET_X, L_OFFSET_Y, L_X, L_Y, L_P, L_R, L_K, L_REACH_X, L_REACH_Y, L_KEEP = (i * LANES for i in range(9, 19))
# Of a lens or a shutter that needs each Gaussian on its own: centre px, J R row by row, ray from the camera centre.
L_MEAN_X, L_MEAN_Y, L_B, L_RAY = 19 * LANES, 20 * LANES, 21 * LANES, 27 * LANES
L_RED, L_GREEN, L_BLUE, L_LEFT, L_RIGHT, L_TOP, L_BOTTOM = (i * LANES for i in range(30, 37))
LANE_ROWS = 37

NEAR, INFINITY = np.float32(NEAR_M), np.float32(math.inf)
OPACITY_MIN, LEVEL_0 = np.float32(ALPHA_MIN), np.float32(LOG2_255)
COVARIANCE_MAX, NORM_MIN, SHARP_MIN = np.float32(COVARIANCE_MAX_PX2), np.float32(QUATERNION_NORM_MIN), np.float32(1e-30)
WHITEN_1, WHITEN_2 = np.float32(WHITEN), np.float32(WHITEN * WHITEN)
# From the edge of a splat to the index of the last pixel centre before it, with a thousandth of a pixel to spare.
EDGE, PER_TILE = np.float32(0.499), np.float32(1.0 / TILE)


@njit(**JIT)
def transform_lanes(means: np.ndarray, pose: np.ndarray, lanes: np.ndarray) -> bool:
    """Camera-frame points of `means` [3 n]; false if all lie behind the near plane."""
    r00, r01, r02, t0 = pose[0, 0], pose[0, 1], pose[0, 2], pose[0, 3]
    r10, r11, r12, t1 = pose[1, 0], pose[1, 1], pose[1, 2], pose[1, 3]
    r20, r21, r22, t2 = pose[2, 0], pose[2, 1], pose[2, 2], pose[2, 3]
    ahead = 0
    for j in range(len(means) // 3):
        x, y, z = means[3 * j], means[3 * j + 1], means[3 * j + 2]
        depth = np.float32(r20 * x + r21 * y + r22 * z + t2)
        inverse = ONE / depth
        lanes[L_U + j] = np.float32(r00 * x + r01 * y + r02 * z + t0) * inverse
        lanes[L_V + j] = np.float32(r10 * x + r11 * y + r12 * z + t1) * inverse
        lanes[L_Z + j] = depth
        ahead += 1 if depth >= NEAR else 0
    return ahead > 0


@njit(**JIT)
def activate_lanes(log_scales: np.ndarray, logits: np.ndarray, offsets: np.ndarray, lanes: np.ndarray) -> None:
    """Scales from `log_scales` [3 n], opacities from `logits` [n], offsets from `offsets` [2 n or 2]."""
    for j in range(len(logits)):
        odds = exp(-logits[j])
        opacity = ONE / (ONE + odds)
        lanes[L_OPACITY + j] = opacity if logits[j] == logits[j] else ZERO
        lanes[L_LOG2 + j] = -log2(ONE + odds)
        lanes[L_REST + j] = odds * opacity
    for j in range(len(logits)):
        log_0, log_1, log_2 = log_scales[3 * j], log_scales[3 * j + 1], log_scales[3 * j + 2]
        lanes[L_S0 + j], lanes[L_S1 + j], lanes[L_S2 + j] = exp(log_0), exp(log_1), exp(log_2)
        lanes[L_KEEP + j] = ONE if abs(log_0) + abs(log_1) + abs(log_2) < INFINITY else ZERO
    if len(offsets) == 2:
        lanes[L_OFFSET_X : L_OFFSET_X + len(logits)] = offsets[0]
        lanes[L_OFFSET_Y : L_OFFSET_Y + len(logits)] = offsets[1]
        return
    for j in range(len(logits)):
        lanes[L_OFFSET_X + j], lanes[L_OFFSET_Y + j] = offsets[2 * j], offsets[2 * j + 1]


@njit(**INLINE)
def store_footprint(lanes: np.ndarray, j: int, a: float, b: float, c: float, determinant: float) -> None:
    """Record columns of one lane from its blurred covariance (a, b, c) px^2 and determinant."""
    scale = WHITEN_1 / math.sqrt(c * determinant)
    lanes[L_P + j], lanes[L_R + j], lanes[L_K + j] = scale * c, -scale * b, WHITEN_2 / c
    # alpha reaches 1/255 at sqrt(2 ln(255 opacity)) standard deviations.
    reach2 = (lanes[L_LOG2 + j] + LEVEL_0) / WHITEN_2
    lanes[L_REACH_X + j], lanes[L_REACH_Y + j] = math.sqrt(reach2 * a), math.sqrt(reach2 * c)


@njit(**INLINE)
def finish_lane(
    lanes: np.ndarray, j: int, quaternions: np.ndarray, rows: tuple, mean_x: float, mean_y: float, view: np.ndarray
) -> None:
    """Footprint of lane `j` from `rows`, J R row by row, and whether it is drawn around (mean_x, mean_y) px."""
    qx, qy, qz, qw = quaternions[4 * j], quaternions[4 * j + 1], quaternions[4 * j + 2], quaternions[4 * j + 3]
    norm = math.sqrt(qx * qx + qy * qy + qz * qz + qw * qw)
    inverse = ONE / norm
    rotation = rotation_from_quaternion(qx * inverse, qy * inverse, qz * inverse, qw * inverse)
    scales = (lanes[L_S0 + j], lanes[L_S1 + j], lanes[L_S2 + j])
    a, b, c, determinant, sharp = covariance_and_determinants(footprint_axes(rows, rotation, scales))
    # Computed for every lane, since a branch would stop the vector units; without anti-aliasing the share is 1.
    share = np.float32(max(sharp / determinant, SHARP_MIN)) if view[ANTIALIAS] > ZERO else ONE
    opacity = lanes[L_OPACITY + j] * math.sqrt(share)
    lanes[L_LOG2 + j] += HALF * log2(share)
    store_footprint(lanes, j, a, b, c, determinant)
    lanes[L_X + j], lanes[L_Y + j] = mean_x, mean_y
    depth = lanes[L_Z + j]
    sound = (depth >= NEAR) & (depth < INFINITY) & (opacity >= OPACITY_MIN) & (norm > NORM_MIN)
    sound = sound & (norm < INFINITY) & (a < COVARIANCE_MAX) & (c < COVARIANCE_MAX) & (determinant < INFINITY)
    hit = ~misses(mean_x, lanes[L_REACH_X + j], view[WIDTH]) & ~misses(mean_y, lanes[L_REACH_Y + j], view[HEIGHT])
    lanes[L_KEEP + j] = lanes[L_KEEP + j] if sound & hit else ZERO


@njit(**JIT)
def project_lanes(quaternions: np.ndarray, pose: np.ndarray, view: np.ndarray, lanes: np.ndarray) -> None:
    """Footprints in a pinhole image, and which lanes are drawn; `pose` [4, 4] and `view` are float32."""
    fx, fy, cx, cy = view[FX], view[FY], view[CX], view[CY]
    u_low, u_high, v_low, v_high = view[U_LOW], view[U_HIGH], view[V_LOW], view[V_HIGH]
    r00, r01, r02 = pose[0, 0], pose[0, 1], pose[0, 2]
    r10, r11, r12 = pose[1, 0], pose[1, 1], pose[1, 2]
    r20, r21, r22 = pose[2, 0], pose[2, 1], pose[2, 2]
    rotation_camera = (r00, r01, r02, r10, r11, r12, r20, r21, r22)
    for j in range(len(quaternions) // 4):
        u, v, z = lanes[L_U + j], lanes[L_V + j], lanes[L_Z + j]
        mean_x, mean_y = fx * u + cx + lanes[L_OFFSET_X + j], fy * v + cy + lanes[L_OFFSET_Y + j]
        u, v = min(max(u, u_low), u_high), min(max(v, v_low), v_high)
        rows = projection_rows(rotation_camera, fx / z, fy / z, u, v)
        finish_lane(lanes, j, quaternions, rows, mean_x, mean_y, view)


@njit(**JIT)
def locate_lanes(
    means: np.ndarray,
    owners: np.ndarray,
    start: int,
    end: int,
    knots: np.ndarray,
    view: np.ndarray,
    lanes: np.ndarray,
    pose: np.ndarray,
    times: np.ndarray,
) -> bool:
    """Depth, centre, J R and ray of the Gaussians `start` to `end`, each through the lens at its own time.

    False if the lens sees none of them. `owners` is empty when all are in frame 0; `pose` [3, 4] is scratch.
    """
    ahead = 0
    for i in range(start, end):
        j, frame = i - start, owners[i] if len(owners) else 0
        time, _ = expose(means, i, knots, frame, view, pose)
        x, y, z = camera_point(means, i, pose)
        depth = depth_if_seen(view, x, y, z)
        lanes[L_Z + j] = depth
        if not depth > 0.0:
            lanes[L_Z + j] = -ONE
            continue
        ahead += 1
        if len(times):
            times[i] = time
        lanes[L_MEAN_X + j], lanes[L_MEAN_Y + j] = image_point(view, x, y, z)
        j00, j01, j02, j10, j11, j12 = image_jacobian(view, x, y, z, True)
        for column in range(3):
            r0, r1, r2 = pose[0, column], pose[1, column], pose[2, column]
            lanes[L_B + column * LANES + j] = j00 * r0 + j01 * r1 + j02 * r2
            lanes[L_B + (column + 3) * LANES + j] = j10 * r0 + j11 * r1 + j12 * r2
            # The camera centre in the frame of the Gaussian is -R^T t.
            lanes[L_RAY + column * LANES + j] = means[i, column] + r0 * pose[0, 3] + r1 * pose[1, 3] + r2 * pose[2, 3]
    return ahead > 0


@njit(**JIT)
def footprint_lanes(quaternions: np.ndarray, view: np.ndarray, lanes: np.ndarray) -> None:
    """Footprints of located lanes, and which are drawn; `view` is float32."""
    for j in range(len(quaternions) // 4):
        rows = (
            lanes[L_B + j],
            lanes[L_B + LANES + j],
            lanes[L_B + 2 * LANES + j],
            lanes[L_B + 3 * LANES + j],
            lanes[L_B + 4 * LANES + j],
            lanes[L_B + 5 * LANES + j],
        )
        mean_x, mean_y = lanes[L_MEAN_X + j] + lanes[L_OFFSET_X + j], lanes[L_MEAN_Y + j] + lanes[L_OFFSET_Y + j]
        finish_lane(lanes, j, quaternions, rows, mean_x, mean_y, view)


@njit(**JIT)
def box_lanes(count: int, tiles_x: int, tiles_y: int, lanes: np.ndarray) -> None:
    """Tiles (first x, past x, first y, past y) whose pixel centres the bounding boxes of drawn lanes reach."""
    past_x, past_y = np.float32(tiles_x), np.float32(tiles_y)
    for j in range(count):
        x, y, reach_x, reach_y = lanes[L_X + j], lanes[L_Y + j], lanes[L_REACH_X + j], lanes[L_REACH_Y + j]
        # Truncation is the floor: clipped below at zero, and above by what a lane that is drawn can reach.
        lanes[L_LEFT + j] = np.int32(min(max((x - reach_x + EDGE) * PER_TILE, ZERO), past_x))
        lanes[L_RIGHT + j] = np.int32(min(max((x + reach_x - EDGE) * PER_TILE + ONE, ZERO), past_x))
        lanes[L_TOP + j] = np.int32(min(max((y - reach_y + EDGE) * PER_TILE, ZERO), past_y))
        lanes[L_BOTTOM + j] = np.int32(min(max((y + reach_y - EDGE) * PER_TILE + ONE, ZERO), past_y))
