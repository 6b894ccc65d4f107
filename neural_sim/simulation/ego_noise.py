"""Noise on the ego motion that the policy is told: an exact Ornstein-Uhlenbeck process per axis."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neural_sim.errors import InputError

# Keeps this stream apart from others that are drawn from the same rollout seed.
EGO_NOISE_STREAM = 0x45_47_4F


@dataclass(frozen=True)
class EgoNoiseConfig:
    """Slowly drifting error of the estimated ego pose, in the body frame.

    Only the change of the error within the history reaches the policy, because plans are relative to the car. Over
    the 1.5 s of history it has standard deviation sigma * sqrt(2 (1 - exp(-1.5 / tau))): with the defaults about
    4 cm and 0.2 degrees, the drift of ordinary wheel and inertial odometry.
    """

    enabled: bool = True
    """Whether the estimate differs from the true pose at all."""
    position_sigma_m: float = 0.05
    """Steady standard deviation of the forward and of the lateral error, m."""
    position_tau_s: float = 3.0
    """Correlation time of the position error, s."""
    yaw_sigma_rad: float = 0.005
    """Steady standard deviation of the heading error, rad."""
    yaw_tau_s: float = 5.0
    """Correlation time of the heading error, s."""

    def __post_init__(self) -> None:
        for name in ("position_tau_s", "yaw_tau_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"simulation.ego_noise.{name} is {getattr(self, name)}, expected a positive time in s")
        for name in ("position_sigma_m", "yaw_sigma_rad"):
            if not getattr(self, name) >= 0:
                raise InputError(f"simulation.ego_noise.{name} is {getattr(self, name)}, expected zero or more")


def ego_pose_errors(
    config: EgoNoiseConfig, seeds: Sequence[int], steps: int, step_s: float
) -> Float[np.ndarray, "b steps 3"]:
    """Errors (forward m, left m, yaw rad) of B rollouts at `steps` times `step_s` apart, in steady state at once.

    e <- a e + sigma sqrt(1 - a^2) n with a = exp(-step / tau): the statistics do not depend on the step. Each rollout
    draws from its own seed.
    """
    if not config.enabled:
        return np.zeros((len(seeds), steps, 3))
    sigma = np.array([config.position_sigma_m, config.position_sigma_m, config.yaw_sigma_rad])
    decay = np.exp(-step_s / np.array([config.position_tau_s, config.position_tau_s, config.yaw_tau_s]))
    draws = np.stack([_generator(seed).standard_normal((steps, 3)) for seed in seeds])
    errors = np.empty_like(draws)
    errors[:, 0] = sigma * draws[:, 0]
    kick = sigma * np.sqrt(1 - decay * decay)
    for k in range(1, steps):
        errors[:, k] = decay * errors[:, k - 1] + kick * draws[:, k]
    return errors


def estimated_pose(planar: Float[np.ndarray, "b 3"], error: Float[np.ndarray, "b 3"]) -> Float[np.ndarray, "b 3"]:
    """T_est = T_true * N(error): (x, y, yaw) that the policy is told, world frame, m and rad, yaw not wrapped."""
    yaw_rad = np.ascontiguousarray(planar[:, 2])
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    x_m = planar[:, 0] + cosine * error[:, 0] - sine * error[:, 1]
    y_m = planar[:, 1] + sine * error[:, 0] + cosine * error[:, 1]
    return np.stack([x_m, y_m, yaw_rad + error[:, 2]], axis=-1)


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(EGO_NOISE_STREAM,)))
