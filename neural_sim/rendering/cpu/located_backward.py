"""Gradient of the projection of one Gaussian through any lens, at the time when its line is read."""

import numpy as np
from numba import njit

from neural_sim.rendering.cpu.exposure import camera_point, knot_before, set_pose
from neural_sim.rendering.cpu.gaussian_backward import (
    camera_ray,
    center_and_covariance_gradient,
    color_gradient,
    point_gradient,
    shape_gradient,
)
from neural_sim.rendering.cpu.layout import G_1, G_DEPTH, JIT, LOG2_E, TRANSPARENCY
from neural_sim.rendering.cpu.lens import image_jacobian, jacobian_gradient
from neural_sim.rendering.cpu.view_vector import ANGULAR, ANTIALIAS, MODEL, SHUTTER_AXIS, SHUTTER_RATE


@njit(**JIT)
def jacobian_times_rotation(jacobian: tuple, pose: np.ndarray) -> tuple:
    """J R, row by row."""
    j00, j01, j02, j10, j11, j12 = jacobian
    return (
        j00 * pose[0, 0] + j01 * pose[1, 0] + j02 * pose[2, 0],
        j00 * pose[0, 1] + j01 * pose[1, 1] + j02 * pose[2, 1],
        j00 * pose[0, 2] + j01 * pose[1, 2] + j02 * pose[2, 2],
        j10 * pose[0, 0] + j11 * pose[1, 0] + j12 * pose[2, 0],
        j10 * pose[0, 1] + j11 * pose[1, 1] + j12 * pose[2, 1],
        j10 * pose[0, 2] + j11 * pose[1, 2] + j12 * pose[2, 2],
    )


@njit(**JIT)
def split_gradient(jacobian: tuple, pose: np.ndarray, g_rows: tuple, g_pose: np.ndarray) -> tuple:
    """Add the gradient of R in J R to `g_pose`; return that of J, row by row."""
    j00, j01, j02, j10, j11, j12 = jacobian
    g00, g01, g02, g10, g11, g12 = g_rows
    g_pose[0, 0] += j00 * g00 + j10 * g10
    g_pose[0, 1] += j00 * g01 + j10 * g11
    g_pose[0, 2] += j00 * g02 + j10 * g12
    g_pose[1, 0] += j01 * g00 + j11 * g10
    g_pose[1, 1] += j01 * g01 + j11 * g11
    g_pose[1, 2] += j01 * g02 + j11 * g12
    g_pose[2, 0] += j02 * g00 + j12 * g10
    g_pose[2, 1] += j02 * g01 + j12 * g11
    g_pose[2, 2] += j02 * g02 + j12 * g12
    return (
        g00 * pose[0, 0] + g01 * pose[0, 1] + g02 * pose[0, 2],
        g00 * pose[1, 0] + g01 * pose[1, 1] + g02 * pose[1, 2],
        g00 * pose[2, 0] + g01 * pose[2, 1] + g02 * pose[2, 2],
        g10 * pose[0, 0] + g11 * pose[0, 1] + g12 * pose[0, 2],
        g10 * pose[1, 0] + g11 * pose[1, 1] + g12 * pose[1, 2],
        g10 * pose[2, 0] + g11 * pose[2, 1] + g12 * pose[2, 2],
    )


@njit(**JIT)
def line_gradient(
    means: np.ndarray,
    i: int,
    knots: np.ndarray,
    frame: int,
    view: np.ndarray,
    time: float,
    center_jacobian: tuple,
    g_pose: np.ndarray,
) -> tuple[float, float, float]:
    """Gradient over the camera-frame mean by way of the time at which its line is read.

    The time solves t = line(t), so a move of the line by d shifts it by d / (1 - dline / dt).
    """
    if time <= 0.0 or time >= 1.0:
        return 0.0, 0.0, 0.0
    before, _ = knot_before(knots, time)
    j00, j01, j02, j10, j11, j12 = center_jacobian
    along = (j10, j11, j12) if view[SHUTTER_AXIS] == 1.0 else (j00, j01, j02)
    g_time, slope = 0.0, 0.0
    for row in range(3):
        moved = 0.0
        for column in range(4):
            change = (knots[before + 1, frame, row, column] - knots[before, frame, row, column]) * (len(knots) - 1)
            g_time += g_pose[row, column] * change
            moved += change * (means[i, column] if column < 3 else 1.0)
        slope += along[row] * moved
    g_line = g_time * view[SHUTTER_RATE] / (1.0 - slope * view[SHUTTER_RATE])
    return g_line * along[0], g_line * along[1], g_line * along[2]


