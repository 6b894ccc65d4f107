"""Every metric of a report on two drives small enough to compute by hand: one passes, one ends in a contact."""

from dataclasses import replace

import numpy as np
import pytest
from eval_records import make_record, straight
from synthetic_scene import START_US, STEP_US, make_scene, make_track

from eval.aggregate import aggregate
from eval.metric_names import METRIC_TEXTS
from eval.protocol import EvaluationProtocol
from eval.results import RolloutFailure
from eval.scorers import score_rollout
from neural_sim.road_map import Lane, RoadMap
from neural_sim.simulation.record import SimulationEvent
from neural_sim.simulation.reports import IMAGE_IS_BLACK, SAFETY_MONITOR

# Boxes are shrunk by 2 % and rounded with a quarter of their width; the front is ahead of the rig by CENTER_X + half.
CENTER_X = 5.393 / 2 - 1.3
EGO_HALF_LENGTH, EGO_HALF_WIDTH = 0.98 * 5.393 / 2, 0.98 * 2.109 / 2
ACTOR_HALF_LENGTH, ACTOR_HALF_WIDTH = 0.98 * 4.5 / 2, 0.98 * 1.9 / 2


def rounded_gap_m(along_m, across_m):
    """Gap of two rounded boxes whose square ones are apart by so much in both directions."""
    radii = 0.5 * (EGO_HALF_WIDTH + ACTOR_HALF_WIDTH)
    return np.hypot(along_m + radii, across_m + radii) - radii


def plans_ahead(steps, speed_mps):
    plans = np.zeros((steps, 64, 3), np.float32)
    plans[:, :, 0] = 0.1 * speed_mps * np.arange(1, 65)
    return plans


def metrics_of(record, scene, failures=()):
    score = score_rollout(record, scene, policy="ego")
    return {name: cell.mean for name, cell in aggregate([score], failures=failures).policies["ego"].items()}


@pytest.fixture(scope="module")
def calm():
    """40 steps at 6 m/s, half a metre left of an expert at 8 m/s; the first step is warm-up; a car stands aside."""
    scene = make_scene(tracks=[make_track("parked", (60.0, 4.0, 0.0))])
    events = [SimulationEvent(START_US + 3 * STEP_US, IMAGE_IS_BLACK, "")]
    planar = straight(41, 6.0, 0.5)
    turning = make_record(scene, planar, warmup_steps=1, plans=plans_ahead(41, 6.0), events=events)
    turning.velocity[7, 2] = -0.3
    return metrics_of(turning, scene)


@pytest.fixture(scope="module")
def crash():
    """At 10 m/s in the oncoming lane, limit 8.5, into the back of a standing car; a jolt; one rollout failed."""
    x = np.arange(-20.0, 200.0, 5.0)
    lanes = [
        Lane(name, np.column_stack([x[::way], np.full(len(x), y_m), 0 * x]), 3.5, (), limit_mps)
        for name, y_m, way, limit_mps in (("own", 0.0, 1, None), ("oncoming", 3.5, -1, 8.5))
    ]
    scene = make_scene(tracks=[make_track("car", (30.0, 3.0, 0.0))], half_width_m=20.0)
    scene = replace(scene, road_map=RoadMap(tuple(lanes), (), scene.road_map.drivable_areas, "recorded"))
    acceleration = np.zeros((31, 2))
    acceleration[5:] = [-3.0, 1.0]
    plans = plans_ahead(31, 10.0)
    plans[:, 29:, 1] = 1.0  # outside the 2.5 s that are judged
    record = make_record(
        scene, straight(31, 10.0, 2.9), warmup_steps=1, acceleration_mps2=acceleration, plans=plans,
        events=[SimulationEvent(START_US + 12 * STEP_US, SAFETY_MONITOR, "")],
    )  # fmt: skip
    return metrics_of(record, scene, [RolloutFailure("ego", scene.scene_id, 1, "out of memory")])


