"""Acceleration: a preview regulator on position and speed along the path."""

import numpy as np
from jaxtyping import Float

from controllers.config import ControllerConfig
from controllers.interface import VehicleState
from controllers.preview import discretise, preview_gains
from controllers.reference import WorldPlan, row_sum, speed_at, travelled_at
from controllers.vehicle_parameters import VehicleParameters

# Braking is bounded by what stops the car in this time, plus a hold, so that the brake does not wind up at standstill.
STOPPING_TIME_S = 0.2
HOLDING_BRAKE_MPS2 = 0.5


class LongitudinalRegulator:
    """Acceleration commands for a batch.

    Error state: position along the path minus the planned one (m), speed minus the planned one (m/s), acceleration
    (m/s^2). The input is the acceleration command minus the acceleration. Disturbances are what the planned position
    and speed do from one control step to the next.
    """

    def __init__(self, vehicle: VehicleParameters, config: ControllerConfig, step_us: int) -> None:
        self._config, self._step_us = config, step_us
        self._steps = max(1, round(config.preview_s * 1e6 / step_us))
        A, B = longitudinal_model(vehicle, step_us * 1e-6)
        A[:, 2:] += B
        Q = np.diag([config.position_weight, config.speed_weight, 0.0])
        gains = preview_gains(A, B, np.eye(3)[:, :2], Q, config.acceleration_change_weight, self._steps)
        self._gains = np.concatenate([gains.feedback, gains.preview[:, 0], gains.preview[:, 1]])

    def planned_motion(
        self, plan: WorldPlan, t_us: int
    ) -> tuple[Float[np.ndarray, "b steps"], Float[np.ndarray, "b steps"]]:
        """Distance along the plan (m) and planned speed (m/s) at 0..N control steps after `t_us`, [B, N + 1] each."""
        query_us = t_us + self._step_us * np.arange(self._steps + 1)
        half_window_us = round(self._config.speed_window_s * 5e5)
        return travelled_at(plan, query_us), speed_at(plan, query_us, half_window_us)

    def acceleration(
        self,
        state: VehicleState,
        travelled_m: Float[np.ndarray, "b"],
        planned_m: Float[np.ndarray, "b steps"],
        planned_mps: Float[np.ndarray, "b steps"],
    ) -> Float[np.ndarray, "b"]:
        """Acceleration command, m/s^2, for vehicles `travelled_m` along their plans; `planned_*` [B, N + 1]."""
        errors, drift_m, speed_change = longitudinal_errors(
            state, travelled_m, planned_m, planned_mps, self._step_us * 1e-6
        )
        change = row_sum(self._gains * np.concatenate([errors, drift_m, -speed_change], axis=-1))
        return bounded_acceleration(state.acceleration_mps2 - change, state.vx_mps, self._config)


def longitudinal_model(vehicle: VehicleParameters, step_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Discrete (A [3, 3], B [3, 1]) of position error (m), speed error (m/s) and acceleration (m/s^2) under an
    acceleration command held for `step_s`."""
    A = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0 / vehicle.acceleration_lag_s]])
    B = np.array([[0.0], [0.0], [1.0 / vehicle.acceleration_lag_s]])
    return discretise(A, B, step_s)


def longitudinal_errors(
    state: VehicleState,
    travelled_m: Float[np.ndarray, "b"],
    planned_m: Float[np.ndarray, "b steps"],
    planned_mps: Float[np.ndarray, "b steps"],
    step_s: float,
) -> tuple[Float[np.ndarray, "b 3"], Float[np.ndarray, "b n"], Float[np.ndarray, "b n"]]:
    """State of `longitudinal_model` [B, 3] and, for each step ahead [B, N], how far the planned position falls behind
    the planned speed (m) and the change of the planned speed (m/s)."""
    drift_m = planned_mps[:, :-1] * step_s - np.diff(planned_m)
    motion = (travelled_m - planned_m[:, 0], state.vx_mps - planned_mps[:, 0], state.acceleration_mps2)
    return np.stack(motion, axis=-1), drift_m, np.diff(planned_mps)


def bounded_acceleration(
    acceleration_mps2: Float[np.ndarray, "b"], speed_mps: Float[np.ndarray, "b"], config: ControllerConfig
) -> Float[np.ndarray, "b"]:
    """An acceleration command within the limits, and with no more brake than stops the car, m/s^2."""
    hardest = np.maximum(-config.max_deceleration_mps2, -speed_mps / STOPPING_TIME_S - HOLDING_BRAKE_MPS2)
    return np.clip(acceleration_mps2, hardest, config.max_acceleration_mps2)
