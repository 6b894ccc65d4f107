"""From Gaussians to projected records: culling, EWA projection and colour, one pass, parallel over Gaussians."""

import math

import numpy as np
from numba import njit, prange

from neural_sim.rendering.cpu.harmonics import fill_basis
from neural_sim.rendering.cpu.layout import (
    BLUE,
    CHUNKS,
    DEPTH,
    GREEN,
    INLINE,
    JIT,
    LOG2_E,
    LOG2_OPACITY,
    MEAN_X,
    MEAN_Y,
    PARALLEL,
    REACH_X,
    REACH_Y,
    RED,
    SCALE,
    TILE,
    TRANSPARENCY,
    WHITEN,
    K,
    P,
    R,
    chunk_bounds,
)
from neural_sim.rendering.harmonics import SH_0
from neural_sim.rendering.views import (
    ALPHA_MIN,
    BLUR_PX2,
    COVARIANCE_MAX_PX2,
    JACOBIAN_MARGIN,
    NEAR_M,
    QUATERNION_NORM_MIN,
)

LOG_ALPHA_MIN = math.log(ALPHA_MIN)
# Columns of the view vector.
FX, FY, CX, CY, U_LOW, U_HIGH, V_LOW, V_HIGH, EYE_X, EYE_Y, EYE_Z, WIDTH, HEIGHT = range(13)


def view_vector(T_camera_world: np.ndarray, intrinsics: np.ndarray, width_px: int, height_px: int) -> np.ndarray:
    """Camera as one float64 vector: intrinsics, limits of the Jacobian, camera centre in the world, image size."""
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    margin_u, margin_v = JACOBIAN_MARGIN * 0.5 * width_px / fx, JACOBIAN_MARGIN * 0.5 * height_px / fy
    eye = -T_camera_world[:3, :3].T @ T_camera_world[:3, 3]
    limits = [
        -cx / fx - margin_u,
        (width_px - cx) / fx + margin_u,
        -cy / fy - margin_v,
        (height_px - cy) / fy + margin_v,
    ]
    return np.array([fx, fy, cx, cy, *limits, *eye, width_px, height_px], np.float64)


@njit(**INLINE)
def camera_point(means: np.ndarray, i: int, pose: np.ndarray) -> tuple[float, float, float]:
    """(x / z, y / z, z) of a mean in the camera frame."""
    x, y, z = float(means[i, 0]), float(means[i, 1]), float(means[i, 2])
    depth = pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3]
    u = (pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3]) / depth
    v = (pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3]) / depth
    return u, v, depth


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
        1.0 - 2.0 * (y * y + z * z),
        2.0 * (x * y - w * z),
        2.0 * (x * z + w * y),
        2.0 * (x * y + w * z),
        1.0 - 2.0 * (x * x + z * z),
        2.0 * (y * z - w * x),
        2.0 * (x * z - w * y),
        2.0 * (y * z + w * x),
        1.0 - 2.0 * (x * x + y * y),
    )


