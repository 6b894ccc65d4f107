import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.config import ControllerConfig
from controllers.errors import ControlError
from controllers.interface import VehicleState
from controllers.lateral import lateral_gains, lateral_model
from controllers.preview import discretise, preview_gains
from controllers.reference import (
    WorldPlan,
    nearest_point,
    poses_at,
    replace_rows,
    shape_along,
    speed_at,
    travelled_at,
    world_plan,
)
from controllers.tracking import TrackingController
from controllers.vehicle_parameters import VehicleParameters
from neural_sim.simulation.vehicle import VehicleLimits, state_on_path, step_vehicle

STEP_US = 100_000
VEHICLE, CONFIG = VehicleParameters(), ControllerConfig()


def plan_of(planar: np.ndarray, start_us: int = 0) -> WorldPlan:
    """One plan from (x, y, yaw) [P, 3] at 10 Hz."""
    return world_plan(np.array([start_us]), STEP_US, planar[None, :, 0], planar[None, :, 1], planar[None, :, 2])


def straight(speed_mps: float, points: int = 65) -> np.ndarray:
    return np.column_stack([speed_mps * 0.1 * np.arange(points), np.zeros(points), np.zeros(points)])


def arc(speed_mps: float, curvature: float, t_s: np.ndarray) -> np.ndarray:
    yaw = curvature * speed_mps * t_s
    return np.stack([np.sin(yaw) / curvature, (1 - np.cos(yaw)) / curvature, yaw], axis=-1)


def moving(x_m=0.0, y_m=0.0, yaw_rad=0.0, vx_mps=0.0, **rest) -> VehicleState:
    values = {"x_m": x_m, "y_m": y_m, "yaw_rad": yaw_rad, "vx_mps": vx_mps, **rest}
    return VehicleState(*(np.array([values.get(name, 0.0)]) for name in VehicleState.__dataclass_fields__))


def test_a_plan_is_read_by_absolute_time_and_stops_at_its_end():
    plan = plan_of(straight(5.0), start_us=1_000_000)
    np.testing.assert_allclose(poses_at(plan, np.array([1_250_000]))[0, 0], [1.25, 0, 0])
    assert travelled_at(plan, np.array([0, 1_400_000, 99_000_000]))[0].tolist() == pytest.approx([0.0, 2.0, 32.0])
    speeds = speed_at(plan, np.array([1_000_000, 3_000_000, 7_400_000, 8_000_000]), 200_000)[0]
    np.testing.assert_allclose(speeds, [5.0, 5.0, 2.5, 0.0])


def test_headings_are_unwrapped_along_the_plan():
    planar = straight(5.0)
    planar[:, 2] = np.where(np.arange(65) < 30, 3.1, -3.1)
    between = poses_at(plan_of(planar), np.array([2_950_000]))[0, 0, 2]
    assert between == pytest.approx(np.pi)


def test_backwards_and_standing_plans_do_not_travel():
    assert not plan_of(straight(-5.0)).travelled_m.any()
    assert not plan_of(straight(0.0)).travelled_m.any()


def test_a_path_that_moves_sideways_slides():
    planar = straight(5.0)
    planar[:, 1] = 0.1 * np.arange(65)
    heading, slid = shape_along(plan_of(planar), np.array([[0.0, 1.25, 32.0]]))
    np.testing.assert_allclose(slid, [[0.0, 0.25, 6.4]])
    assert not heading.any()


@settings(max_examples=30, deadline=None)
@given(st.floats(-5, 40), st.floats(-10, 10))
def test_the_nearest_point_is_nearer_than_any_sample_of_the_path(x, y):
    plan = plan_of(arc(8.0, 0.08, 0.1 * np.arange(65)))
    here = nearest_point(plan, np.array([x]), np.array([y]))
    fine = poses_at(plan, np.arange(0, 6_400_001, 5_000))[0]
    closest = np.hypot(fine[:, 0] - x, fine[:, 1] - y).min()
    found = np.hypot(here.x_m[0] - x, here.y_m[0] - y)
    assert found <= closest + 1e-9
    assert found >= closest - 0.03


def test_rows_fall_back_one_by_one():
    new, old = plan_of(straight(5.0), 200), plan_of(straight(3.0), 100)
    both = [world_plan(np.repeat(p.start_us, 2), STEP_US, *(np.repeat(v, 2, 0) for v in (p.x_m, p.y_m, p.yaw_rad)))
            for p in (new, old)]  # fmt: skip
    mixed = replace_rows(both[0], both[1], np.array([True, False]))
    assert mixed.start_us.tolist() == [200, 100]
    assert mixed.travelled_m[:, -1].tolist() == pytest.approx([32.0, 19.2])


def test_preview_gains_minimise_the_cost_over_a_long_horizon():
    """Against the same problem solved by plain least squares over 300 inputs."""
    rng = np.random.default_rng(1)
    A, B = discretise(np.array([[0.0, 1.0], [0.0, -1.0]]), np.array([[0.0], [2.0]]), 0.1)
    D, Q, R, steps, horizon = rng.normal(size=(2, 2)), np.diag([1.0, 0.3]), 0.2, 5, 300
    gains = preview_gains(A, B, D, Q, R, steps)
    x0, w = rng.normal(size=2), rng.normal(size=(steps, 2))
    law = -gains.feedback @ x0 - sum(gains.preview[j] @ w[j] for j in range(steps))

    free, effect = x0, np.zeros((2, horizon))
    rows, targets = [], []
    for k in range(horizon):
        free = A @ free + (D @ w[k] if k < steps else 0.0)
        effect = A @ effect
        effect[:, k] += B[:, 0]
        rows.append(np.sqrt(Q) @ effect)
        targets.append(-np.sqrt(Q) @ free)
    rows.append(np.sqrt(R) * np.eye(horizon))
    targets.append(np.zeros(horizon))
    best = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets), rcond=None)[0]
    assert law == pytest.approx(best[0], rel=1e-8)


