"""The ground under the ego car, from the heights and tilts the expert drove through."""

import numpy as np
from jaxtyping import Float

from neural_sim.trajectory import Trajectory

# The expert's plane is trusted this far to its side; farther out the height stays that of the plane's edge.
PLANE_REACH_M = 6.0


class ExpertGround:
    """A surface that touches the expert's path with the tilt the expert's car had there."""

    def __init__(self, expert: Trajectory) -> None:
        self._origin_m = np.ascontiguousarray(expert.T_world_rig[:, :3, 3].T)
        self._normal = np.ascontiguousarray(expert.T_world_rig[:, :3, 2].T)
        if self._origin_m.shape[1] == 1:
            self._origin_m, self._normal = np.repeat(self._origin_m, 2, axis=1), np.repeat(self._normal, 2, axis=1)

    def settle(self, planar: Float[np.ndarray, "b 3"]) -> Float[np.ndarray, "b 4 4"]:
        """T_world_rig [B, 4, 4] of cars at (x, y, yaw; world, m, rad) that stand on the ground.

        x, y and yaw are kept; height and tilt are those of the nearest place (in plan view) of the expert's path.
        """
        x_m, y_m, yaw_rad = (np.ascontiguousarray(planar[:, axis]) for axis in range(3))
        origin, normal = self._plane_near(x_m, y_m)
        off_x, off_y = x_m - origin[0], y_m - origin[1]
        reach = PLANE_REACH_M / np.maximum(np.sqrt(off_x * off_x + off_y * off_y), PLANE_REACH_M)
        z_m = origin[2] - reach * (normal[0] * off_x + normal[1] * off_y) / normal[2]
        return _upright_on(x_m, y_m, z_m, yaw_rad, normal)

    def _plane_near(
        self, x_m: Float[np.ndarray, "b"], y_m: Float[np.ndarray, "b"]
    ) -> tuple[Float[np.ndarray, "3 b"], Float[np.ndarray, "3 b"]]:
        """Point (m) and unit normal of the expert's plane nearest to each (x, y)."""
        path = self._origin_m
        step_x, step_y = np.diff(path[0]), np.diff(path[1])
        to_x, to_y = x_m[:, None] - path[0, :-1], y_m[:, None] - path[1, :-1]
        length_m2 = np.maximum(step_x * step_x + step_y * step_y, 1e-12)
        along = np.clip((to_x * step_x + to_y * step_y) / length_m2, 0.0, 1.0)
        off_x, off_y = to_x - along * step_x, to_y - along * step_y
        index = np.argmin(off_x * off_x + off_y * off_y, axis=1)
        fraction = np.take_along_axis(along, index[:, None], axis=1)[:, 0]
        origin = path[:, index] + fraction * (path[:, index + 1] - path[:, index])
        normal = self._normal[:, index] + fraction * (self._normal[:, index + 1] - self._normal[:, index])
        return origin, _unit(normal)


def _upright_on(
    x_m: Float[np.ndarray, "b"],
    y_m: Float[np.ndarray, "b"],
    z_m: Float[np.ndarray, "b"],
    yaw_rad: Float[np.ndarray, "b"],
    normal: Float[np.ndarray, "3 b"],
) -> Float[np.ndarray, "b 4 4"]:
    """Poses at a point whose z axis is `normal` and whose x axis has heading `yaw_rad` in plan view."""
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    climb = -(normal[0] * cosine + normal[1] * sine) / normal[2]
    forward = _unit(np.stack([cosine, sine, climb]))
    left = np.stack(
        [
            normal[1] * forward[2] - normal[2] * forward[1],
            normal[2] * forward[0] - normal[0] * forward[2],
            normal[0] * forward[1] - normal[1] * forward[0],
        ]
    )
    pose = np.zeros((len(x_m), 4, 4))
    for row in range(3):
        pose[:, row, 0], pose[:, row, 1], pose[:, row, 2] = forward[row], left[row], normal[row]
    pose[:, 0, 3], pose[:, 1, 3], pose[:, 2, 3], pose[:, 3, 3] = x_m, y_m, z_m, 1.0
    return pose


def _unit(vector: Float[np.ndarray, "3 b"]) -> Float[np.ndarray, "3 b"]:
    return vector / np.sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2])
