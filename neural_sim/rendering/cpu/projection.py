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
    TILE,
    WHITEN,
    K,
    P,
    R,
    chunk_bounds,
)
from neural_sim.rendering.views import (
    ALPHA_MIN,
    BLUR_PX2,
    COVARIANCE_MAX_PX2,
    JACOBIAN_MARGIN,
    NEAR_M,
    QUATERNION_NORM_MIN,
)

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


@njit(**JIT)
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


@njit(**JIT)
def footprint_axes(
    pose: np.ndarray, view: np.ndarray, u: float, v: float, z: float, rotation: tuple, s0: float, s1: float, s2: float
) -> tuple:
    """The 2x3 matrix M = J R_camera_world R S, row by row, px: M M^T is the projected covariance."""
    ax, ay = view[FX] / z, view[FY] / z
    b00, b01, b02 = (
        ax * (pose[0, 0] - u * pose[2, 0]),
        ax * (pose[0, 1] - u * pose[2, 1]),
        ax * (pose[0, 2] - u * pose[2, 2]),
    )
    b10, b11, b12 = (
        ay * (pose[1, 0] - v * pose[2, 0]),
        ay * (pose[1, 1] - v * pose[2, 1]),
        ay * (pose[1, 2] - v * pose[2, 2]),
    )
    q00, q01, q02, q10, q11, q12, q20, q21, q22 = rotation
    return (
        (b00 * q00 + b01 * q10 + b02 * q20) * s0,
        (b00 * q01 + b01 * q11 + b02 * q21) * s1,
        (b00 * q02 + b01 * q12 + b02 * q22) * s2,
        (b10 * q00 + b11 * q10 + b12 * q20) * s0,
        (b10 * q01 + b11 * q11 + b12 * q21) * s1,
        (b10 * q02 + b11 * q12 + b12 * q22) * s2,
    )


@njit(**JIT)
def covariance_and_determinant(axes: tuple) -> tuple[float, float, float, float]:
    """Blurred covariance (a, b, c) px^2 and its determinant, summed from squares so that nothing cancels."""
    m00, m01, m02, m10, m11, m12 = axes
    a, c = m00 * m00 + m01 * m01 + m02 * m02, m10 * m10 + m11 * m11 + m12 * m12
    b = m00 * m10 + m01 * m11 + m02 * m12
    minor_0, minor_1, minor_2 = m00 * m11 - m01 * m10, m00 * m12 - m02 * m10, m01 * m12 - m02 * m11
    # Cauchy-Binet: det(M M^T) is the sum of the squared 2x2 minors of M.
    determinant = minor_0 * minor_0 + minor_1 * minor_1 + minor_2 * minor_2 + BLUR_PX2 * (a + c) + BLUR_PX2 * BLUR_PX2
    return a + BLUR_PX2, b, c + BLUR_PX2, determinant


@njit(**JIT)
def _misses(center: float, reach: float, size: float) -> bool:
    return not (center + reach >= 0.5 and center - reach <= size - 0.5)


@njit(**JIT)
def project_one(
    mean: np.ndarray,
    quaternion: np.ndarray,
    log_scale: np.ndarray,
    logit: float,
    offset: np.ndarray,
    pose: np.ndarray,
    view: np.ndarray,
    record: np.ndarray,
) -> bool:
    """Write all of `record` but its colour; false if the Gaussian draws nothing in this view."""
    z = pose[2, 0] * mean[0] + pose[2, 1] * mean[1] + pose[2, 2] * mean[2] + pose[2, 3]
    if not (z >= NEAR_M and z < math.inf):
        return False
    opacity = 1.0 / (1.0 + math.exp(-logit))
    if not opacity >= ALPHA_MIN:
        return False
    u = (pose[0, 0] * mean[0] + pose[0, 1] * mean[1] + pose[0, 2] * mean[2] + pose[0, 3]) / z
    v = (pose[1, 0] * mean[0] + pose[1, 1] * mean[1] + pose[1, 2] * mean[2] + pose[1, 3]) / z
    mean_x, mean_y = view[FX] * u + view[CX] + offset[0], view[FY] * v + view[CY] + offset[1]
    u, v = min(max(u, view[U_LOW]), view[U_HIGH]), min(max(v, view[V_LOW]), view[V_HIGH])
    reach2 = 2.0 * math.log(opacity / ALPHA_MIN)
    widest = math.exp(max(log_scale[0], log_scale[1], log_scale[2])) * 1.001
    # |row of J R| times the widest axis bounds the footprint without rotating anything.
    bound_x = math.sqrt(reach2 * ((widest * view[FX] / z) ** 2 * (1.0 + u * u) + BLUR_PX2))
    bound_y = math.sqrt(reach2 * ((widest * view[FY] / z) ** 2 * (1.0 + v * v) + BLUR_PX2))
    if _misses(mean_x, bound_x, view[WIDTH]) or _misses(mean_y, bound_y, view[HEIGHT]):
        return False
    norm = math.sqrt(quaternion[0] ** 2 + quaternion[1] ** 2 + quaternion[2] ** 2 + quaternion[3] ** 2)
    if not norm > QUATERNION_NORM_MIN:
        return False
    qx, qy, qz, qw = quaternion[0] / norm, quaternion[1] / norm, quaternion[2] / norm, quaternion[3] / norm
    s0, s1, s2 = math.exp(log_scale[0]), math.exp(log_scale[1]), math.exp(log_scale[2])
    axes = footprint_axes(pose, view, u, v, z, rotation_from_quaternion(qx, qy, qz, qw), s0, s1, s2)
    a, b, c, determinant = covariance_and_determinant(axes)
    if not (a < COVARIANCE_MAX_PX2 and c < COVARIANCE_MAX_PX2 and determinant < math.inf):
        return False
    reach_x, reach_y = math.sqrt(reach2 * a), math.sqrt(reach2 * c)
    if _misses(mean_x, reach_x, view[WIDTH]) or _misses(mean_y, reach_y, view[HEIGHT]):
        return False
    record[MEAN_X], record[MEAN_Y], record[DEPTH] = mean_x, mean_y, z
    record[P], record[R] = WHITEN * math.sqrt(c / determinant), -WHITEN * b / math.sqrt(c * determinant)
    record[K], record[LOG2_OPACITY] = WHITEN * WHITEN / c, math.log(opacity) * LOG2_E
    record[REACH_X], record[REACH_Y] = reach_x, reach_y
    return True


