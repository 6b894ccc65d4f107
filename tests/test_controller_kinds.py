"""The predictive controller and the plain baseline, beside the default and through the closed loop."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_scene import CAMERAS, arc_planar, make_scene

from controllers.choice import make_controller
from controllers.config import ControllerConfig, MpcConfig, PurePursuitConfig
from controllers.errors import ControlError
from controllers.interface import ControlCommand, VehicleState
from controllers.mpc import MpcController
from controllers.reference import WorldPlan, point_along, world_plan
from controllers.vehicle_parameters import VehicleParameters
from neural_sim.frames import planar_to_local
from neural_sim.simulation.blank import BlankRenderer
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.observation import ImageFormat
from neural_sim.simulation.simulator import Simulator
from neural_sim.simulation.vehicle import VehicleLimits, state_on_path, step_vehicle

VEHICLE, STEP_US = VehicleParameters(), 100_000
IMAGES = ImageFormat(CAMERAS, num_frames=1, frame_interval_us=STEP_US, width_px=8, height_px=6)
KINDS = ("tracking", "mpc", "pure_pursuit")


def plan_of(planar: np.ndarray, t_us: int) -> WorldPlan:
    planar = np.atleast_3d(planar) if planar.ndim == 3 else planar[None]
    return world_plan(np.full(len(planar), t_us), STEP_US, planar[..., 0], planar[..., 1], planar[..., 2])


def on_path(speed_mps: float, curvature: float) -> VehicleState:
    return state_on_path(np.zeros((1, 3)), np.array([speed_mps]), np.array([speed_mps * curvature]), VEHICLE)


def drive(
    config: ControllerConfig, start: VehicleState, path, duration_s: float
) -> tuple[list[VehicleState], list[ControlCommand]]:
    """Follow the world path `path(t_s) -> [n, 3]`, planned anew at every step."""
    controller = make_controller(VEHICLE, config, STEP_US)
    states, commands = [start], []
    previous = None
    for k in range(round(duration_s * 10)):
        plan = plan_of(path(0.1 * (k + np.arange(65))), k * STEP_US)
        previous = controller.command(states[-1], plan, k * STEP_US, previous)
        commands.append(previous)
        states.append(step_vehicle(states[-1], previous, 0.1, VEHICLE, VehicleLimits()))
    return states, commands


def constant_turn(speed_mps: float, curvature: float):
    return lambda t: arc_planar(speed_mps * t, curvature)


@pytest.mark.parametrize(("speed_mps", "curvature"), [(4.0, 0.1), (10.0, 0.03), (20.0, -0.01)])
def test_the_predictive_controller_holds_a_turn(speed_mps, curvature):
    path = constant_turn(speed_mps, curvature)
    states, commands = drive(ControllerConfig(kind="mpc"), on_path(speed_mps, curvature), path, 6.0)
    offsets = [np.hypot(*(np.array([s.x_m[0], s.y_m[0]]) - path(0.1 * k)[:2])) for k, s in enumerate(states)]
    assert max(offsets) < 0.08
    assert offsets[-1] < 0.04
    assert all(command.failures == () for command in commands)


@pytest.mark.parametrize(("speed_mps", "curvature", "most_m"), [(4.0, 0.1, 0.1), (10.0, 0.01, 0.3)])
def test_pure_pursuit_holds_gentle_turns(speed_mps, curvature, most_m):
    path = constant_turn(speed_mps, curvature)
    states, _ = drive(ControllerConfig(kind="pure_pursuit"), on_path(speed_mps, curvature), path, 6.0)
    assert max(np.hypot(*(np.array([s.x_m[0], s.y_m[0]]) - path(0.1 * k)[:2])) for k, s in enumerate(states)) < most_m


@pytest.mark.parametrize("kind", KINDS)
def test_every_controller_stops_and_stays(kind):
    states, _ = drive(ControllerConfig(kind=kind), on_path(10.0, 0.0), lambda t: np.zeros((len(t), 3)), 8.0)
    assert states[-1].vx_mps[0] == 0.0
    assert states[-1].x_m[0] == states[-10].x_m[0]
    assert states[-1].steering_rad[0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mirrored_path_gives_the_mirrored_command(kind):
    start = VehicleState(*(np.array([v]) for v in (0.0, 0.4, 0.05, 9.0, 0.1, 0.05, 0.02, 0.3)))
    mirrored = replace(
        start, y_m=-start.y_m, yaw_rad=-start.yaw_rad, vy_mps=-start.vy_mps,
        yaw_rate_radps=-start.yaw_rate_radps, steering_rad=-start.steering_rad,
    )  # fmt: skip
    commands = [
        make_controller(VEHICLE, ControllerConfig(kind=kind), STEP_US).command(
            state, plan_of(arc_planar(0.9 * np.arange(65), sign * 0.02), 0), 0
        )
        for state, sign in ((start, 1), (mirrored, -1))
    ]
    # The solver stops within its tolerance, not at the exact optimum.
    assert commands[0].steering_rad[0] == pytest.approx(-commands[1].steering_rad[0], abs=1e-3)
    assert commands[0].acceleration_mps2[0] == pytest.approx(commands[1].acceleration_mps2[0], abs=1e-2)


def test_limits_of_the_program_hold():
    far = arc_planar(3.0 * np.arange(65), 0.0) + np.array([0.0, 8.0, 0.0])
    config = ControllerConfig(kind="mpc")
    command = make_controller(VEHICLE, config, STEP_US).command(on_path(25.0, 0.0), plan_of(far, 0), 0)
    limit = config.max_lateral_acceleration_mps2 * (2.85 / 25.0**2 + VEHICLE.understeer_rad_per_mps2)
    assert abs(command.steering_rad[0]) <= limit + 1e-9
    assert command.acceleration_mps2[0] <= config.max_acceleration_mps2
    assert command.failures == ()


def test_too_much_speed_is_paid_for_and_never_infeasible():
    """AlpaSim's hard bound makes the program infeasible above it, and its answer silently [0, 0]."""
    path = lambda t: arc_planar(30.0 * t, 0.0)  # noqa: E731
    slow = ControllerConfig(kind="mpc", mpc=MpcConfig(max_speed_mps=12.0))
    states, commands = drive(slow, on_path(20.0, 0.0), path, 6.0)
    assert all(command.failures == () for command in commands)
    assert states[-1].vx_mps[0] < 14.0
    free, _ = drive(ControllerConfig(kind="mpc"), on_path(20.0, 0.0), path, 6.0)
    assert free[-1].vx_mps[0] > 25.0


