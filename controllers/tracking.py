"""The default controller: separate preview regulators for steering and acceleration."""

import numpy as np
from jaxtyping import Float

from controllers.config import ControllerConfig
from controllers.errors import require_step
from controllers.interface import ControlCommand, VehicleState
from controllers.lateral import LateralRegulator
from controllers.longitudinal import LongitudinalRegulator
from controllers.reference import WorldPlan, nearest_point
from controllers.vehicle_parameters import VehicleParameters

# Time in which the speed is expected to approach the planned one, for the prediction of where the car will be.
SPEED_SETTLING_S = 1.0


class TrackingController:
    """Follows plans with preview, which makes up for the lag of the actuators.

    Steering follows the path where the vehicle is, acceleration the plan's position and speed at the present time.
    Results of a rollout do not depend on the others of the batch.
    """

    def __init__(self, vehicle: VehicleParameters, config: ControllerConfig, step_us: int) -> None:
        require_step(step_us)
        self._step_us = step_us
        self._lateral = LateralRegulator(vehicle, config, step_us * 1e-6)
        self._longitudinal = LongitudinalRegulator(vehicle, config, step_us)

    def command(
        self, state: VehicleState, plan: WorldPlan, t_us: int, previous: ControlCommand | None = None
    ) -> ControlCommand:
        """Commands to hold for one control step from `t_us`; see `Controller`. Needs no `previous` command."""
        here = nearest_point(plan, state.x_m, state.y_m)
        planned_m, planned_mps = self._longitudinal.planned_motion(plan, t_us)
        acceleration = self._longitudinal.acceleration(state, here.travelled_m, planned_m, planned_mps)
        travel_m = expected_travel(state.vx_mps, planned_m, planned_mps[:, 0], self._step_us * 1e-6)
        return ControlCommand(self._lateral.steering(state, plan, here, travel_m), acceleration)


def expected_travel(
    speed_mps: Float[np.ndarray, "b"],
    planned_m: Float[np.ndarray, "b steps"],
    planned_mps: Float[np.ndarray, "b"],
    step_s: float,
) -> Float[np.ndarray, "b steps"]:
    """Distance to be covered in 0..N steps, m: the planned one plus a speed difference that decays."""
    later_s = np.arange(planned_m.shape[1]) * step_s
    settled_s = SPEED_SETTLING_S * (1 - np.exp(-later_s / SPEED_SETTLING_S))
    travel_m = planned_m - planned_m[:, :1] + (speed_mps - planned_mps)[:, None] * settled_s
    return np.maximum.accumulate(np.maximum(travel_m, 0.0), axis=-1)
