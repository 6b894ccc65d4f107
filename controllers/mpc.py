"""Linear model-predictive control: one quadratic program per rollout and step, solved by OSQP."""

from dataclasses import dataclass

import numpy as np
import osqp
import scipy.sparse
from jaxtyping import Float

from controllers.config import ControllerConfig
from controllers.interface import ControlCommand, VehicleState
from controllers.lateral import lateral_errors, lateral_model, settled_steering, speed_grid, steering_limit
from controllers.longitudinal import bounded_acceleration, longitudinal_errors, longitudinal_model
from controllers.preview import discretise
from controllers.reference import WorldPlan, nearest_point, speed_at, travelled_at
from controllers.tracking import TrackingController, expected_travel
from controllers.vehicle_parameters import VehicleParameters


@dataclass(frozen=True)
class _Prediction:
    """States of one rollout over the horizon as an affine function of its N commands: x = free + effect @ u.

    Attributes:
        free: float64 [N, n], states after 1..N steps under zero commands.
        effect: float64 [N, n, N].
    """

    free: Float[np.ndarray, "steps n"]
    effect: Float[np.ndarray, "steps n steps"]


class MpcController:
    """Follows plans by minimising tracking errors and command increments over a horizon, within limits.

    Variables: N steering commands, N acceleration commands, N speed slacks. The lateral errors follow the bicycle
    linearised at the speed expected at each step, with the turns of the path ahead as known disturbances; the
    longitudinal errors follow a double integrator behind the actuator lag. Steering and acceleration are bounded; the
    speed is bounded softly to [0, max_speed]. The solver starts from the previous solution, shifted by one step.

    When the solver does not report "solved", the command is that of the tracking controller and the row is listed in
    `ControlCommand.failures`. Each program is built and solved alone, so results do not depend on the batch.
    """

    def __init__(self, vehicle: VehicleParameters, config: ControllerConfig, step_us: int) -> None:
        self._fallback = TrackingController(vehicle, config, step_us)
        self._vehicle, self._config, self._step_us = vehicle, config, step_us
        self._steps = max(2, round(config.mpc.horizon_s * 1e6 / step_us))
        self._speeds_mps = speed_grid(vehicle.kinematic_below_mps)
        models = [lateral_model(float(v), vehicle) for v in self._speeds_mps]
        discrete = [discretise(A, B, step_us * 1e-6) for A, B in models]
        self._lateral_A = np.array([A for A, _ in discrete])
        self._lateral_B = np.array([B for _, B in discrete])
        self._course = np.array([A[0] / v for v, (A, _) in zip(self._speeds_mps, models, strict=True)])
        A, B = longitudinal_model(vehicle, step_us * 1e-6)
        self._longitudinal_effect = _predict(np.zeros(3), [A] * self._steps, [B] * self._steps, np.zeros((0, 3))).effect
        self._longitudinal_A = A

    def command(
        self, state: VehicleState, plan: WorldPlan, t_us: int, previous: ControlCommand | None = None
    ) -> ControlCommand:
        """Commands to hold for one control step from `t_us`; see `Controller`."""
        programs = self._programs(state, plan, t_us)
        started = [None] * len(programs) if previous is None or previous.memory is None else list(previous.memory)
        answers = [program.solve(start, self._config) for program, start in zip(programs, started, strict=True)]
        memory = np.stack([answer.memory for answer in answers])
        steering = settled_steering(memory[:, 0].copy(), state, self._vehicle, self._config)
        acceleration = bounded_acceleration(memory[:, self._steps].copy(), state.vx_mps, self._config)
        failures = tuple((b, answer.failure) for b, answer in enumerate(answers) if answer.failure)
        if failures:
            instead = self._fallback.command(state, plan, t_us)
            rows = [b for b, _ in failures]
            steering[rows], acceleration[rows] = instead.steering_rad[rows], instead.acceleration_mps2[rows]
        return ControlCommand(steering, acceleration, memory, failures)

    def _programs(self, state: VehicleState, plan: WorldPlan, t_us: int) -> list["_Program"]:
        step_s = self._step_us * 1e-6
        here = nearest_point(plan, state.x_m, state.y_m)
        query_us = t_us + self._step_us * np.arange(self._steps + 1)
        planned_m = travelled_at(plan, query_us)
        planned_mps = speed_at(plan, query_us, round(self._config.speed_window_s * 5e5))
        travel_m = expected_travel(state.vx_mps, planned_m, planned_mps[:, 0], step_s)
        lateral = lateral_errors(state, plan, here, travel_m)
        longitudinal = longitudinal_errors(state, here.travelled_m, planned_m, planned_mps, step_s)
        speeds_mps = np.diff(travel_m) / step_s
        return [
            self._program(
                tuple(values[b] for values in lateral),
                tuple(values[b] for values in longitudinal),
                speeds_mps[b],
                planned_mps[b, 1:],
            )
            for b in range(len(state.x_m))
        ]

    def _program(
        self,
        lateral: tuple[np.ndarray, ...],
        longitudinal: tuple[np.ndarray, ...],
        speeds_mps: Float[np.ndarray, "steps"],
        planned_mps: Float[np.ndarray, "steps"],
    ) -> "_Program":
        """The program of one rollout from its errors, its expected speeds and the planned speeds after each step."""
        config, n = self._config, self._steps
        index = np.abs(self._speeds_mps[:, None] - speeds_mps).argmin(axis=0)
        disturbance = np.stack([lateral[1], lateral[2]], axis=-1) / (self._step_us * 1e-6)
        B = self._lateral_B[index]
        pushed = np.einsum("nij,nj->ni", B[:, :, 1:], disturbance)
        side = _predict(lateral[0], self._lateral_A[index], B[:, :, :1], pushed)
        pushed = np.stack([longitudinal[1], -longitudinal[2], np.zeros(n)], axis=-1)
        free = _free_response(longitudinal[0], [self._longitudinal_A] * n, pushed)
        along = _Prediction(free, self._longitudinal_effect)
        rows = np.concatenate([side.effect[:, 0], np.einsum("ni,nij->nj", self._course[index], side.effect)])
        offset = np.concatenate([side.free[:, 0], np.einsum("ni,ni->n", self._course[index], side.free)])
        weights = np.repeat([config.lateral_weight, config.course_weight], n)
        steering = _cost(rows, offset, weights, config.steering_change_weight, float(lateral[0][4]))
        rows, offset = np.concatenate([along.effect[:, 0], along.effect[:, 1]]), along.free[:, :2].T.ravel()
        weights = np.repeat([config.position_weight, config.speed_weight], n)
        speed = _cost(rows, offset, weights, config.acceleration_change_weight, float(longitudinal[0][2]))
        limit = steering_limit(speeds_mps, self._vehicle, config)
        return _assemble(steering, speed, limit, planned_mps + along.free[:, 1], along.effect[:, 1], config)


