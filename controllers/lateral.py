"""Steering: a preview regulator on the lateral error model, scheduled over speed."""

import numpy as np
from jaxtyping import Float

from controllers.config import ControllerConfig
from controllers.interface import VehicleState
from controllers.preview import PreviewGains, discretise, preview_gains
from controllers.reference import PathPoint, WorldPlan, row_sum, shape_along
from controllers.vehicle_parameters import VehicleParameters

# A car that hardly moves cannot correct its lateral error; slower than this the gains stay those of this speed.
SLOWEST_SCHEDULED_MPS = 1.0
FASTEST_SCHEDULED_MPS = 45.0


def lateral_model(
    speed_mps: float, vehicle: VehicleParameters
) -> tuple[Float[np.ndarray, "5 5"], Float[np.ndarray, "5 3"]]:
    """Lateral errors of the bicycle at constant speed: dx/dt = A x + B (command, turn, slide).

    State: cross-track error of the rear axle (m, left positive), heading error (rad), lateral velocity of the centre
    of gravity (m/s), yaw rate (rad/s), steering angle (rad). Inputs: steering command (rad), heading rate of the path
    (rad/s), rate at which the path slides sideways to its own heading (m/s). Below `kinematic_below_mps` the rear axle
    does not slip.
    """
    A, B = np.zeros((5, 5)), np.zeros((5, 3))
    A[0, 1], A[1, 3], A[4, 4] = speed_mps, 1.0, -1.0 / vehicle.steering_lag_s
    B[4, 0], B[1, 1], B[0, 2] = 1.0 / vehicle.steering_lag_s, -1.0, -1.0
    if speed_mps < vehicle.kinematic_below_mps:
        A[2, 2] = A[3, 3] = -10.0
        A[2, 4] = 10.0 * speed_mps * vehicle.rear_axle_to_cg_m / vehicle.wheelbase_m
        A[3, 4] = 10.0 * speed_mps / vehicle.wheelbase_m
        return A, B
    front, rear = 2 * vehicle.front_cornering_npr, 2 * vehicle.rear_cornering_npr
    lf, lr = vehicle.front_axle_to_cg_m, vehicle.rear_axle_to_cg_m
    mass, inertia = vehicle.mass_kg, vehicle.yaw_inertia_kgm2
    A[0, 2], A[0, 3] = 1.0, -lr
    A[2, 2] = -(front + rear) / (mass * speed_mps)
    A[2, 3] = -speed_mps - (lf * front - lr * rear) / (mass * speed_mps)
    A[2, 4] = front / mass
    A[3, 2] = -(lf * front - lr * rear) / (inertia * speed_mps)
    A[3, 3] = -(lf**2 * front + lr**2 * rear) / (inertia * speed_mps)
    A[3, 4] = lf * front / inertia
    return A, B


def lateral_gains(
    speed_mps: float, step_s: float, steps: int, vehicle: VehicleParameters, config: ControllerConfig
) -> PreviewGains:
    """Gains at one speed. The input is the steering command minus the steering angle; the previewed disturbances are
    the change of the path's heading (rad) and its slide (m) over each control step."""
    A, B = lateral_model(speed_mps, vehicle)
    A_step, B_step = discretise(A, B, step_s)
    command, path = B_step[:, :1], B_step[:, 1:] / step_s
    relative = A_step.copy()
    relative[:, 4:] += command
    course = A[0] / speed_mps
    Q = config.course_weight * np.outer(course, course)
    Q[0, 0] += config.lateral_weight
    return preview_gains(relative, command, path, Q, config.steering_change_weight, steps)


