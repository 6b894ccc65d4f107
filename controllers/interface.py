"""What a controller is given and what it answers, batched over B rollouts."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from controllers.reference import WorldPlan


@dataclass(frozen=True)
class VehicleState:
    """State of the dynamically extended bicycle for B vehicles, float64 [B] each.

    Attributes:
        x_m, y_m: rear axle on the ground (the rig origin), world frame, m.
        yaw_rad: heading, not wrapped, rad.
        vx_mps, vy_mps: velocity of the centre of gravity along the body axes, m/s.
        yaw_rate_radps: rad/s.
        steering_rad: front-wheel angle after the actuator, left positive, rad.
        acceleration_mps2: longitudinal acceleration after the actuator, m/s^2.
    """

    x_m: Float[np.ndarray, "b"]
    y_m: Float[np.ndarray, "b"]
    yaw_rad: Float[np.ndarray, "b"]
    vx_mps: Float[np.ndarray, "b"]
    vy_mps: Float[np.ndarray, "b"]
    yaw_rate_radps: Float[np.ndarray, "b"]
    steering_rad: Float[np.ndarray, "b"]
    acceleration_mps2: Float[np.ndarray, "b"]


@dataclass(frozen=True)
class ControlCommand:
    """Set points that the actuators approach until the next command.

    Attributes:
        steering_rad: float64 [B], front-wheel angle, left positive, rad.
        acceleration_mps2: float64 [B], longitudinal, m/s^2.
        memory: float64 [B, M], what the controller wants to find in its next call; None where it needs nothing.
        failures: (row, reason) of each rollout whose command is a fallback because the controller's solver failed.
    """

    steering_rad: Float[np.ndarray, "b"]
    acceleration_mps2: Float[np.ndarray, "b"]
    memory: Float[np.ndarray, "b m"] | None = None
    failures: tuple[tuple[int, str], ...] = ()


class Controller(Protocol):
    """Turns plans into commands. All that it remembers is in its commands, so saving those saves the controller."""

    def command(
        self, state: VehicleState, plan: WorldPlan, t_us: int, previous: ControlCommand | None = None
    ) -> ControlCommand:
        """Commands that make vehicles in `state` at time `t_us` follow `plan`, read by absolute time.

        `previous`: this controller's answer one control step earlier for the same rollouts; None at the start.
        """
        ...
