"""Time to collision, comfort, lanes, limits, standing, plans and composite scores, computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
import shapely
from eval_records import make_record, standing, straight
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_scene import START_US, STEP_US, arc_planar, make_scene, make_track

from eval.aggregate import reduce_rollout
from eval.protocol import EvaluationProtocol
from eval.scorers import score_rollout
from neural_sim.clips.map_json import road_map_from_json, road_map_to_json
from neural_sim.rectangles import contact_time_s, overlap
from neural_sim.road_map import Lane, RoadMap

CENTER_X = 5.393 / 2 - 1.3
EGO_HALF = 0.98 * np.array([5.393, 2.109]) / 2
ACTOR_HALF = 0.98 * np.array([4.5, 1.9]) / 2


def score(scene, planar, **options):
    return score_rollout(make_record(scene, planar, **options), scene, policy="ego").series


def with_lanes(*lanes: Lane, scene=None):
    scene = scene or make_scene(half_width_m=20.0)
    return replace(scene, road_map=RoadMap(lanes, (), scene.road_map.drivable_areas, "recorded"))


def lane(name: str, y_m: float, direction: int = 1, limit_mps: float | None = None) -> Lane:
    x = np.arange(-20.0, 200.0, 5.0)[::direction]
    return Lane(name, np.column_stack([x, np.full(len(x), y_m), np.zeros(len(x))]), 3.5, (), limit_mps)


def plans_along_x(steps: int, speed_mps: float) -> np.ndarray:
    plans = np.zeros((steps, 64, 3), np.float32)
    plans[:, :, 0] = 0.1 * speed_mps * np.arange(1, 65)
    return plans


# Rectangles


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.floats(-6, 6)] * 2, st.floats(-3.2, 3.2)), st.floats(-3.2, 3.2))
def test_overlap_agrees_with_polygons(place, yaw):
    first, second = np.array([[0.0, 0.0, yaw]]), np.array([place])
    half = np.array([[2.0, 1.0]])
    corners = np.array([[2, 1], [-2, 1], [-2, -1], [2, -1]], float)
    polygons = []
    for x, y, turn in (*first, *second):
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        polygons.append(shapely.Polygon(corners @ rotation.T + [x, y]))
    apart = polygons[0].distance(polygons[1])
    if apart > 1e-9 or polygons[0].intersection(polygons[1]).area > 1e-9:
        assert overlap(first, half, second, half)[0] == (apart <= 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_contact_time_agrees_with_small_steps(seed):
    generator = np.random.default_rng(seed)
    first = np.array([[0.0, 0.0, generator.uniform(-3, 3)]])
    second = np.append(generator.uniform(-15, 15, 2), generator.uniform(-3, 3))[None]
    half, velocity = np.array([[2.2, 0.9]]), generator.uniform(-8, 8, (1, 2))
    found = contact_time_s(first, half, second, half, velocity)[0]
    until_s = found if np.isfinite(found) else 20.0
    times = np.append(np.linspace(0, until_s, 2000, endpoint=False), until_s)
    moved = np.repeat(second, len(times), axis=0)
    moved[:, :2] += times[:, None] * velocity
    grown = np.where(times == found, 1 + 1e-9, 1 - 1e-9)[:, None] * half
    touching = overlap(np.repeat(first, len(times), axis=0), grown, moved, grown)
    assert touching[-1] == np.isfinite(found)
    assert not touching[times < until_s].any()


# Time to collision


def test_time_to_a_standing_car_ahead():
    ahead_m = CENTER_X + EGO_HALF[0] + 20.0 + ACTOR_HALF[0]
    scene = make_scene(half_width_m=20.0, tracks=[make_track("car", (ahead_m, 0.0, 0.0))])
    series = score(scene, straight(25, speed_mps=10.0))
    gap_m = 20.0 - np.arange(25) * 1.0
    expected = np.minimum(np.maximum(gap_m, 0.0) / 10.0, 3.0)
    np.testing.assert_allclose(series["time_to_collision_s"].values[:20], expected[:20], atol=1e-9)
    assert series["time_to_collision_critical"].values[:20].tolist() == [float(g / 10.0 < 1.0) for g in gap_m[:20]]


@pytest.mark.parametrize(
    ("box", "speed_mps", "expected_s"),
    [
        ((60.0, 0.0, 0.0), 8.0, 3.0),  # drives away at the same speed
        ((-15.0, 0.0, 0.0), 20.0, 3.0),  # comes up from behind: not counted
        ((30.0, 3.0, 0.0), 0.0, 3.0),  # stands beside the path
    ],
)
def test_who_is_no_danger_does_not_shorten_the_time(box, speed_mps, expected_s):
    scene = make_scene(half_width_m=20.0, tracks=[make_track("car", box, speed_mps)])
    assert score(scene, straight(3, speed_mps=8.0))["time_to_collision_s"].values[1] == pytest.approx(expected_s)


def test_a_crossing_car_is_met_where_the_ways_cross():
    # At 1 s the ego's front passes x = 10 m + front; the other comes from the right and enters the path at that time.
    front_m = CENTER_X + EGO_HALF[0]
    below_m = -(EGO_HALF[1] + ACTOR_HALF[0] + 5.0)
    scene = make_scene(half_width_m=20.0, tracks=[make_track("car", (front_m + 10.0, below_m, np.pi / 2), 5.0)])
    assert score(scene, straight(3, speed_mps=10.0))["time_to_collision_s"].values[0] == pytest.approx(1.0, abs=1e-6)


def test_without_traffic_there_is_no_time_to_collision():
    series = score(make_scene(), straight(3))
    assert not series["time_to_collision_s"].valid.any()
    assert series["time_to_collision_critical"].values.tolist() == [0, 0, 0]


def test_a_standing_ego_is_not_critical():
    scene = make_scene(half_width_m=20.0, tracks=[make_track("car", (8.0, 0.0, np.pi), 6.0)])
    series = score(scene, standing(4))
    assert series["time_to_collision_s"].values[1] < 1.0
    assert not series["time_to_collision_critical"].values.any()


# Comfort


@pytest.mark.parametrize(
    ("longitudinal", "lateral", "expected"),
    [(2.3, 0.0, 1), (2.5, 0.0, 0), (-4.0, 0.0, 1), (-4.1, 0.0, 0), (0.0, 4.8, 1), (0.0, -4.9, 0)],
)
def test_bounds_of_steady_accelerations(longitudinal, lateral, expected):
    acceleration = np.tile([longitudinal, lateral], (20, 1))
    comfort = score(make_scene(), straight(20), acceleration_mps2=acceleration, warmup_steps=2)["comfort"]
    assert comfort.valid.tolist() == [False] * 6 + [True] * 14
    assert (comfort.values[comfort.valid] == expected).all()


@pytest.mark.parametrize(("jerk", "expected"), [(4.0, 1), (4.3, 0)])
def test_bound_of_a_steady_longitudinal_jerk(jerk, expected):
    acceleration = np.column_stack([-2.0 + jerk * 0.1 * np.arange(8), np.zeros(8)])
    comfort = score(make_scene(), straight(8), acceleration_mps2=acceleration)["comfort"]
    assert (comfort.values[comfort.valid] == expected).all()


@pytest.mark.parametrize(("rate", "slope", "expected"), [(0.9, 0.0, 1), (1.0, 0.0, 0), (0.0, 1.9, 1), (0.0, 2.0, 0)])
def test_bounds_of_yaw_rate_and_yaw_acceleration(rate, slope, expected):
    scene = make_scene()
    record = make_record(scene, straight(8))
    record.velocity[:, 2] = rate + slope * 0.1 * (np.arange(8) - 3.5)
    comfort = score_rollout(record, scene, policy="ego").series["comfort"]
    assert (comfort.values[comfort.valid] == expected).all()


def test_too_few_steps_are_not_judged():
    assert not score(make_scene(), straight(5))["comfort"].valid.any()


# Lanes, limits, standing


def test_wrong_way_beside_and_in_lane():
    scene = with_lanes(lane("own", 0.0), lane("oncoming", 3.5, -1))
    for y_m, wrong, offset_m in ((0.4, 0, 0.4), (3.3, 1, 0.2)):
        series = score(scene, straight(4, y_m=y_m))
        assert series["wrong_lane"].values.tolist() == [wrong] * 4
        assert series["lane_offset_m"].values == pytest.approx(offset_m)
    series = score(scene, straight(4, y_m=-9.0))
    assert not series["wrong_lane"].valid.any()
    assert series["min_distance_to_lane_boundary_m"].values.tolist() == [0] * 4


def test_a_crossing_lane_does_not_make_the_way_wrong_and_angles_wrap():
    crossing = Lane("crossing", np.array([[30.0, 30.0, 0.0], [-30.0, -1.0, 0.0]]), 3.5)
    assert not score(with_lanes(lane("own", 0.0), crossing), straight(4))["wrong_lane"].values.any()
    # Driving along -x: heading pi, lane heading -pi + 0.01.
    x = np.linspace(20, -40, 30)
    back = Lane("back", np.column_stack([x, 0.01 * (x - 20), np.zeros(30)]), 3.5)
    planar = np.column_stack([-0.5 * np.arange(5.0), np.zeros(5), np.full(5, np.pi)])
    assert not score(with_lanes(back), planar)["wrong_lane"].values.any()


def test_gap_to_the_boundary_of_joined_lanes():
    scene = with_lanes(lane("own", 0.0), lane("left", 3.5))
    gap_m = score(scene, straight(3, y_m=0.5))["min_distance_to_lane_boundary_m"].values
    assert gap_m == pytest.approx(0.5 + 1.75 - EGO_HALF[1])
    astride = score(scene, straight(3, y_m=1.75))["min_distance_to_lane_boundary_m"].values
    assert astride == pytest.approx(1.75 + 1.75 - EGO_HALF[1])


def test_a_derived_map_has_no_lanes_to_keep():
    series = score(make_scene(), straight(3))
    for name in ("wrong_lane", "min_distance_to_lane_boundary_m", "lane_offset_m", "speed_over_limit_mps"):
        assert not series[name].valid.any()
    assert "epdms_lk" not in series


def test_speed_limits_count_only_where_there_are_some():
    limited, free = lane("limited", 0.0, limit_mps=7.0), lane("free", 20.0)
    assert score(with_lanes(limited, free), straight(3, 8.0))["speed_over_limit_mps"].values == pytest.approx(1.0)
    assert score(with_lanes(limited, free), straight(3, 6.0))["speed_over_limit_mps"].values == pytest.approx(0.0)
    assert not score(with_lanes(limited, free), straight(3, 8.0, 20.0))["speed_over_limit_mps"].valid.any()


def test_speed_limits_survive_the_map_file():
    road_map = with_lanes(lane("a", 0.0, limit_mps=8.5), lane("b", 3.5)).road_map
    again = road_map_from_json(road_map_to_json(road_map), "map.json")
    assert [each.speed_limit_mps for each in again.lanes] == [8.5, None]


def test_standing_while_the_expert_drives_is_too_long_after_five_seconds():
    series = score(make_scene(speed_mps=8.0), standing(80), warmup_steps=10)
    seconds = np.maximum(np.arange(80) - 10, 0) * 0.1
    assert series["standing_s"].values == pytest.approx(seconds)
    assert series["stopped_too_long"].values.tolist() == [float(s >= 5 - 1e-6) for s in seconds]


def test_waiting_with_the_expert_is_fine_and_moving_resets_the_clock():
    assert not score(make_scene(speed_mps=0.0), standing(80))["stopped_too_long"].values.any()
    planar = standing(80)
    planar[40:, 0] = 1.0
    assert score(make_scene(speed_mps=8.0), planar)["standing_s"].values.max() == pytest.approx(3.9, abs=0.11)


# Plans


def test_a_plan_through_a_parked_car_hits_it():
    scene = make_scene(half_width_m=20.0, tracks=[make_track("car", (30.0, 2.5, 0.0))])
    hit = score(scene, straight(30), plans=plans_along_x(30, 8.0))["open_loop_collision"]
    assert not hit.values.any()
    swerving = plans_along_x(30, 8.0)
    swerving[:, :, 1] = np.linspace(0, 2.5, 64)
    swerving[:, 15:, 1] = 2.5
    hit = score(scene, straight(30), plans=swerving)["open_loop_collision"]
    # The box reaches the car within 3 s once its front gets to the car's rear: 24 m of plan and the front before that.
    reach_m = 30.0 - ACTOR_HALF[0] - (CENTER_X + EGO_HALF[0])
    first = int(np.ceil((reach_m - 24.0) / 0.8 - 1e-9))
    assert hit.values[:first].max(initial=0.0) == 0.0
    assert hit.values[max(first, 0) : 25].all()
    assert hit.reducer == "mean"


def test_plans_beyond_the_log_or_absent_are_not_free_of_collisions():
    plans = plans_along_x(30, 8.0)
    plans[3] = np.nan
    valid = score(make_scene(duration_s=5.0), straight(30), plans=plans)["open_loop_collision"].valid
    assert valid.tolist() == [k != 3 and k <= 20 for k in range(30)]


def test_displacement_from_the_expert_and_from_oneself():
    # The expert drives 8 m/s, the plans say 10 m/s, the car drives 9 m/s.
    series = score(make_scene(speed_mps=8.0), straight(101, 9.0), plans=plans_along_x(101, 10.0))
    steps = np.arange(1, 11)
    ahead_m = 9.0 * 0.1 * np.arange(101)[:, None] + steps - 8.0 * 0.1 * (np.arange(101)[:, None] + steps)
    assert series["min_ade@1.0s(gt)"].values == pytest.approx(np.abs(ahead_m).mean(axis=1), abs=1e-5)
    own = series["min_ade@1.0s(self)"]
    assert own.valid.tolist() == [k <= 90 for k in range(101)]
    assert own.values[0] == pytest.approx(0.1 * steps.mean(), abs=1e-5)
    assert series["min_ade@5.0s(gt)"].valid.all()


# Composite scores


def test_scene_score_is_progress_over_eighty_percent():
    series = score(make_scene(duration_s=20.0), straight(101, 8.0))
    assert series["scene_score"].values[[0, 50, 100]] == pytest.approx([0.0, 0.25 / 0.8, 0.5 / 0.8])
    far = score(make_scene(duration_s=20.0), straight(181, 8.0))["scene_score"].values
    assert far[-1] == 1.0


def test_scene_score_is_zero_from_the_incident_on_and_full_on_short_paths():
    off = straight(30)
    off[10:, 1] = 30.0
    values = score(make_scene(half_width_m=4.0), off)["scene_score"].values
    assert values[9] > 0
    assert not values[10:].any()
    assert (score(make_scene(speed_mps=0.0), standing(5))["scene_score"].values == 1.0).all()


def test_the_cut_rollout_keeps_the_scene_score_of_its_last_step():
    off = straight(30)
    off[20:, 1] = 30.0
    scene = make_scene(half_width_m=4.0)
    result = score_rollout(make_record(scene, off), scene, policy="ego")
    assert reduce_rollout(result, EvaluationProtocol()).metrics["scene_score"] == 0.0


def test_epdms_of_a_faultless_drive_is_one():
    series = score(with_lanes(lane("own", 0.0)), straight(60))
    assert series["epdms"].values[-1] == pytest.approx(1.0)
    names = {name for name in series if name.startswith("epdms_")}
    assert names == {f"epdms_{part}" for part in ("nc", "dac", "ddc", "ep", "ttc", "lk", "hc")}


def test_epdms_weighs_its_parts():
    acceleration = np.zeros((60, 2))
    acceleration[20:] = [2.5, 0.0]
    series = score(make_scene(speed_mps=8.0), straight(60, 6.0), acceleration_mps2=acceleration)
    # Half uncomfortable, a quarter behind: (5 * 0.75 + 5 * 1 + 2 * 0) / 12 without lanes.
    assert series["epdms"].values[-1] == pytest.approx((5 * 0.75 + 5) / 12)


def test_epdms_falls_with_oncoming_lanes_and_with_drifting():
    scene = with_lanes(lane("oncoming", 0.0, -1))
    ddc = score(scene, straight(30, 8.0))["epdms_ddc"].values
    driven_m = 0.8 * np.arange(30)
    assert ddc.tolist() == [1.0 if m < 2 - 1e-9 else 0.5 if m < 6 - 1e-9 else 0.0 for m in driven_m]
    drifting = score(with_lanes(lane("own", 0.0)), straight(40, 8.0, y_m=0.6))["epdms_lk"].values
    assert drifting.tolist() == [float(0.1 * k < 2.0 - 1e-9) for k in range(40)]


def test_hitting_a_cone_halves_and_hitting_a_car_voids_the_score():
    for category, expected in (("obstacle", 0.5), ("vehicle", 0.0)):
        track = make_track("it", (500.0, 0.0, 0.0), category=category)
        scene = make_scene(half_width_m=20.0, tracks=[track])
        there = np.tile([CENTER_X + 4.0, 0.0, 0.0], (10, 1))
        series = score(scene, straight(10, 0.5), actor_planar={"it": there})
        assert series["collision_at_fault"].values[-1] == 1
        assert series["epdms_nc"].values[-1] == expected


def test_a_curved_lane_is_followed_by_its_own_heading():
    path = arc_planar(np.arange(0.0, 100.0, 2.0), 0.02)
    bend = Lane("bend", np.column_stack([path[:, :2], np.zeros(len(path))]), 3.5)
    scene = with_lanes(bend, scene=make_scene(curvature=0.02))
    planar = scene.expert.planar_at(START_US + STEP_US * np.arange(60))
    series = score(scene, planar)
    assert not series["wrong_lane"].values.any()
    assert series["lane_offset_m"].values.max() < 0.1
