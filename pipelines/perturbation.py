"""Smooth random errors on a recorded drive, for the strategy `perturb`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from neural_sim.simulation.observation import PLAN_STEP_US, PLAN_STEPS

_KNOTS = 64


class SmoothErrors:
    """Errors along and across the path that start at zero and change smoothly, one course per rollout.

    Every period a new error is drawn; in between the course follows half a cosine, so position and speed are
    continuous.
    """

    def __init__(self, seeds: Sequence[int], sigma_m: tuple[float, float], period_us: int) -> None:
        draws = [np.random.default_rng([seed, 1]).normal(size=(_KNOTS, 2)) * sigma_m for seed in seeds]
        self._knots = np.stack(draws)
        self._knots[:, 0] = 0.0
        self._period_us = period_us

    def ahead(self, elapsed_us: int) -> Float[np.ndarray, "b 64 2"]:
        """Errors (along, to the left) 0.1 s to 6.4 s after `elapsed_us` (us since the hand-over), m."""
        place = (elapsed_us + PLAN_STEP_US * np.arange(1, PLAN_STEPS + 1)) / self._period_us
        before = np.floor(place).astype(int) % (_KNOTS - 1)
        share = 0.5 - 0.5 * np.cos(np.pi * (place - np.floor(place)))
        first, last = self._knots[:, before], self._knots[:, before + 1]
        return first + share[:, None] * (last - first)


def shifted(planar: Float[np.ndarray, "n 3"], errors_m: Float[np.ndarray, "b n 2"]) -> Float[np.ndarray, "b n 3"]:
    """Poses (x, y, yaw) moved along and across their own heading, one row per rollout; the heading stays."""
    cosine, sine = np.cos(planar[:, 2]), np.sin(planar[:, 2])
    result = np.repeat(planar[None], len(errors_m), axis=0)
    result[..., 0] += cosine * errors_m[..., 0] - sine * errors_m[..., 1]
    result[..., 1] += sine * errors_m[..., 0] + cosine * errors_m[..., 1]
    return result
