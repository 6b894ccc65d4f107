import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.errors import ControlError
from controllers.interface import ControlCommand, VehicleState
from controllers.vehicle_parameters import VehicleParameters
from neural_sim.errors import InputError
from neural_sim.simulation.vehicle import (
    VehicleLimits,
    planar_pose,
    rig_acceleration,
    rig_velocity,
    state_on_path,
    step_vehicle,
)
from neural_sim.simulation.vehicle_kernel import coefficients, lateral_rates

VEHICLE, LIMITS = VehicleParameters(), VehicleLimits()


def state(**values: float) -> VehicleState:
    names = VehicleState.__dataclass_fields__
    return VehicleState(*(np.array([values.get(name, 0.0)]) for name in names))


def command(steering_rad: float, acceleration_mps2: float) -> ControlCommand:
    return ControlCommand(np.array([steering_rad]), np.array([acceleration_mps2]))


def drive(
    start: VehicleState, order: ControlCommand, duration_s: float, limits: VehicleLimits = LIMITS
) -> VehicleState:
    for _ in range(round(duration_s / 0.1)):
        start = step_vehicle(start, order, 0.1, VEHICLE, limits)
    return start


@pytest.mark.parametrize(
    ("speed", "steering", "expected"),
    [
        (10.0, 0.05, (19.751557, 2.607763, 0.289994, 0.209074, 0.156349)),
        (3.0, 0.2, (5.871557, 1.017286, 0.378947, 0.334737, 0.210526)),
    ],
)
def test_parity_with_the_reference_model(speed, steering, expected):
    end = drive(state(vx_mps=speed), command(steering, 0.0), 2.0)
    found = [end.x_m[0], end.y_m[0], end.yaw_rad[0], end.vy_mps[0], end.yaw_rate_radps[0]]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 30), st.floats(-0.5, 0.5), st.floats(-8, 5))
def test_mirrored_commands_give_the_mirrored_drive(speed, steering, acceleration):
    left = drive(state(vx_mps=speed), command(steering, acceleration), 1.0)
    right = drive(state(vx_mps=speed), command(-steering, acceleration), 1.0)
    for name in ("x_m", "vx_mps", "acceleration_mps2"):
        assert getattr(left, name)[0] == getattr(right, name)[0]
    for name in ("y_m", "yaw_rad", "vy_mps", "yaw_rate_radps", "steering_rad"):
        assert getattr(left, name)[0] == -getattr(right, name)[0]


@given(st.floats(5, 40), st.floats(-3, 3), st.floats(-2, 2))
def test_tyres_only_take_energy(vx, vy, yaw_rate):
    vy_rate, yaw_acceleration = lateral_rates(np.array([[vx, vy, yaw_rate, 0.0]]), coefficients(VEHICLE))[0]
    # Power into sideways motion and turning, without what the frame that turns with the car adds.
    power_w = VEHICLE.mass_kg * vy * (vy_rate + vx * yaw_rate) + VEHICLE.yaw_inertia_kgm2 * yaw_rate * yaw_acceleration
    front_mps, rear_mps = vy + VEHICLE.front_axle_to_cg_m * yaw_rate, vy - VEHICLE.rear_axle_to_cg_m * yaw_rate
    stiffness = 2 * VEHICLE.front_cornering_npr * front_mps**2 + 2 * VEHICLE.rear_cornering_npr * rear_mps**2
    assert power_w == pytest.approx(-stiffness / vx, rel=1e-9, abs=1e-6)
    assert power_w <= 1e-6


@settings(max_examples=20, deadline=None)
@given(st.floats(6, 30), st.floats(-0.9, 3))
def test_work_of_the_drive_is_kinetic_energy(speed, acceleration):
    unlagged = state(vx_mps=speed, acceleration_mps2=acceleration)
    end = drive(unlagged, command(0.0, acceleration), 3.0)
    assert end.vx_mps[0] ** 2 - speed**2 == pytest.approx(2 * acceleration * end.x_m[0], rel=1e-6, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 20), st.floats(-9, 6), st.floats(-0.7, 0.7))
