"""Rays through the image points of a camera that may move while its shutter is open."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numba import njit

from neural_sim.frames import interpolate_poses
from neural_sim.rendering.renderer import RenderRequest


class Rays(NamedTuple):
    """Rays of N image points.

    Attributes:
        origins, directions: float64 [N, 3], world frame; directions have length 1 along the optical axis.
        pixel_x, pixel_y: float64 [N, 3], change of the direction over one pixel to the right and down.
    """

    origins: Float[np.ndarray, "n 3"]
    directions: Float[np.ndarray, "n 3"]
    pixel_x: Float[np.ndarray, "n 3"]
    pixel_y: Float[np.ndarray, "n 3"]


def cast_rays(request: RenderRequest, x_px: Float[np.ndarray, "n"], y_px: Float[np.ndarray, "n"]) -> Rays:
    """Rays through image points (pixels); each row has the camera pose of its own exposure."""
    camera = request.camera
    intrinsics = (camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px)
    return Rays(*_cast(_row_poses(request), intrinsics, x_px, y_px))


def _row_poses(request: RenderRequest) -> Float[np.ndarray, "h 4 4"]:
    height = request.camera.height_px
    ends = np.stack([request.T_world_camera_open, request.T_world_camera_close])
    if np.array_equal(ends[0], ends[1]):
        return np.repeat(ends[:1], height, axis=0)
    # Any two times do: rows are exposed at equal steps between opening and closing.
    return interpolate_poses(np.array([0, 1_000_000]), ends, np.linspace(0, 1_000_000, height).astype(np.int64))


@njit(cache=True, error_model="numpy")
def _cast(
    poses: np.ndarray, intrinsics: tuple[float, float, float, float], x_px: np.ndarray, y_px: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    fx, fy, cx, cy = intrinsics
    shape = (len(x_px), 3)
    origins, directions, pixel_x, pixel_y = np.empty(shape), np.empty(shape), np.empty(shape), np.empty(shape)
    for i in range(len(x_px)):
        row = min(max(int(y_px[i]), 0), len(poses) - 1)
        across, along = (x_px[i] - cx) / fx, (y_px[i] - cy) / fy
        for axis in range(3):
            right, down, ahead = poses[row, axis, 0], poses[row, axis, 1], poses[row, axis, 2]
            origins[i, axis] = poses[row, axis, 3]
            directions[i, axis] = right * across + down * along + ahead
            pixel_x[i, axis], pixel_y[i, axis] = right / fx, down / fy
    return origins, directions, pixel_x, pixel_y