class LateralRegulator:
    """Steering commands for a batch, with gains interpolated over speed."""

    def __init__(self, vehicle: VehicleParameters, config: ControllerConfig, step_s: float) -> None:
        self._vehicle, self._config, self._step_s = vehicle, config, step_s
        self._steps = max(1, round(config.preview_s / step_s))
        self._speeds_mps = speed_grid(vehicle.kinematic_below_mps)
        gains = [lateral_gains(float(v), step_s, self._steps, vehicle, config) for v in self._speeds_mps]
        rows = [np.concatenate([gain.feedback, gain.preview[:, 0], gain.preview[:, 1]]) for gain in gains]
        self._table = np.array(rows)

    def steering(
        self, state: VehicleState, plan: WorldPlan, here: PathPoint, travel_m: Float[np.ndarray, "b steps"]
    ) -> Float[np.ndarray, "b"]:
        """Steering command, rad. `travel_m` [B, N + 1]: distance the vehicle covers in 0..N control steps."""
        errors, turns_rad, slides_m = lateral_errors(state, plan, here, travel_m)
        change = -row_sum(self._gains_at(state.vx_mps) * np.concatenate([errors, turns_rad, slides_m], axis=-1))
        return settled_steering(state.steering_rad + change, state, self._vehicle, self._config)

    def _gains_at(self, speed_mps: Float[np.ndarray, "b"]) -> Float[np.ndarray, "b n"]:
        grid = self._speeds_mps
        speed_mps = np.clip(speed_mps, grid[0], grid[-1])
        index = np.clip(np.searchsorted(grid, speed_mps, side="right") - 1, 0, len(grid) - 2)
        fraction = ((speed_mps - grid[index]) / (grid[index + 1] - grid[index]))[:, None]
        return self._table[index] + fraction * (self._table[index + 1] - self._table[index])


def lateral_errors(
    state: VehicleState, plan: WorldPlan, here: PathPoint, travel_m: Float[np.ndarray, "b steps"]
) -> tuple[Float[np.ndarray, "b 5"], Float[np.ndarray, "b n"], Float[np.ndarray, "b n"]]:
    """State of `lateral_model` [B, 5] at the nearest point, and the path ahead: its turn (rad) and slide (m) [B, N].

    `travel_m` [B, N + 1]: distance the vehicle covers in 0..N control steps.
    """
    headings, slides = shape_along(plan, here.travelled_m[:, None] + travel_m)
    heading_error = (state.yaw_rad - here.yaw_rad + np.pi) % (2 * np.pi) - np.pi
    cross_m = cross_track(here, state.x_m, state.y_m)
    motion = (cross_m, heading_error, state.vy_mps, state.yaw_rate_radps, state.steering_rad)
    return np.stack(motion, axis=-1), np.diff(headings, axis=-1), np.diff(slides, axis=-1)


def settled_steering(
    steering_rad: Float[np.ndarray, "b"], state: VehicleState, vehicle: VehicleParameters, config: ControllerConfig
) -> Float[np.ndarray, "b"]:
    """A steering command within the limits, its change faded out towards standstill, rad."""
    fade = np.minimum(state.vx_mps / config.standing_mps, 1.0)
    limit = steering_limit(state.vx_mps, vehicle, config)
    return np.clip(state.steering_rad + fade * (steering_rad - state.steering_rad), -limit, limit)


def steering_limit(
    speed_mps: Float[np.ndarray, "*b"], vehicle: VehicleParameters, config: ControllerConfig
) -> Float[np.ndarray, "*b"]:
    """Largest steering angle at a speed, rad: the hard limit, or what a steady turn at the largest lateral acceleration
    needs."""
    turn = vehicle.wheelbase_m / np.maximum(speed_mps * speed_mps, 1e-6)
    return np.minimum(
        config.max_steering_rad, config.max_lateral_acceleration_mps2 * (turn + vehicle.understeer_rad_per_mps2)
    )


def cross_track(here: PathPoint, x_m: Float[np.ndarray, "b"], y_m: Float[np.ndarray, "b"]) -> Float[np.ndarray, "b"]:
    """Offset of (x, y) from a point of the path, across the path, m, left positive."""
    return np.cos(here.yaw_rad) * (y_m - here.y_m) - np.sin(here.yaw_rad) * (x_m - here.x_m)


def speed_grid(switch_mps: float) -> Float[np.ndarray, "g"]:
    """Scheduled speeds, m/s, 0.5 apart while slow, with one just under the change of model."""
    slow = np.arange(SLOWEST_SCHEDULED_MPS, max(10.0, switch_mps + 1.0), 0.5)
    fast = np.geomspace(slow[-1] + 1.0, FASTEST_SCHEDULED_MPS, 16)
    return np.unique(np.concatenate([slow, [switch_mps - 1e-3, switch_mps], fast]))
