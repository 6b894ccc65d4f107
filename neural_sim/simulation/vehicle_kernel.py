"""The equations of the dynamically extended bicycle, compiled: each vehicle is a row, computed by itself."""

import math

import numpy as np
from jaxtyping import Float
from numba import njit

from controllers.vehicle_parameters import VehicleParameters

# Rate at which lateral velocity and yaw rate approach their kinematic values at low speed, 1/s.
KINEMATIC_RATE = 10.0


def coefficients(vehicle: VehicleParameters) -> Float[np.ndarray, "11"]:
    """What the equations need of the parameters, in the order in which the kernels read them."""
    front, rear = 2 * vehicle.front_cornering_npr, 2 * vehicle.rear_cornering_npr
    lf, lr = vehicle.front_axle_to_cg_m, vehicle.rear_axle_to_cg_m
    return np.array(
        [
            vehicle.kinematic_below_mps,
            lr,
            vehicle.wheelbase_m,
            (front + rear) / vehicle.mass_kg,
            (lf * front - lr * rear) / vehicle.mass_kg,
            front / vehicle.mass_kg,
            (lf * front - lr * rear) / vehicle.yaw_inertia_kgm2,
            (lf * lf * front + lr * lr * rear) / vehicle.yaw_inertia_kgm2,
            lf * front / vehicle.yaw_inertia_kgm2,
            vehicle.steering_lag_s,
            vehicle.acceleration_lag_s,
        ]
    )


@njit(cache=True)
def advance(
    rows: Float[np.ndarray, "b 8"],
    steering_command: Float[np.ndarray, "b"],
    acceleration_command: Float[np.ndarray, "b"],
    step_s: float,
    substeps: int,
    c: Float[np.ndarray, "11"],
    rate_limits: Float[np.ndarray, "2"],
) -> None:
    """Move each row (fields of `VehicleState` in order) by `substeps` midpoint steps, in place.

    `rate_limits`: fastest change of steering (rad/s) and of acceleration (m/s^3).
    """
    middle, rate = np.empty(8), np.empty(8)
    for b in range(rows.shape[0]):
        for _ in range(substeps):
            _derivative(rows[b], steering_command[b], acceleration_command[b], c, rate_limits, rate)
            for i in range(8):
                middle[i] = rows[b, i] + 0.5 * step_s * rate[i]
            # A braking car at rest has a negative speed at the midpoint, and would creep backwards.
            middle[3] = max(middle[3], 0.0)
            _derivative(middle, steering_command[b], acceleration_command[b], c, rate_limits, rate)
            for i in range(8):
                rows[b, i] += step_s * rate[i]
            rows[b, 3] = max(rows[b, 3], 0.0)


@njit(cache=True)
def lateral_rates(motion: Float[np.ndarray, "b 4"], c: Float[np.ndarray, "11"]) -> Float[np.ndarray, "b 2"]:
    """Time derivatives of lateral velocity (m/s^2) and yaw rate (rad/s^2).

    `motion`: vx, vy (m/s), yaw rate (rad/s) and steering angle (rad) of each vehicle.
    """
    result = np.empty((motion.shape[0], 2))
    for b in range(motion.shape[0]):
        result[b, 0], result[b, 1] = _lateral(motion[b, 0], motion[b, 1], motion[b, 2], motion[b, 3], c)
    return result


@njit(cache=True)
def _derivative(
    state: Float[np.ndarray, "8"],
    steering_command: float,
    acceleration_command: float,
    c: Float[np.ndarray, "11"],
    rate_limits: Float[np.ndarray, "2"],
    rate: Float[np.ndarray, "8"],
) -> None:
    yaw, vx, vy, yaw_rate = state[2], state[3], state[4], state[5]
    slip = 0.0 if vx < c[0] else vy - c[1] * yaw_rate
    cosine, sine = math.cos(yaw), math.sin(yaw)
    rate[0] = vx * cosine - slip * sine
    rate[1] = vx * sine + slip * cosine
    rate[2] = yaw_rate
    rate[3] = state[7]
    rate[4], rate[5] = _lateral(vx, vy, yaw_rate, state[6], c)
    rate[6] = min(max((steering_command - state[6]) / c[9], -rate_limits[0]), rate_limits[0])
    rate[7] = min(max((acceleration_command - state[7]) / c[10], -rate_limits[1]), rate_limits[1])


@njit(cache=True)
def _lateral(vx: float, vy: float, yaw_rate: float, steering: float, c: Float[np.ndarray, "11"]) -> tuple[float, float]:
    if vx < c[0]:
        turn = vx * steering / c[2]
        return KINEMATIC_RATE * (turn * c[1] - vy), KINEMATIC_RATE * (turn - yaw_rate)
    lateral = -c[3] / vx * vy - (vx + c[4] / vx) * yaw_rate + c[5] * steering
    return lateral, -c[6] / vx * vy - c[7] / vx * yaw_rate + c[8] * steering