def test_the_car_never_reverses_and_stays_finite(speed, acceleration, steering):
    end = drive(state(vx_mps=speed), command(steering, acceleration), 4.0)
    assert end.vx_mps[0] >= 0
    assert np.isfinite(np.concatenate(list(vars(end).values()))).all()


def test_braking_to_a_stop_ends_at_the_expected_place():
    end = drive(state(vx_mps=8.0), command(0.0, -4.0), 4.0)
    # v^2 / 2a, plus v tau - a tau^2 / 2 while the brake lag tau of 0.1 s builds up.
    assert end.x_m[0] == pytest.approx(8.0 + 0.8 - 0.02, abs=1e-3)
    assert end.vx_mps[0] == 0.0


def test_limits_bound_angle_rate_acceleration_and_jerk():
    limits = VehicleLimits(0.3, 0.5, 2.0, 3.0, 10.0)
    after = step_vehicle(state(vx_mps=10.0), command(1.0, 5.0), 0.1, VEHICLE, limits)
    assert after.steering_rad[0] == pytest.approx(0.05)
    assert after.acceleration_mps2[0] == pytest.approx(1.0)
    settled = drive(after, command(1.0, 5.0), 3.0, limits)
    assert settled.steering_rad[0] == pytest.approx(0.3, abs=1e-6)
    assert settled.acceleration_mps2[0] == pytest.approx(2.0, abs=1e-6)
    assert drive(after, command(0.0, -9.0), 2.0, limits).acceleration_mps2[0] == pytest.approx(-3.0, abs=1e-6)


def test_one_long_step_equals_many_short_ones():
    order = command(0.1, 1.0)
    long = step_vehicle(state(vx_mps=7.0), order, 0.1, VEHICLE, LIMITS)
    short = state(vx_mps=7.0)
    for _ in range(10):
        short = step_vehicle(short, order, 0.01, VEHICLE, LIMITS)
    np.testing.assert_allclose(planar_pose(long), planar_pose(short), rtol=1e-12)


def test_reported_velocity_and_acceleration_match_the_driven_path():
    before = drive(state(vx_mps=12.0), command(0.04, 0.5), 1.0)
    step_s = 1e-4
    after = step_vehicle(before, command(0.04, 0.5), step_s, VEHICLE, LIMITS)
    yaw = before.yaw_rad[0]
    moved = (planar_pose(after) - planar_pose(before))[0] / step_s
    forward = np.cos(yaw) * moved[0] + np.sin(yaw) * moved[1]
    sideways = np.cos(yaw) * moved[1] - np.sin(yaw) * moved[0]
    np.testing.assert_allclose(rig_velocity(before, VEHICLE)[0], [forward, sideways, moved[2]], atol=1e-3)
    slip_change = (rig_velocity(after, VEHICLE) - rig_velocity(before, VEHICLE))[0, 1] / step_s
    lateral = slip_change + before.vx_mps[0] * before.yaw_rate_radps[0]
    np.testing.assert_allclose(rig_acceleration(before, VEHICLE)[0], [before.acceleration_mps2[0], lateral], atol=2e-3)


def test_a_state_on_a_path_has_no_slip_and_keeps_turning():
    start = state_on_path(np.array([[1.0, 2.0, 0.3]]), np.array([4.0]), np.array([0.4]), VEHICLE)
    assert rig_velocity(start, VEHICLE)[0].tolist() == [4.0, 0.0, 0.4]
    assert start.steering_rad[0] == pytest.approx(np.arctan(2.85 * 0.4 / 4.0))
    parked = state_on_path(np.zeros((1, 3)), np.array([0.1]), np.array([0.4]), VEHICLE)
    assert parked.steering_rad[0] == 0.0


def test_bad_parameters_are_named():
    with pytest.raises(ControlError, match=r"VehicleParameters.mass_kg is 0"):
        VehicleParameters(mass_kg=0)
    with pytest.raises(InputError, match=r"simulation.limits.max_jerk_mps3 is -1"):
        VehicleLimits(max_jerk_mps3=-1)