@njit(**JIT)
def color_one(mean: np.ndarray, sh: np.ndarray, view: np.ndarray, basis: np.ndarray, record: np.ndarray) -> bool:
    """Write the colour of `record`; false if it is not finite."""
    x, y, z = mean[0] - view[EYE_X], mean[1] - view[EYE_Y], mean[2] - view[EYE_Z]
    scale = 1.0 / math.sqrt(x * x + y * y + z * z)
    fill_basis(basis, x * scale, y * scale, z * scale)
    red, green, blue = 0.5, 0.5, 0.5
    for k in range(len(basis)):
        red += basis[k] * sh[k, 0]
        green += basis[k] * sh[k, 1]
        blue += basis[k] * sh[k, 2]
    record[RED], record[GREEN], record[BLUE] = max(red, 0.0), max(green, 0.0), max(blue, 0.0)
    return abs(red) + abs(green) + abs(blue) < math.inf


@njit(**INLINE)
def tile_range(center: float, reach: float, tiles: int) -> tuple[int, int]:
    """First and one-past-last tile along one axis whose pixel centres lie within `reach` of `center`."""
    low, high = math.ceil(center - reach - 0.501), math.floor(center + reach - 0.499)
    return max(low // TILE, 0), min(high // TILE + 1, tiles)


@njit(**INLINE)
def store_box(record: np.ndarray, box: np.ndarray, tiles_x: int, tiles_y: int) -> None:
    """Write the tiles (first x, past x, first y, past y) of a splat's bounding box into `box` int16 [4]."""
    box[0], box[1] = tile_range(record[MEAN_X], record[REACH_X], tiles_x)
    box[2], box[3] = tile_range(record[MEAN_Y], record[REACH_Y], tiles_y)


@njit(**PARALLEL)
def project(
    means: np.ndarray,
    quaternions: np.ndarray,
    log_scales: np.ndarray,
    logits: np.ndarray,
    sh: np.ndarray,
    offsets: np.ndarray,
    pose: np.ndarray,
    view: np.ndarray,
    records: np.ndarray,
    boxes: np.ndarray,
    visible: np.ndarray,
) -> np.ndarray:
    """Fill `records` [N, RECORD], `boxes` int16 [N, 4] and `visible` [N]; return uint64 [M] keys of what is visible.

    Centres are moved by `offsets` [N or 1, 2] px. A key is the bits of the depth above the Gaussian's index: depths are
    positive, so the order of their float32 bits is their own.
    """
    count = len(means)
    tiles_x, tiles_y = -(-int(view[WIDTH]) // TILE), -(-int(view[HEIGHT]) // TILE)
    keys, found = np.empty(count, np.uint64), np.zeros(CHUNKS + 1, np.int64)
    for chunk in prange(CHUNKS):
        first, last = chunk_bounds(chunk, count)
        basis, m = np.empty(sh.shape[1], np.float64), first
        for i in range(first, last):
            record = records[i]
            offset = offsets[i % len(offsets)]
            drawn = project_one(means[i], quaternions[i], log_scales[i], logits[i], offset, pose, view, record)
            drawn = drawn and color_one(means[i], sh[i], view, basis, record)
            visible[i] = drawn
            if drawn:
                store_box(record, boxes[i], tiles_x, tiles_y)
                keys[m] = (np.uint64(record[DEPTH : DEPTH + 1].view(np.uint32)[0]) << np.uint64(32)) | np.uint64(i)
                m += 1
        found[chunk + 1] = m - first
    start = np.cumsum(found)
    packed = np.empty(start[CHUNKS], np.uint64)
    for chunk in prange(CHUNKS):
        first = chunk_bounds(chunk, count)[0]
        for j in range(found[chunk + 1]):
            packed[start[chunk] + j] = keys[first + j]
    return packed
