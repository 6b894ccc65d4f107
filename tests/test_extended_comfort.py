"""Extended comfort of consecutive plans and its place in the EPDMS-style score, computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
from eval_records import make_record, straight
from synthetic_scene import make_scene

from eval.scorers import score_rollout
from neural_sim.road_map import Lane, RoadMap
from neural_sim.scenes.scene import Scene

STEPS, SPEED_MPS = 30, 8.0


def plans_of(acceleration_mps2: np.ndarray, yaw_acceleration_radps2: np.ndarray) -> np.ndarray:
    """A plan a step: straight on with constant acceleration, and a heading that speeds up; [T, 64, 3]."""
    t = 0.1 * np.arange(1, 65)
    x = SPEED_MPS * t + 0.5 * np.multiply.outer(acceleration_mps2, t**2)
    return np.stack([x, 0 * x, 0.5 * np.multiply.outer(yaw_acceleration_radps2, t**2)], axis=-1).astype(np.float32)


def scored(plans: np.ndarray, scene: Scene | None = None, y_m: float = 0.0):
    scene = scene or make_scene(half_width_m=20.0)
    return score_rollout(make_record(scene, straight(STEPS, SPEED_MPS, y_m), plans=plans), scene, policy="ego").series


def test_equal_plans_are_comfortable_and_the_first_half_second_has_no_pair():
    series = scored(plans_of(np.zeros(STEPS), np.zeros(STEPS)))["extended_comfort"]
    assert series.valid.tolist() == [False] * 5 + [True] * (STEPS - 5)
    assert series.values[5:].all()


@pytest.mark.parametrize(("difference", "expected"), [(0.6, 1.0), (0.8, 0.0)])
def test_plans_may_differ_by_so_much_acceleration(difference, expected):
    acceleration = np.where(np.arange(STEPS) < 15, 0.0, difference)
    values = scored(plans_of(acceleration, np.zeros(STEPS)))["extended_comfort"].values
    assert values[5:15].all()
    assert set(values[15:20]) == {expected}
    assert values[20:].all()


@pytest.mark.parametrize(("difference", "expected"), [(0.02, 1.0), (0.12, 0.0)])
def test_plans_may_differ_by_so_much_yaw_acceleration(difference, expected):
    turning = np.where(np.arange(STEPS) < 15, 0.0, difference)
    values = scored(plans_of(np.zeros(STEPS), turning))["extended_comfort"].values
    assert values[15] == expected


def test_epdms_takes_the_share_of_comfortable_plans():
    acceleration = np.where(np.arange(STEPS) < 15, 0.0, 2.0)
    series = scored(plans_of(acceleration, np.zeros(STEPS)))
    # 5 of 25 pairs straddle the change.
    assert series["epdms_ec"].values[[0, 4, 14]].tolist() == [1.0, 1.0, 1.0]
    assert series["epdms_ec"].values[-1] == pytest.approx(20 / 25)
    assert series["epdms"].values[-1] == pytest.approx((5 + 5 + 2 + 2 * 20 / 25) / 14)


@pytest.mark.parametrize(("is_junction", "expected"), [(True, 1.0), (False, 0.0)])
def test_lane_keeping_is_not_judged_in_junctions(is_junction, expected):
    x = np.arange(-20.0, 200.0, 5.0)
    lane = Lane("own", np.stack([x, 0 * x, 0 * x], axis=-1), 3.5, is_junction=is_junction)
    scene = make_scene(half_width_m=20.0)
    scene = replace(scene, road_map=RoadMap((lane,), (), scene.road_map.drivable_areas, "recorded"))
    series = scored(np.full((STEPS, 64, 3), np.nan, np.float32), scene, y_m=0.8)
    assert series["lane_offset_m"].values[-1] == pytest.approx(0.8)
    assert series["epdms_lk"].values[-1] == expected
