"""The ego car: a dynamically extended bicycle with first-order actuators."""

from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Float

from controllers.interface import ControlCommand, VehicleState
from controllers.vehicle_parameters import VehicleParameters
from neural_sim.errors import InputError

LONGEST_SUBSTEP_S = 0.01
# Rate at which lateral velocity and yaw rate approach their kinematic values at low speed, 1/s.
KINEMATIC_RATE = 10.0


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
    step_s = duration_s / substeps
    steering = np.clip(command.steering_rad, -limits.max_steering_rad, limits.max_steering_rad)
    acceleration = np.clip(command.acceleration_mps2, -limits.max_deceleration_mps2, limits.max_acceleration_mps2)
    columns = np.stack([np.asarray(value, float) for value in vars(state).values()])
    for _ in range(substeps):
        middle = columns + 0.5 * step_s * _derivative(columns, steering, acceleration, vehicle, limits)
        # A braking car at rest has a negative speed at the midpoint, and would creep backwards.
        np.maximum(middle[3], 0.0, out=middle[3])
        columns = columns + step_s * _derivative(middle, steering, acceleration, vehicle, limits)
        np.maximum(columns[3], 0.0, out=columns[3])
    return VehicleState(*columns)


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
    lateral_rate, yaw_acceleration = _lateral_derivatives(
        state.vx_mps, state.vy_mps, state.yaw_rate_radps, state.steering_rad, vehicle
    )
    slip_rate = np.where(
        state.vx_mps < vehicle.kinematic_below_mps, 0.0, lateral_rate - vehicle.rear_axle_to_cg_m * yaw_acceleration
    )
    return np.stack([state.acceleration_mps2, slip_rate + state.vx_mps * state.yaw_rate_radps], axis=-1)


def _rear_slip(state: VehicleState, vehicle: VehicleParameters) -> Float[np.ndarray, "b"]:
    slip_mps = state.vy_mps - vehicle.rear_axle_to_cg_m * state.yaw_rate_radps
    return np.where(state.vx_mps < vehicle.kinematic_below_mps, 0.0, slip_mps)


def _derivative(
    columns: Float[np.ndarray, "8 b"],
    steering_command: Float[np.ndarray, "b"],
    acceleration_command: Float[np.ndarray, "b"],
    vehicle: VehicleParameters,
    limits: VehicleLimits,
) -> Float[np.ndarray, "8 b"]:
    """Time derivative of the eight states, in the order of the fields of `VehicleState`."""
    _, _, yaw, vx, vy, yaw_rate, steering, acceleration = columns
    slip = np.where(vx < vehicle.kinematic_below_mps, 0.0, vy - vehicle.rear_axle_to_cg_m * yaw_rate)
    cosine, sine = np.cos(yaw), np.sin(yaw)
    rate = np.empty_like(columns)
    rate[0] = vx * cosine - slip * sine
    rate[1] = vx * sine + slip * cosine
    rate[2] = yaw_rate
    rate[3] = acceleration
    rate[4], rate[5] = _lateral_derivatives(vx, vy, yaw_rate, steering, vehicle)
    rate[6] = _limited((steering_command - steering) / vehicle.steering_lag_s, limits.max_steering_rate_radps)
    rate[7] = _limited((acceleration_command - acceleration) / vehicle.acceleration_lag_s, limits.max_jerk_mps3)
    return rate


def _limited(rate: Float[np.ndarray, "b"], limit: float) -> Float[np.ndarray, "b"]:
    return np.minimum(np.maximum(rate, -limit), limit)


def _lateral_derivatives(
    vx: Float[np.ndarray, "b"],
    vy: Float[np.ndarray, "b"],
    yaw_rate: Float[np.ndarray, "b"],
    steering: Float[np.ndarray, "b"],
    vehicle: VehicleParameters,
) -> tuple[Float[np.ndarray, "b"], Float[np.ndarray, "b"]]:
    """Time derivatives of lateral velocity (m/s^2) and yaw rate (rad/s^2)."""
    front, rear = 2 * vehicle.front_cornering_npr, 2 * vehicle.rear_cornering_npr
    lf, lr = vehicle.front_axle_to_cg_m, vehicle.rear_axle_to_cg_m
    mass, inertia = vehicle.mass_kg, vehicle.yaw_inertia_kgm2
    slow = vx < vehicle.kinematic_below_mps
    # The dynamic branch is computed for slow vehicles too and thrown away, so its divisor must not vanish.
    speed = np.maximum(vx, vehicle.kinematic_below_mps)
    balance = (lf * front - lr * rear) / speed
    dynamic_vy = -(front + rear) / (mass * speed) * vy + (-speed - balance / mass) * yaw_rate + front / mass * steering
    damping = (lf * lf * front + lr * lr * rear) / (inertia * speed)
    dynamic_r = -balance / inertia * vy - damping * yaw_rate + lf * front / inertia * steering
    turn = vx * steering / vehicle.wheelbase_m
    kinematic_vy = KINEMATIC_RATE * (turn * lr - vy)
    kinematic_r = KINEMATIC_RATE * (turn - yaw_rate)
    return np.where(slow, kinematic_vy, dynamic_vy), np.where(slow, kinematic_r, dynamic_r)
