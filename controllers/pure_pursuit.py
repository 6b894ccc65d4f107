"""The plain baseline: pure pursuit for steering, PID for acceleration."""

import numpy as np
from jaxtyping import Float

from controllers.config import ControllerConfig
from controllers.errors import require_step
from controllers.interface import ControlCommand, VehicleState
from controllers.lateral import settled_steering
from controllers.longitudinal import bounded_acceleration
from controllers.reference import WorldPlan, nearest_point, point_along, speed_at, travelled_at
from controllers.vehicle_parameters import VehicleParameters

# Planned speed and acceleration are read from here on, us: the first steps of a plan may leap from where the car is to
# where it should be, which is a matter of position, not of speed.
SPEED_AHEAD_US = 400_000


class PurePursuitController:
    """Steers on the circle through a point of the path ahead; a PID loop holds position and speed.

    It knows neither the actuator lags nor tyre slip, so it runs wide in fast turns (1.5 m at 20 m/s and 4 m/s^2): a
    baseline to compare with, not a controller to drive with. Results of a rollout do not depend on the others of the
    batch.
    """

    def __init__(self, vehicle: VehicleParameters, config: ControllerConfig, step_us: int) -> None:
        require_step(step_us)
        self._vehicle, self._config, self._step_s = vehicle, config, step_us * 1e-6

    def command(
        self, state: VehicleState, plan: WorldPlan, t_us: int, previous: ControlCommand | None = None
    ) -> ControlCommand:
        """Commands to hold for one control step from `t_us`; see `Controller`. Remembers the summed speed error."""
        travelled_m = nearest_point(plan, state.x_m, state.y_m).travelled_m
        summed_m = np.zeros(len(state.x_m)) if previous is None or previous.memory is None else previous.memory[:, 0]
        acceleration, summed_m = self._acceleration(state, plan, t_us, travelled_m, summed_m)
        return ControlCommand(self._steering(state, plan, travelled_m), acceleration, summed_m[:, None])

    def _steering(
        self, state: VehicleState, plan: WorldPlan, travelled_m: Float[np.ndarray, "b"]
    ) -> Float[np.ndarray, "b"]:
        """atan(2 L sin(alpha) / d) for the point at distance d and bearing alpha."""
        config = self._config.pure_pursuit
        ahead_m = np.maximum(config.lookahead_s * state.vx_mps, config.min_lookahead_m)
        x_m, y_m = point_along(plan, travelled_m + ahead_m)
        cosine, sine = np.cos(state.yaw_rad), np.sin(state.yaw_rad)
        forward_m = cosine * (x_m - state.x_m) + sine * (y_m - state.y_m)
        left_m = cosine * (y_m - state.y_m) - sine * (x_m - state.x_m)
        distance_m2 = np.maximum(forward_m * forward_m + left_m * left_m, 1e-2)
        steering = np.arctan(2 * self._vehicle.wheelbase_m * left_m / distance_m2)
        return settled_steering(steering, state, self._vehicle, self._config)

    def _acceleration(
        self,
        state: VehicleState,
        plan: WorldPlan,
        t_us: int,
        travelled_m: Float[np.ndarray, "b"],
        summed_m: Float[np.ndarray, "b"],
    ) -> tuple[Float[np.ndarray, "b"], Float[np.ndarray, "b"]]:
        """Acceleration command, m/s^2, and the new sum of the speed error, m."""
        config = self._config.pure_pursuit
        query_us = t_us + np.array([SPEED_AHEAD_US, 2 * SPEED_AHEAD_US])
        later_mps = speed_at(plan, query_us, round(self._config.speed_window_s * 5e5))
        planned_mps2 = (later_mps[:, 1] - later_mps[:, 0]) / (SPEED_AHEAD_US * 1e-6)
        planned_mps = later_mps[:, 0] - planned_mps2 * (SPEED_AHEAD_US * 1e-6)
        lag_m = travelled_at(plan, np.array([t_us]))[:, 0] - travelled_m
        error_mps = planned_mps + config.position_gain * lag_m - state.vx_mps
        summed_m = np.clip(summed_m + error_mps * self._step_s, -config.max_integral_m, config.max_integral_m)
        command = config.speed_gain * error_mps + config.speed_integral_gain * summed_m
        command = command + planned_mps2 + config.speed_derivative_gain * (planned_mps2 - state.acceleration_mps2)
        return bounded_acceleration(command, state.vx_mps, self._config), summed_m