@pytest.mark.parametrize("speed_mps", [1.0, 3.0, 4.999, 5.0, 10.0, 25.0, 45.0])
def test_the_steering_loop_is_stable_at_every_speed(speed_mps):
    gains = lateral_gains(speed_mps, 0.1, 20, VEHICLE, CONFIG)
    A, B = lateral_model(speed_mps, VEHICLE)
    A, B = discretise(A, B, 0.1)
    A[:, 4:] += B[:, :1]
    closed = A - B[:, :1] @ gains.feedback[None]
    assert np.abs(np.linalg.eigvals(closed)).max() < 0.99


@pytest.mark.parametrize("speed_mps", [3.0, 8.0, 15.0])
def test_the_lateral_model_predicts_the_vehicle(speed_mps):
    """The error model and the vehicle must agree on a small steering step."""
    A, B = lateral_model(speed_mps, VEHICLE)
    A, B = discretise(A, B, 0.1)
    errors, vehicle = np.zeros(5), moving(vx_mps=speed_mps)
    for _ in range(10):
        errors = A @ errors + B[:, 0] * 1e-3
        order = type("Order", (), {"steering_rad": np.array([1e-3]), "acceleration_mps2": np.zeros(1)})
        vehicle = step_vehicle(vehicle, order, 0.1, VEHICLE, VehicleLimits())  # pyright: ignore[reportArgumentType]
    found = [vehicle.y_m, vehicle.yaw_rad, vehicle.vy_mps, vehicle.yaw_rate_radps, vehicle.steering_rad]
    np.testing.assert_allclose(np.concatenate(found), errors, rtol=2e-3)


def run(plan_at, start: VehicleState, duration_s: float) -> list[VehicleState]:
    """States while following the world path `plan_at(t_s) -> [n, 3]`, planned anew at every step."""
    controller = TrackingController(VEHICLE, CONFIG, STEP_US)
    states = [start]
    for k in range(round(duration_s * 10)):
        plan = plan_of(plan_at(0.1 * (k + np.arange(65))), k * STEP_US)
        command = controller.command(states[-1], plan, k * STEP_US)
        states.append(step_vehicle(states[-1], command, 0.1, VEHICLE, VehicleLimits()))
    return states


@pytest.mark.parametrize(("speed_mps", "curvature"), [(4.0, 0.1), (10.0, 0.03), (20.0, -0.01)])
def test_a_steady_turn_leaves_no_error(speed_mps, curvature):
    start = state_on_path(np.zeros((1, 3)), np.array([speed_mps]), np.array([speed_mps * curvature]), VEHICLE)
    states = run(lambda t: arc(speed_mps, curvature, t), start, 8.0)
    for k in (60, 80):
        expected = arc(speed_mps, curvature, np.array(0.1 * k))
        assert np.hypot(states[k].x_m[0] - expected[0], states[k].y_m[0] - expected[1]) < 0.04


def test_a_steady_braking_leaves_no_error():
    distance = lambda t: 15.0 * t - 0.5 * 1.5 * t**2  # noqa: E731
    states = run(lambda t: np.stack([distance(t), 0 * t, 0 * t], axis=-1), moving(vx_mps=15.0), 6.0)
    assert states[50].x_m[0] == pytest.approx(distance(5.0), abs=0.03)
    assert states[50].acceleration_mps2[0] == pytest.approx(-1.5, abs=0.03)


@pytest.mark.parametrize("planned_mps", [0.0, -5.0])
def test_standing_and_backwards_plans_stop_the_car_and_hold_it(planned_mps):
    states = run(lambda t: np.stack([planned_mps * t, 0 * t, 0 * t], axis=-1), moving(vx_mps=10.0), 8.0)
    assert states[-1].vx_mps[0] == 0.0
    assert states[-1].steering_rad[0] == 0.0
    # The brake must not wind up, or the car would be late to move off.
    assert -1.0 < states[-1].acceleration_mps2[0] <= 0.0


def test_an_offset_is_corrected_without_much_overshoot():
    states = run(lambda t: np.stack([12.0 * t, 0 * t, 0 * t], axis=-1), moving(y_m=1.0, vx_mps=12.0), 6.0)
    y = np.array([state.y_m[0] for state in states])
    assert y.min() > -0.2
    assert abs(y[40:]).max() < 0.05


def test_gentle_steering_limits_hold_at_speed():
    plan = plan_of(np.stack([25.0 * 0.1 * np.arange(65), 0.5 * np.arange(65), np.zeros(65)], axis=-1))
    command = TrackingController(VEHICLE, CONFIG, STEP_US).command(moving(vx_mps=25.0, y_m=-8.0), plan, 0)
    limit = 6.0 * (2.85 / 25.0**2 + VEHICLE.understeer_rad_per_mps2)
    assert command.steering_rad[0] == pytest.approx(limit)


def test_bad_settings_are_named():
    with pytest.raises(ControlError, match=r"ControllerConfig.preview_s is 0, expected a positive number"):
        ControllerConfig(preview_s=0)
    with pytest.raises(ControlError, match="control step is 0 us"):
        TrackingController(VEHICLE, CONFIG, 0)
