"""Guidance: equations 4 to 8 of the paper, by hand and by property."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_sim.errors import InputError
from neural_sim.road_users import EgoVehicle
from pipelines.guidance import (
    GuidanceConfig,
    blend_towards_expert,
    choose_plans,
    closest_to_expert,
    corner_distance_m,
    recovery_triggered,
    recovery_weights,
)

VEHICLE = EgoVehicle(length_m=4.0, width_m=2.0, rear_axle_to_rear_bumper_m=1.0)
STEPS = 64


def straight(speed_mps: float, lateral_m: float = 0.0, yaw_rad: float = 0.0) -> np.ndarray:
    times = 0.1 * np.arange(1, STEPS + 1)
    return np.stack([speed_mps * times, np.full(STEPS, lateral_m), np.full(STEPS, yaw_rad)], axis=-1)


def distance(plan: np.ndarray, expert: np.ndarray, valid: np.ndarray | None = None, steps: int = 20) -> float:
    valid = np.ones(STEPS, bool) if valid is None else valid
    return float(corner_distance_m(plan[None, None], expert[None], valid[None], VEHICLE, steps)[0, 0])


def test_a_lateral_offset_is_its_own_distance():
    assert distance(straight(10, 1.5), straight(10)) == pytest.approx(1.5)


def test_a_speed_difference_grows_with_time():
    # 1 m/s faster: 0.1 m after the first step, 2.0 m after the twentieth; the mean of 0.1..2.0 is 1.05.
    assert distance(straight(11), straight(10)) == pytest.approx(1.05)


def test_only_the_first_twenty_steps_count():
    plan = straight(10)
    plan[20:, 1] = 50.0
    assert distance(plan, straight(10)) == 0.0


def test_turning_about_the_rear_axle_moves_the_corners():
    # Half a turn about the rear axle: front corners (3, +-1) go to (-3, -+1), rear corners (-1, +-1) to (1, -+1).
    front, rear = np.hypot(6, 2), np.hypot(2, 2)
    assert distance(straight(0, yaw_rad=np.pi), straight(0)) == pytest.approx((front + rear) / 2)


def test_steps_beyond_the_recording_have_no_weight():
    valid = np.arange(STEPS) < 10
    plan = straight(10)
    plan[10:, 1] = 9.0
    assert distance(plan, straight(10), valid) == 0.0
    assert distance(plan, straight(10), np.zeros(STEPS, bool)) == 0.0


def test_the_closest_candidate_is_chosen_and_the_first_of_equals():
    assert closest_to_expert(np.array([[3.0, 1.0, 2.0], [0.5, 0.5, 9.0]])).tolist() == [1, 0]


@pytest.mark.parametrize(("left_s", "strategy", "expected"), [
    (10.0, "road", [False, True]), (4.0, "road", [False, True]), (3.9, "road", [False, False]),
    (10.0, "road_no_recovery", [False, False]),
])  # fmt: skip
def test_recovery_needs_distance_time_and_the_strategy(left_s, strategy, expected):
    config = GuidanceConfig(strategy=strategy)
    assert recovery_triggered(np.array([3.0, 3.01]), left_s, config).tolist() == expected


def test_recovery_weights_ramp_to_one():
    weights = recovery_weights(64, 30)
    assert weights[0] == pytest.approx(1 / 30)
    assert weights[14] == pytest.approx(0.5)
    assert (weights[29:] == 1.0).all()


def test_the_blend_ends_on_the_expert_and_takes_the_short_way_round():
    plan, expert = straight(10, 4.0, np.radians(170)), straight(10, 0.0, np.radians(-170))
    blended = blend_towards_expert(plan[None], expert[None], recovery_weights(STEPS, 30))[0]
    assert blended[14, 1] == pytest.approx(2.0)
    assert abs(blended[14, 2]) == pytest.approx(np.pi)
    np.testing.assert_allclose(blended[29:, :2], expert[29:, :2])
    np.testing.assert_allclose(blended[29:, 2], expert[29:, 2])


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=6), st.floats(0, 20))
def test_the_executed_plan_is_never_farther_than_any_candidate(offsets, speed_mps):
    candidates = np.stack([straight(speed_mps, offset) for offset in offsets])[None]
    expert, valid = straight(speed_mps)[None], np.ones((1, STEPS), bool)
    guided = choose_plans(candidates, expert, valid, 10.0, VEHICLE, GuidanceConfig())
    executed = corner_distance_m(guided.plans[:, None], expert, valid, VEHICLE, 20)[0, 0]
    assert executed <= guided.distances_m.min() + 1e-9
    assert guided.recovered[0] == (min(abs(offset) for offset in offsets) > 3.0)


def test_rollouts_of_a_batch_do_not_mix():
    candidates = np.stack([np.stack([straight(10, 5.0), straight(10, 1.0)]), np.stack([straight(10, 4.0)] * 2)])
    expert = np.stack([straight(10), straight(10)])
    guided = choose_plans(candidates, expert, np.ones((2, STEPS), bool), 10.0, VEHICLE, GuidanceConfig())
    assert guided.chosen.tolist() == [1, 0]
    assert guided.recovered.tolist() == [False, True]


@pytest.mark.parametrize(("strategy", "samples"), [
    ("road", 64), ("road_no_recovery", 64), ("none", 1), ("dagger", 1), ("perturb", 0), ("expert", 0),
])  # fmt: skip
def test_only_guided_strategies_sample_k(strategy, samples):
    assert GuidanceConfig(strategy=strategy).samples_per_step == samples


def test_bad_settings_are_named():
    with pytest.raises(InputError, match=r"guidance.num_samples is 0, expected at least 1"):
        GuidanceConfig(num_samples=0)
    with pytest.raises(InputError, match=r"guidance.temperature is -1"):
        GuidanceConfig(temperature=-1)