@dataclass(frozen=True)
class _Answer:
    """Solution x and multipliers y in one row, and why it must not be used ("" when it may)."""

    memory: Float[np.ndarray, "m"]
    failure: str


@dataclass(frozen=True)
class _Program:
    """min 1/2 x'Px + q'x with low <= A x <= high; x is steering [N], acceleration [N], slack [N]."""

    P: scipy.sparse.csc_matrix
    q: Float[np.ndarray, "v"]
    A: scipy.sparse.csc_matrix
    low: Float[np.ndarray, "c"]
    high: Float[np.ndarray, "c"]

    def solve(self, start: Float[np.ndarray, "m"] | None, config: ControllerConfig) -> _Answer:
        """Solve from the previous answer's `memory`, if there is one.

        A fresh solver each time: OSQP adapts its step size from solve to solve, which would make a result depend on
        the ones before it.
        """
        solver, size = osqp.OSQP(), len(self.q)
        solver.setup(
            self.P, self.q, self.A, self.low, self.high, verbose=False, eps_abs=config.mpc.tolerance,
            eps_rel=config.mpc.tolerance, max_iter=config.mpc.max_iterations, check_termination=10,
        )  # fmt: skip
        if start is not None:
            solver.warm_start(x=_shifted(start[:size], 3), y=start[size:])
        result = solver.solve(raise_error=False)
        memory = np.concatenate([result.x, result.y])
        if result.info.status == "solved" and np.isfinite(memory).all():
            return _Answer(memory, "")
        reason = f"OSQP: {result.info.status} after {result.info.iter} iterations; used the tracking controller"
        return _Answer(np.zeros_like(memory), reason)


