"""Timed poses of the ego rig and of other road users."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from neural_sim.errors import InputError
from neural_sim.frames import interpolate_poses, planar_from_pose


@dataclass(frozen=True)
class Trajectory:
    """Poses of one rigid frame over time.

    Attributes:
        t_us: int64 [N], strictly increasing, microseconds.
        T_world_rig: float64 [N, 4, 4], metres.
    """

    t_us: Int[np.ndarray, "n"]
    T_world_rig: Float[np.ndarray, "n 4 4"]

    def __post_init__(self) -> None:
        if self.T_world_rig.shape != (len(self.t_us), 4, 4):
            raise InputError(f"trajectory: {len(self.t_us)} times but poses of shape {self.T_world_rig.shape}")
        backwards = np.flatnonzero(np.diff(self.t_us) <= 0)
        if backwards.size:
            i = int(backwards[0])
            raise InputError(
                f"trajectory: timestamps must increase, but entry {i + 1} ({self.t_us[i + 1]} us) does not come "
                f"after entry {i} ({self.t_us[i]} us); sort the source or drop the repeated rows"
            )
        if not np.isfinite(self.T_world_rig).all():
            bad = int(np.flatnonzero(~np.isfinite(self.T_world_rig).all(axis=(1, 2)))[0])
            raise InputError(f"trajectory: pose {bad} at {self.t_us[bad]} us is not finite; mend the pose file")

    @property
    def start_us(self) -> int:
        """First timestamp, us."""
        return int(self.t_us[0])

    @property
    def end_us(self) -> int:
        """Last timestamp, us."""
        return int(self.t_us[-1])

    @cached_property
    def planar(self) -> Float[np.ndarray, "n 3"]:
        """(x, y, yaw) of each pose, world frame, m and rad, yaw in [-pi, pi]."""
        return planar_from_pose(self.T_world_rig)

    @cached_property
    def path_length_m(self) -> float:
        """Length of the driven path in the ground plane, m."""
        return float(np.linalg.norm(np.diff(self.planar[:, :2], axis=0), axis=1).sum())

    def poses_at(self, query_us: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m 4 4"]:
        """Interpolated poses at `query_us`; the first and last pose hold outside the recorded span."""
        return interpolate_poses(self.t_us, self.T_world_rig, np.atleast_1d(query_us))

    def planar_at(self, query_us: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m 3"]:
        """(x, y, yaw) at `query_us`, world frame, m and rad."""
        return planar_from_pose(self.poses_at(query_us))

    def speed_mps_at(self, query_us: Int[np.ndarray, "m"], window_us: int = 200_000) -> Float[np.ndarray, "m"]:
        """Ground speed by central difference over `window_us`, m/s, >= 0, clipped to the recorded span."""
        query_us = np.atleast_1d(query_us)
        before = np.clip(query_us - window_us // 2, self.start_us, self.end_us)
        after = np.clip(query_us + window_us // 2, self.start_us, self.end_us)
        moved_m = np.linalg.norm(self.planar_at(after)[:, :2] - self.planar_at(before)[:, :2], axis=1)
        return moved_m / np.maximum((after - before) * 1e-6, 1e-6)
