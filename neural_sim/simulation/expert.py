"""The expert's drive, prepared for lookups in the plane."""

import numpy as np
from jaxtyping import Bool, Float, Int

from controllers.reference import WorldPlan, world_plan
from neural_sim.simulation.observation import PLAN_STEP_US, PLAN_STEPS
from neural_sim.trajectory import Trajectory

# Recorded poses jitter by centimetres from one to the next, so rates are taken over this window.
RATE_WINDOW_US = 400_000
NEAREST_STEP_US = 20_000


class ExpertPath:
    """Planar poses of the expert at any time. After the log it drives straight on at its last speed."""

    def __init__(self, expert: Trajectory) -> None:
        self.start_us, self.end_us = expert.start_us, expert.end_us
        self._seconds = (expert.t_us - expert.start_us) * 1e-6
        self._planar = expert.planar.copy()
        self._planar[:, 2] = np.unwrap(self._planar[:, 2])
        self._last_mps = float(expert.speed_mps_at(np.array([expert.end_us]), RATE_WINDOW_US)[0])

    def planar_at(self, query_us: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m 3"]:
        """(x, y, yaw) at `query_us`, world frame, m and rad, yaw not wrapped; before the log its first pose holds."""
        query_us = np.asarray(query_us)
        at_s = (query_us - self.start_us) * 1e-6
        planar = np.stack([np.interp(at_s, self._seconds, self._planar[:, axis]) for axis in range(3)], axis=-1)
        beyond_m = np.maximum(query_us - self.end_us, 0) * 1e-6 * self._last_mps
        last_yaw = self._planar[-1, 2]
        planar[:, 0] += beyond_m * np.cos(last_yaw)
        planar[:, 1] += beyond_m * np.sin(last_yaw)
        return planar

    def rates_at(self, t_us: int) -> tuple[float, float]:
        """Speed (m/s) and yaw rate (rad/s) by a difference around `t_us`, cut at the ends of the log."""
        before_us = max(t_us - RATE_WINDOW_US // 2, self.start_us)
        after_us = min(t_us + RATE_WINDOW_US // 2, self.end_us)
        before, after = self.planar_at(np.array([before_us, after_us]))
        span_s = max((after_us - before_us) * 1e-6, 1e-6)
        return float(np.hypot(*(after - before)[:2])) / span_s, float(after[2] - before[2]) / span_s

    def nearest_time(
        self, xy_m: Float[np.ndarray, "b 2"], around_us: Int[np.ndarray, "b"], reach_us: int = 3_000_000
    ) -> Int[np.ndarray, "b"]:
        """Time within `reach_us` of `around_us` at which the expert was nearest to each point, us; world frame, m.

        The window keeps a path that crosses itself from being cut short. Of equally near times the earliest counts.
        """
        offsets_us = np.arange(-reach_us, reach_us + 1, NEAREST_STEP_US)
        query_us = np.clip(around_us[:, None] + offsets_us, self.start_us, self.end_us)
        path = self.planar_at(query_us.ravel())[:, :2].reshape(*query_us.shape, 2)
        squared = ((path - xy_m[:, None]) ** 2).sum(axis=-1)
        return query_us[np.arange(len(query_us)), squared.argmin(axis=1)]

    def future(self, t_us: int) -> tuple[Float[np.ndarray, "64 3"], Bool[np.ndarray, "64"]]:
        """Poses 0.1 s to 6.4 s after `t_us` (world, m and rad, yaw not wrapped) and which of them are in the log."""
        query_us = t_us + PLAN_STEP_US * np.arange(1, PLAN_STEPS + 1)
        return self.planar_at(query_us), query_us <= self.end_us

    def plan_from(self, t_us: int) -> WorldPlan:
        """The expert's drive from `t_us` on as a plan for one rollout."""
        planar = self.planar_at(t_us + PLAN_STEP_US * np.arange(PLAN_STEPS + 1))
        return world_plan(np.array([t_us]), PLAN_STEP_US, planar[None, :, 0], planar[None, :, 1], planar[None, :, 2])