def _predict(
    start: Float[np.ndarray, "n"],
    A: Float[np.ndarray, "steps n n"] | list[np.ndarray],
    B: Float[np.ndarray, "steps n 1"] | list[np.ndarray],
    pushed: Float[np.ndarray, "steps n"],
) -> _Prediction:
    """Affine prediction of x+ = A x + B u + pushed from `start`; an empty `pushed` means none."""
    steps, size = len(A), len(start)
    pushed = pushed if len(pushed) else np.zeros((steps, size))
    effect = np.zeros((steps, size, steps))
    column = np.zeros((size, steps))
    for k in range(steps):
        column = A[k] @ column
        column[:, k] = B[k][:, 0]
        effect[k] = column
    return _Prediction(_free_response(start, A, pushed), effect)


def _free_response(
    state: Float[np.ndarray, "n"],
    A: Float[np.ndarray, "steps n n"] | list[np.ndarray],
    pushed: Float[np.ndarray, "steps n"],
) -> Float[np.ndarray, "steps n"]:
    """States after 1..N steps of x+ = A x + pushed."""
    states = np.empty((len(A), len(state)))
    for k in range(len(A)):
        state = A[k] @ state + pushed[k]
        states[k] = state
    return states


def _cost(
    rows: Float[np.ndarray, "r steps"],
    offset: Float[np.ndarray, "r"],
    weights: Float[np.ndarray, "r"],
    increment_weight: float,
    present: float,
) -> tuple[Float[np.ndarray, "steps steps"], Float[np.ndarray, "steps"]]:
    """Hessian and gradient of sum w (rows u + offset)^2 + increment_weight sum (u_k - u_(k-1))^2, u_-1 = `present`."""
    steps = rows.shape[1]
    difference = np.eye(steps) - np.eye(steps, k=-1)
    hessian = 2 * (rows.T @ (weights[:, None] * rows) + increment_weight * difference.T @ difference)
    gradient = 2 * rows.T @ (weights * offset)
    gradient[0] -= 2 * increment_weight * present
    return hessian, gradient


def _assemble(
    steering: tuple[np.ndarray, np.ndarray],
    acceleration: tuple[np.ndarray, np.ndarray],
    steering_limit_rad: Float[np.ndarray, "steps"],
    free_speed_mps: Float[np.ndarray, "steps"],
    speed_effect: Float[np.ndarray, "steps steps"],
    config: ControllerConfig,
) -> _Program:
    """Costs and bounds of both commands and of the slack s >= 0: 0 - s <= speed <= max_speed + s."""
    n, unbounded = len(steering_limit_rad), np.full(len(steering_limit_rad), np.inf)
    zero, one = np.zeros((n, n)), np.eye(n)
    P = scipy.sparse.block_diag(
        [np.triu(steering[0]), np.triu(acceleration[0]), 2 * config.mpc.speed_slack_weight * one],
    )
    A = np.block(
        [[one, zero, zero], [zero, one, zero], [zero, zero, one], [zero, speed_effect, -one], [zero, speed_effect, one]]
    )
    low = [-steering_limit_rad, np.full(n, -config.max_deceleration_mps2), np.zeros(n), -unbounded, -free_speed_mps]
    ceiling = config.mpc.max_speed_mps - free_speed_mps
    high = [steering_limit_rad, np.full(n, config.max_acceleration_mps2), unbounded, ceiling, unbounded]
    gradient = np.concatenate([steering[1], acceleration[1], np.zeros(n)])
    return _Program(
        scipy.sparse.csc_matrix(P), gradient, scipy.sparse.csc_matrix(A), np.concatenate(low), np.concatenate(high)
    )


def _shifted(solution: Float[np.ndarray, "v"], parts: int) -> Float[np.ndarray, "v"]:
    """Each of the equal `parts` one step later, its last value kept."""
    rows = solution.reshape(parts, -1)
    return np.concatenate([rows[:, 1:], rows[:, -1:]], axis=1).ravel()