def test_a_failed_program_falls_back_and_says_so():
    hasty = ControllerConfig(kind="mpc", mpc=MpcConfig(max_iterations=1, tolerance=1e-9))
    plan, state = plan_of(arc_planar(np.arange(65), 0.03), 0), on_path(8.0, 0.0)
    found = make_controller(VEHICLE, hasty, STEP_US).command(state, plan, 0)
    expected = make_controller(VEHICLE, ControllerConfig(), STEP_US).command(state, plan, 0)
    assert found.steering_rad == expected.steering_rad
    assert found.acceleration_mps2 == expected.acceleration_mps2
    ((row, reason),) = found.failures
    assert row == 0
    assert reason == "OSQP: maximum iterations reached after 1 iterations; used the tracking controller"


def test_solver_failures_become_events_of_their_rollout():
    config = replace(
        SimulationConfig(), controller=ControllerConfig(kind="mpc", mpc=MpcConfig(max_iterations=1, tolerance=1e-9))
    )
    simulator = Simulator(make_scene(curvature=0.02), BlankRenderer(), config, IMAGES)
    simulator.reset([0, 1])
    future, _ = simulator.expert_future()
    _, info = simulator.step(planar_to_local(future[None], simulator.ego_planar[:, None]))
    assert [[event.kind for event in events] for events in info.events] == [["solver_failed"]] * 2
    assert info.events[0][0].t_us == simulator.handover_us


def test_warm_start_saves_iterations(monkeypatch):
    import osqp

    iterations: list[int] = []
    solve = osqp.OSQP.solve

    def counted(self, raise_error=None):
        result = solve(self, raise_error=raise_error)
        iterations.append(result.info.iter)
        return result

    monkeypatch.setattr(osqp.OSQP, "solve", counted)
    path = constant_turn(8.0, 0.04)
    drive(ControllerConfig(kind="mpc"), on_path(8.0, 0.04), path, 2.0)
    warm, cold = iterations[1:], []
    iterations.clear()
    monkeypatch.setattr(osqp.OSQP, "warm_start", lambda self, x=None, y=None: None)
    drive(ControllerConfig(kind="mpc"), on_path(8.0, 0.04), path, 2.0)
    cold = iterations[1:]
    assert np.mean(warm) < np.mean(cold)


@pytest.mark.parametrize("kind", ["mpc", "pure_pursuit"])
def test_batches_and_restored_states_repeat_to_the_bit(kind):
    config = replace(SimulationConfig(), controller=ControllerConfig(kind=kind))
    scene = make_scene(curvature=0.03)

    def wander(simulator: Simulator, seeds: list[int], steps: int) -> None:
        for _ in range(steps):
            future, _ = simulator.expert_future()
            plans = planar_to_local(future[None], simulator.ego_planar[:, None])
            plans[..., 1] += 0.01 * np.array(seeds)[:, None] * np.arange(64)
            simulator.step(plans)

    together = Simulator(scene, BlankRenderer(), config, IMAGES)
    together.reset([1, 2])
    wander(together, [1, 2], 8)
    saved = together.save_state()
    wander(together, [1, 2], 8)
    end = together.ego_planar
    together.restore_state(saved)
    wander(together, [1, 2], 8)
    assert np.array_equal(together.ego_planar, end)
    alone = Simulator(scene, BlankRenderer(), config, IMAGES)
    alone.reset([2])
    wander(alone, [2], 16)
    assert np.array_equal(alone.ego_planar[0], end[1])


def test_points_along_a_path_go_straight_on_after_its_end():
    plan = plan_of(arc_planar(np.linspace(0, 10, 65), 0.1), 0)
    length_m = plan.travelled_m[0, -1]
    x_m, y_m = point_along(plan, np.array([length_m + 2.0]))
    end = arc_planar(np.array([10.0]), 0.1)[0]
    np.testing.assert_allclose([x_m[0], y_m[0]], end[:2] + 2.0 * np.array([np.cos(end[2]), np.sin(end[2])]), atol=1e-9)


def test_bad_settings_are_named():
    with pytest.raises(ControlError, match=r"kind is 'pid', expected one of tracking, mpc, pure_pursuit"):
        ControllerConfig(kind="pid")  # type: ignore[arg-type]
    with pytest.raises(ControlError, match=r"ControllerConfig.mpc.horizon_s is -1, expected a positive number"):
        MpcConfig(horizon_s=-1)
    with pytest.raises(ControlError, match=r"ControllerConfig.pure_pursuit.lookahead_s is 0, expected"):
        PurePursuitConfig(lookahead_s=0)
    with pytest.raises(ControlError, match="control step is -1 us"):
        MpcController(VEHICLE, ControllerConfig(), -1)
