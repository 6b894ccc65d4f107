"""The ego car: a dynamically extended bicycle with first-order actuators."""

from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Float

from controllers.interface import ControlCommand, VehicleState
from controllers.vehicle_parameters import VehicleParameters
from neural_sim.errors import InputError
from neural_sim.simulation.vehicle_kernel import advance, coefficients, lateral_rates

LONGEST_SUBSTEP_S = 0.01


@dataclass(frozen=True)
class VehicleLimits:
    """Physical limits of the actuators. The defaults are wide: they stop the impossible, not the unusual."""

    max_steering_rad: float = 0.7
    """Largest front-wheel angle, rad."""
    max_steering_rate_radps: float = 2.5
    """Fastest change of the front-wheel angle, rad/s; the lag alone gives 2.0 for a command of 0.2 rad."""
    max_acceleration_mps2: float = 6.0
    """Largest acceleration, m/s^2."""
    max_deceleration_mps2: float = 9.0
    """Hardest braking, m/s^2."""
    max_jerk_mps3: float = 60.0
    """Fastest change of acceleration, m/s^3."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise InputError(f"simulation.limits.{name} is {value}, expected a positive number")


def step_vehicle(
    state: VehicleState,
    command: ControlCommand,
    duration_s: float,
    vehicle: VehicleParameters,
    limits: VehicleLimits,
) -> VehicleState:
    """Move B vehicles by `duration_s` under a constant command: midpoint rule in substeps of at most 10 ms."""
    substeps = max(1, ceil(duration_s / LONGEST_SUBSTEP_S - 1e-9))
    steering = np.clip(command.steering_rad, -limits.max_steering_rad, limits.max_steering_rad)
    acceleration = np.clip(command.acceleration_mps2, -limits.max_deceleration_mps2, limits.max_acceleration_mps2)
    rows = np.stack([np.asarray(value, float) for value in vars(state).values()], axis=1)
    rate_limits = np.array([limits.max_steering_rate_radps, limits.max_jerk_mps3])
    advance(rows, steering, acceleration, duration_s / substeps, substeps, coefficients(vehicle), rate_limits)
    return VehicleState(*np.ascontiguousarray(rows.T))


def state_on_path(
    planar: Float[np.ndarray, "b 3"],
    speed_mps: Float[np.ndarray, "b"],
    yaw_rate_radps: Float[np.ndarray, "b"],
    vehicle: VehicleParameters,
) -> VehicleState:
    """State of vehicles that follow a path without slip: pose (x, y, yaw; world, m, rad), speed and yaw rate given.

    The steering angle is that of the turn, or 0 while standing; the acceleration is 0.
    """
    moving = speed_mps > 0.25
    turn = np.arctan(vehicle.wheelbase_m * yaw_rate_radps / np.where(moving, speed_mps, 1.0))
    x_m, y_m, yaw_rad = (np.ascontiguousarray(planar[:, axis]) for axis in range(3))
    lateral_mps = vehicle.rear_axle_to_cg_m * yaw_rate_radps
    steering_rad = np.where(moving, turn, 0.0)
    return VehicleState(
        x_m, y_m, yaw_rad, speed_mps, lateral_mps, yaw_rate_radps, steering_rad, np.zeros_like(speed_mps)
    )


def planar_pose(state: VehicleState) -> Float[np.ndarray, "b 3"]:
    """(x, y, yaw) of the rig, world frame, m and rad, yaw not wrapped."""
    return np.stack([state.x_m, state.y_m, state.yaw_rad], axis=-1)


def rig_velocity(state: VehicleState, vehicle: VehicleParameters) -> Float[np.ndarray, "b 3"]:
    """Velocity of the rear axle in the rig frame (vx, vy; m/s) and yaw rate (rad/s)."""
    return np.stack([state.vx_mps, _rear_slip(state, vehicle), state.yaw_rate_radps], axis=-1)


def rig_acceleration(state: VehicleState, vehicle: VehicleParameters) -> Float[np.ndarray, "b 2"]:
    """Acceleration of the rear axle in the rig frame (longitudinal, lateral), m/s^2."""
    motion = np.stack([state.vx_mps, state.vy_mps, state.yaw_rate_radps, state.steering_rad], axis=1)
    lateral_rate, yaw_acceleration = lateral_rates(motion, coefficients(vehicle)).T
    slip_rate = np.where(
        state.vx_mps < vehicle.kinematic_below_mps, 0.0, lateral_rate - vehicle.rear_axle_to_cg_m * yaw_acceleration
    )
    return np.stack([state.acceleration_mps2, slip_rate + state.vx_mps * state.yaw_rate_radps], axis=-1)


def _rear_slip(state: VehicleState, vehicle: VehicleParameters) -> Float[np.ndarray, "b"]:
    slip_mps = state.vy_mps - vehicle.rear_axle_to_cg_m * state.yaw_rate_radps
    return np.where(state.vx_mps < vehicle.kinematic_below_mps, 0.0, slip_mps)