def test_a_calm_drive(calm):
    steps, ahead = np.arange(1, 41)[:, None], np.arange(1, 26)
    along_m = 60 - ACTOR_HALF_LENGTH - (24 + CENTER_X + EGO_HALF_LENGTH)
    gap_m = rounded_gap_m(along_m, 4 - ACTOR_HALF_WIDTH - (0.5 + EGO_HALF_WIDTH))
    expected = {
        "driving_score": None, "incidents_per_km": 0, "offroad_or_collision_at_fault": 0, "collision_at_fault": 0,
        "offroad": 0, "collision_any": 0, "collision_front": 0, "collision_lateral": 0, "collision_rear": 0,
        "dist_traveled_m": 39 * 0.6, "gt_dist_traveled_m": 39 * 0.8, "duration_frac_20s": 3.9 / 20,
        "progress": 24 / 160, "progress_rel": 6 / 8, "dist_to_gt_trajectory": 0.5,
        "dist_to_gt_location": np.hypot(32 - 24, 0.5), "min_distance_to_obstacle_m": gap_m, "plan_deviation": 0,
        "speed_mps": 6, "expert_speed_mps": 8, "abs_longitudinal_acceleration_mps2": 0,
        "abs_lateral_acceleration_mps2": 0, "abs_jerk_mps3": 0, "abs_yaw_rate_radps": 0.3, "ended_far_from_log": 0,
        "scene_score": 24 / 160 / 0.8, "time_to_collision_s": 3, "time_to_collision_critical": 0, "comfort": 1,
        "epdms": (5 * 1 + 5 * 0.75 + 2 * 1 + 2 * 1) / 14, "wrong_lane": None, "lane_offset_m": None,
        "min_distance_to_lane_boundary_m": None, "speed_over_limit_mps": None, "stopped_too_long": 0,
        "open_loop_collision": 0, "extended_comfort": 1, "img_is_black": 1, "safety_monitor_triggered": 0,
        "min_ade@2.5s(gt)": np.hypot(0.2 * (steps + ahead), 0.5).mean(), "min_ade@2.5s(self)": 0, "failure_rate": 0,
    }  # fmt: skip
    check(calm, expected)


def test_a_drive_into_a_standing_car(crash):
    # The front is at 10 t + 4.039 m and meets the bumper at 27.795 m between steps 23 and 24, the last to count.
    steps, ahead = np.arange(1, 25)[:, None], np.arange(1, 26)
    expected = {
        "driving_score": 0.023, "incidents_per_km": 1 / 0.023, "offroad_or_collision_at_fault": 1,
        "collision_at_fault": 1, "offroad": 0, "collision_any": 1, "collision_front": 1, "collision_lateral": 0,
        "collision_rear": 0, "dist_traveled_m": 23, "gt_dist_traveled_m": 23 * 0.8, "duration_frac_20s": 2.3 / 20,
        "progress": 24 / 160, "progress_rel": 1, "dist_to_gt_trajectory": 2.9,
        "dist_to_gt_location": np.hypot(24 - 19.2, 2.9), "min_distance_to_obstacle_m": 0,
        "speed_mps": 10, "expert_speed_mps": 8, "abs_longitudinal_acceleration_mps2": 3,
        "abs_lateral_acceleration_mps2": 1, "abs_jerk_mps3": np.hypot(3, 1) / 0.1, "abs_yaw_rate_radps": 0,
        "ended_far_from_log": 0, "scene_score": 0, "time_to_collision_s": 0, "time_to_collision_critical": 1,
        "comfort": 0, "epdms": 0, "wrong_lane": 1, "lane_offset_m": 0.6,
        "min_distance_to_lane_boundary_m": 3.5 + 1.75 - (2.9 + EGO_HALF_WIDTH), "speed_over_limit_mps": 1.5,
        "stopped_too_long": 0, "open_loop_collision": 1, "img_is_black": 0, "safety_monitor_triggered": 1,
        "min_ade@2.5s(gt)": np.hypot(0.2 * (steps + ahead), 2.9).mean(), "min_ade@2.5s(self)": 0, "failure_rate": 0.5,
    }  # fmt: skip
    check(crash, expected)


def check(found, expected):
    for name, value in expected.items():
        wanted = None if value is None else pytest.approx(float(value), abs=2e-6)
        assert found[name] == wanted, name


def test_no_metric_of_a_report_is_left_out(calm, crash):
    names = {text.name for text in METRIC_TEXTS}
    assert names <= set(calm)
    assert names <= set(crash)
    assert EvaluationProtocol().preset == "paper"
