"""Where the frame of a Gaussian is when the line under its mean is read."""

import numpy as np
from numba import njit

from neural_sim.rendering.cpu.layout import JIT
from neural_sim.rendering.cpu.lens import image_point
from neural_sim.rendering.cpu.view_vector import SHUTTER_AXIS, SHUTTER_FIRST, SHUTTER_RATE
from neural_sim.rendering.motion import SHUTTER_ITERATIONS


@njit(**JIT)
def knot_before(knots: np.ndarray, time: float) -> tuple[int, float]:
    """The knot at or before `time` (0..1) and the share of the way to the next; there are at least two."""
    steps = len(knots) - 1
    before = min(int(time * steps), steps - 1)
    return before, time * steps - before


@njit(**JIT)
def set_pose(knots: np.ndarray, frame: int, time: float, pose: np.ndarray) -> None:
    """Fill `pose` [3, 4] with that of `frame` at `time`; `knots` is [S, frames, 4, 4]."""
    if len(knots) == 1:
        for row in range(3):
            for column in range(4):
                pose[row, column] = knots[0, frame, row, column]
        return
    before, share = knot_before(knots, time)
    for row in range(3):
        for column in range(4):
            first, last = knots[before, frame, row, column], knots[before + 1, frame, row, column]
            pose[row, column] = first + share * (last - first)


@njit(**JIT)
def camera_point(means: np.ndarray, i: int, pose: np.ndarray) -> tuple[float, float, float]:
    """(x, y, z) of a mean in the camera frame."""
    x, y, z = float(means[i, 0]), float(means[i, 1]), float(means[i, 2])
    return (
        pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3],
        pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3],
        pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3],
    )


@njit(**JIT)
def expose(
    means: np.ndarray, i: int, knots: np.ndarray, frame: int, view: np.ndarray, pose: np.ndarray
) -> tuple[float, bool]:
    """When the line under mean `i` is read, 0 the first line and 1 the last; leaves `pose` [3, 4] at that time.

    The second value is false where no line is under the mean: the time then is that of the nearest one, and fixed.
    """
    if len(knots) == 1:
        set_pose(knots, frame, 0.0, pose)
        return 0.0, False
    time, free = 0.5, 0.5
    for _ in range(SHUTTER_ITERATIONS):
        set_pose(knots, frame, time, pose)
        x, y, z = camera_point(means, i, pose)
        across, along = image_point(view, x, y, z)
        line = along if view[SHUTTER_AXIS] == 1.0 else across
        free = (line - view[SHUTTER_FIRST]) * view[SHUTTER_RATE]
        # A NaN, of a point no lens maps, ends as 0: the Gaussian is dropped elsewhere.
        time = min(max(free, 0.0), 1.0) if free == free else 0.0
    set_pose(knots, frame, time, pose)
    return time, free > 0.0 and free < 1.0