@njit(**JIT)
def spread_over_knots(g_pose: np.ndarray, frame: int, time: float, g_knots: np.ndarray) -> None:
    """Add the gradient [3, 4] of the pose at `time` to those of the knots it lies between, `g_knots` [S, F, 3, 4]."""
    before, share = (0, 0.0) if len(g_knots) == 1 else knot_before(g_knots, time)
    for row in range(3):
        for column in range(4):
            g_knots[before, frame, row, column] += (1.0 - share) * g_pose[row, column]
            if share > 0.0:
                g_knots[before + 1, frame, row, column] += share * g_pose[row, column]


@njit(**JIT)
def located_one_backward(
    parameters: tuple,
    gradients: tuple,
    i: int,
    frame: int,
    knots: np.ndarray,
    time: float,
    view: np.ndarray,
    records: np.ndarray,
    totals: np.ndarray,
    row: int,
    g_offset: np.ndarray,
    g_knots: np.ndarray,
    scratch: np.ndarray,
    poses: np.ndarray,
) -> None:
    """Add the gradient of Gaussian `i`; pair gradients sum to row `row` of `totals`; `poses` [2, 3, 4] is scratch."""
    means, pose, g_pose = parameters[0], poses[0], poses[1]
    g_x, g_y, g_a, g_b, g_c = center_and_covariance_gradient(records, i, totals, row)
    g_offset[i, 0], g_offset[i, 1] = g_x, g_y
    set_pose(knots, frame, time, pose)
    g_pose[:] = 0.0
    x, y, z = camera_point(means, i, pose)
    jacobian, center_jacobian = image_jacobian(view, x, y, z, True), image_jacobian(view, x, y, z, False)
    rows = jacobian_times_rotation(jacobian, pose)
    g_shape = (g_a, g_b, g_c, totals[row, G_1])
    g_rows = shape_gradient(parameters, gradients, i, g_shape, records, rows, view[ANTIALIAS] > 0.0)
    b_x, b_y, b_z = jacobian_gradient(view, x, y, z, split_gradient(jacobian, pose, g_rows, g_pose))
    j00, j01, j02, j10, j11, j12 = center_jacobian
    # Depth is z, or the distance of an angular lens.
    g_depth, d_x, d_y, d_z = totals[row, G_DEPTH], 0.0, 0.0, 1.0
    if view[MODEL] == ANGULAR:
        inverse = 1.0 / np.sqrt(x * x + y * y + z * z)
        d_x, d_y, d_z = x * inverse, y * inverse, z * inverse
    g_point = (
        b_x + j00 * g_x + j10 * g_y + d_x * g_depth,
        b_y + j01 * g_x + j11 * g_y + d_y * g_depth,
        b_z + j02 * g_x + j12 * g_y + d_z * g_depth,
    )
    g_ray = color_gradient(parameters[4], gradients[4], i, records, camera_ray(means, i, pose), totals, row, scratch)
    point_gradient(means, i, pose, g_point, g_ray, gradients[0], g_pose)
    if len(knots) > 1:
        g_line = line_gradient(means, i, knots, frame, view, time, center_jacobian, g_pose)
        point_gradient(means, i, pose, g_line, (0.0, 0.0, 0.0), gradients[0], g_pose)
    spread_over_knots(g_pose, frame, time, g_knots)
    g_logits = gradients[3]
    g_logits[i] += totals[row, G_1] * LOG2_E * records[i, TRANSPARENCY]