@njit(**INLINE)
def projection_rows(pose: np.ndarray, view: np.ndarray, u: float, v: float, z: float) -> tuple:
    """The 2x3 matrix B = J R_camera_world, row by row, px / m, at (x / z, y / z) = (u, v) inside the limits of J."""
    ax, ay = view[FX] / z, view[FY] / z
    return (
        ax * (pose[0, 0] - u * pose[2, 0]),
        ax * (pose[0, 1] - u * pose[2, 1]),
        ax * (pose[0, 2] - u * pose[2, 2]),
        ay * (pose[1, 0] - v * pose[2, 0]),
        ay * (pose[1, 1] - v * pose[2, 1]),
        ay * (pose[1, 2] - v * pose[2, 2]),
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
def covariance_and_determinant(axes: tuple) -> tuple[float, float, float, float]:
    """Blurred covariance (a, b, c) px^2 and its determinant, summed from squares so that nothing cancels."""
    m00, m01, m02, m10, m11, m12 = axes
    a, c = m00 * m00 + m01 * m01 + m02 * m02, m10 * m10 + m11 * m11 + m12 * m12
    b = m00 * m10 + m01 * m11 + m02 * m12
    minor_0, minor_1, minor_2 = m00 * m11 - m01 * m10, m00 * m12 - m02 * m10, m01 * m12 - m02 * m11
    # Cauchy-Binet: det(M M^T) is the sum of the squared 2x2 minors of M.
    determinant = minor_0 * minor_0 + minor_1 * minor_1 + minor_2 * minor_2 + BLUR_PX2 * (a + c) + BLUR_PX2 * BLUR_PX2
    return a + BLUR_PX2, b, c + BLUR_PX2, determinant


@njit(**INLINE)
def misses(center: float, reach: float, size: float) -> bool:
    """Whether no pixel centre of an image side of `size` px lies within `reach` of `center`; true for NaN."""
    return not (center + reach >= 0.5 and center - reach <= size - 0.5)


@njit(**JIT)
def project_one(
    parameters: tuple, i: int, offsets: np.ndarray, pose: np.ndarray, view: np.ndarray, records: np.ndarray
) -> bool:
    """Write all of record `i` but its colour; false if the Gaussian draws nothing in this view."""
    means, quaternions, log_scales, logits, _ = parameters
    u, v, z = camera_point(means, i, pose)
    if not (z >= NEAR_M and z < math.inf):
        return False
    odds = float(math.exp(-logits[i]))
    opacity = 1.0 / (1.0 + odds)
    if not opacity >= ALPHA_MIN:
        return False
    j = i % len(offsets)
    mean_x, mean_y = view[FX] * u + view[CX] + offsets[j, 0], view[FY] * v + view[CY] + offsets[j, 1]
    u, v = min(max(u, view[U_LOW]), view[U_HIGH]), min(max(v, view[V_LOW]), view[V_HIGH])
    scales = (float(math.exp(log_scales[i, 0])), float(math.exp(log_scales[i, 1])), float(math.exp(log_scales[i, 2])))
    log_opacity = math.log(opacity)
    reach2 = 2.0 * (log_opacity - LOG_ALPHA_MIN)
    # |row of J R| times the widest axis bounds the footprint without rotating anything.
    widest = max(scales[0], scales[1], scales[2]) / z
    bound_x = math.sqrt(reach2 * ((widest * view[FX]) ** 2 * (1.0 + u * u) + BLUR_PX2)) * 1.001
    bound_y = math.sqrt(reach2 * ((widest * view[FY]) ** 2 * (1.0 + v * v) + BLUR_PX2)) * 1.001
    if misses(mean_x, bound_x, view[WIDTH]) or misses(mean_y, bound_y, view[HEIGHT]):
        return False
    qx, qy, qz, qw, norm = unit_quaternion(quaternions, i)
    rotation = rotation_from_quaternion(qx, qy, qz, qw)
    a, b, c, determinant = covariance_and_determinant(
        footprint_axes(projection_rows(pose, view, u, v, z), rotation, scales)
    )
    if not (
        norm > QUATERNION_NORM_MIN and a < COVARIANCE_MAX_PX2 and c < COVARIANCE_MAX_PX2 and determinant < math.inf
    ):
        return False
    reach_x, reach_y = math.sqrt(reach2 * a), math.sqrt(reach2 * c)
    if misses(mean_x, reach_x, view[WIDTH]) or misses(mean_y, reach_y, view[HEIGHT]):
        return False
    scale = WHITEN / math.sqrt(c * determinant)
    records[i, MEAN_X], records[i, MEAN_Y], records[i, DEPTH] = mean_x, mean_y, z
    records[i, P], records[i, R] = scale * c, -scale * b
    records[i, K], records[i, LOG2_OPACITY] = WHITEN * WHITEN / c, log_opacity * LOG2_E
    records[i, REACH_X], records[i, REACH_Y] = reach_x, reach_y
    records[i, SCALE], records[i, SCALE + 1], records[i, SCALE + 2] = scales
    records[i, TRANSPARENCY] = odds * opacity
    return True


@njit(**JIT)
def color_one(
    means: np.ndarray, sh: np.ndarray, i: int, view: np.ndarray, basis: np.ndarray, records: np.ndarray
) -> bool:
    """Write the colour of record `i`; false if it is not finite."""
    red, green, blue = 0.5, 0.5, 0.5
    if len(basis) > 1:
        x, y, z = means[i, 0] - view[EYE_X], means[i, 1] - view[EYE_Y], means[i, 2] - view[EYE_Z]
        scale = 1.0 / math.sqrt(x * x + y * y + z * z)
        fill_basis(basis, x * scale, y * scale, z * scale)
    else:
        basis[0] = SH_0
    for k in range(len(basis)):
        red += basis[k] * sh[i, k, 0]
        green += basis[k] * sh[i, k, 1]
        blue += basis[k] * sh[i, k, 2]
    records[i, RED], records[i, GREEN], records[i, BLUE] = max(red, 0.0), max(green, 0.0), max(blue, 0.0)
    return abs(red) + abs(green) + abs(blue) < math.inf


@njit(**INLINE)
def tile_range(center: float, reach: float, tiles: int) -> tuple[int, int]:
    """First and one-past-last tile along one axis whose pixel centres lie within `reach` of `center`."""
    low, high = math.ceil(center - reach - 0.501), math.floor(center + reach - 0.499)
    return max(low // TILE, 0), min(high // TILE + 1, tiles)


@njit(**PARALLEL)
def project(
    parameters: tuple,
    offsets: np.ndarray,
    pose: np.ndarray,
    view: np.ndarray,
    records: np.ndarray,
    boxes: np.ndarray,
    visible: np.ndarray,
) -> np.ndarray:
    """Fill `records` [N, RECORD], `boxes` int16 [N, 4] and `visible` [N]; return uint64 [M] keys of what is visible.

    `parameters` are means, quaternions, log scales, logits and sh. Centres are moved by `offsets` [N or 1, 2] px. A box
    is the tiles (first x, past x, first y, past y) that a splat's bounding box reaches. A key is the bits of the depth
    above the Gaussian's index: depths are positive, so the order of their float32 bits is their own.
    """
    means, sh = parameters[0], parameters[4]
    count, tiles_x, tiles_y = len(means), math.ceil(view[WIDTH] / TILE), math.ceil(view[HEIGHT] / TILE)
    keys, found = np.empty(count, np.uint64), np.zeros(CHUNKS + 1, np.int64)
    bits = records.view(np.uint32)
    for chunk in prange(CHUNKS):
        first, last = chunk_bounds(chunk, count)
        basis, m = np.empty(sh.shape[1], np.float64), first
        for i in range(first, last):
            drawn = project_one(parameters, i, offsets, pose, view, records)
            drawn = drawn and color_one(means, sh, i, view, basis, records)
            visible[i] = drawn
            if drawn:
                boxes[i, 0], boxes[i, 1] = tile_range(records[i, MEAN_X], records[i, REACH_X], tiles_x)
                boxes[i, 2], boxes[i, 3] = tile_range(records[i, MEAN_Y], records[i, REACH_Y], tiles_y)
                keys[m] = (np.uint64(bits[i, DEPTH]) << np.uint64(32)) | np.uint64(i)
                m += 1
        found[chunk + 1] = m - first
    start = np.cumsum(found)
    packed = np.empty(start[CHUNKS], np.uint64)
    for chunk in prange(CHUNKS):
        first = chunk_bounds(chunk, count)[0]
        for j in range(found[chunk + 1]):
            packed[start[chunk] + j] = keys[first + j]
    return packed
