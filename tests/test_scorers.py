"""Every scorer on scenarios small enough to compute by hand."""

import numpy as np
import pytest
import shapely
from eval_records import logged, make_record, standing, straight
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_scene import START_US, STEP_US, make_scene, make_track

from eval.boxes import RoundedBox
from eval.distance import project_on_path
from eval.protocol import EvaluationProtocol
from eval.scorers import score_rollout
from neural_sim.errors import InputError
from neural_sim.road_map import RoadMap
from neural_sim.simulation.record import SimulationEvent

# Ego 5.393 x 2.109 m, rear bumper 1.3 m behind the rig: shrunk by 2 % its front is at 1.3965 + 2.64257 = 4.03907 m,
# its side at 1.03341 m. Actors are 4.5 x 1.9 m: shrunk halves 2.205 m and 0.931 m.
CENTER_X = 5.393 / 2 - 1.3
EGO_HALF_LENGTH, EGO_HALF_WIDTH = 0.98 * 5.393 / 2, 0.98 * 2.109 / 2
ACTOR_HALF_LENGTH, ACTOR_HALF_WIDTH = 0.98 * 4.5 / 2, 0.98 * 1.9 / 2
SIDES = ("collision_front", "collision_rear", "collision_lateral", "collision_any", "collision_at_fault")


def score(scene, planar, **options):
    return score_rollout(make_record(scene, planar, **options), scene, policy="ego")


def sides(result, step=-1):
    """Which of SIDES are set at a step, without the prefix."""
    return {name.removeprefix("collision_") for name in SIDES if result.series[name].values[step] > 0}


def with_actors(*boxes, speed_mps=8.0):
    """A scene whose expert drives away at once, with parked cars at (x, y, yaw)."""
    tracks = [make_track(f"car{i}", box) for i, box in enumerate(boxes)]
    return make_scene(speed_mps=speed_mps, tracks=tracks, half_width_m=20.0)


def away_from_expert(scene, boxes, steps=3):
    """Actors put at (x, y, yaw) in the rollout while the log has them far from the expert."""
    return {track.track_id: np.tile(box, (steps, 1)) for track, box in zip(scene.tracks, boxes, strict=True)}


def touching_front(gap_m):
    return (CENTER_X + EGO_HALF_LENGTH + gap_m + ACTOR_HALF_LENGTH, 0.0, 0.0)


def touching_rear(gap_m):
    return (CENTER_X - EGO_HALF_LENGTH - gap_m - ACTOR_HALF_LENGTH, 0.0, 0.0)


def touching_left(gap_m):
    return (CENTER_X, EGO_HALF_WIDTH + gap_m + ACTOR_HALF_WIDTH, 0.0)


def collide(boxes, planar, **options):
    scene = with_actors(*[(500.0, 10.0 * i, 0.0) for i in range(len(boxes))])
    return score(scene, planar, actor_planar=away_from_expert(scene, boxes, len(planar)), **options)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (touching_front, {"front", "any", "at_fault"}),
        (touching_rear, {"rear", "any"}),
        (touching_left, {"lateral", "any", "at_fault"}),
    ],
)
def test_contact_side_is_found_to_the_centimetre(place, expected):
    moving = straight(2, speed_mps=1e-9)
    record = {"acceleration_mps2": np.zeros((2, 2))}
    scene = with_actors((500.0, 0.0, 0.0))
    for gap_m, wanted in ((-0.01, expected), (0.01, set())):
        made = make_record(scene, moving, actor_planar=away_from_expert(scene, [place(gap_m)], 2), **record)
        made.velocity[:, 0] = 5.0
        result = score_rollout(made, scene, policy="ego")
        assert sides(result) == wanted
        assert result.series["min_distance_to_obstacle_m"].values[-1] == pytest.approx(max(gap_m, 0.0), abs=1e-9)


def test_rounded_corners_pass_where_square_ones_touch():
    dx = EGO_HALF_LENGTH + ACTOR_HALF_LENGTH - 0.1
    dy = EGO_HALF_WIDTH + ACTOR_HALF_WIDTH - 0.1
    result = collide([(CENTER_X + dx, dy, 0.0)], straight(2))
    radii = 0.25 * 2 * (EGO_HALF_WIDTH + ACTOR_HALF_WIDTH)
    first_step_gap = np.hypot(radii - 0.1, radii - 0.1) - radii
    assert first_step_gap > 0
    assert sides(result, 0) == set()
    assert result.series["min_distance_to_obstacle_m"].values[0] == pytest.approx(first_step_gap, abs=1e-9)


def test_two_contacts_in_one_step_all_count():
    result = collide([touching_front(-0.01), touching_rear(-0.01), touching_left(-0.01)], straight(2, 0.5))
    assert sides(result, 0) == {"front", "rear", "lateral", "any", "at_fault"}


def test_last_contact_does_not_hide_an_earlier_one():
    result = collide([touching_front(-0.01), touching_rear(-0.01)], straight(2, 0.5))
    assert sides(result, 0) == {"front", "rear", "any", "at_fault"}


def test_standing_ego_hit_from_the_side_is_not_at_fault():
    assert sides(collide([touching_left(-0.01)], standing(3))) == {"lateral", "any"}


def test_standing_ego_in_front_contact_stays_at_fault():
    assert sides(collide([touching_front(-0.01)], standing(3))) == {"front", "any", "at_fault"}


def test_overlap_in_the_log_is_left_out_only_for_that_actor_and_time():
    # The log has car0 overlapping the expert at the start; car1 is put in front of the ego in the rollout alone.
    scene = make_scene(speed_mps=8.0, half_width_m=20.0, tracks=[make_track("car0", touching_left(-0.01))])
    assert sides(score(scene, straight(3)), 0) == set()
    assert not score(scene, straight(3)).series["min_distance_to_obstacle_m"].valid[0]
    later = score(scene, standing(30))  # the expert is gone, the ego still stands beside car0
    assert sides(later, -1) == {"lateral", "any"}
    scene = make_scene(
        half_width_m=20.0, tracks=[make_track("car0", touching_left(-0.01)), make_track("car1", (500.0, 0.0, 0.0))]
    )
    both = score(scene, straight(3), actor_planar={"car1": np.tile(touching_front(-0.01), (3, 1))})
    assert sides(both, 0) == {"front", "any", "at_fault"}


def test_absent_actor_neither_touches_nor_counts_as_near():
    scene = with_actors((500.0, 0.0, 0.0))
    absent = np.full((3, 3), np.nan)
    absent[2] = touching_front(-0.01)
    result = score(scene, straight(3, 1e-9), actor_planar={"car0": absent})
    assert result.series["collision_any"].values.tolist() == [0, 0, 1]
    assert result.series["min_distance_to_obstacle_m"].valid.tolist() == [False, False, True]
    assert np.isnan(result.series["min_distance_to_obstacle_m"].values[:2]).all()


def test_no_actor_at_all():
    result = score(make_scene(), straight(4))
    assert not result.series["collision_any"].values.any()
    assert result.series["collision_any"].valid.all()
    assert not result.series["min_distance_to_obstacle_m"].valid.any()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-12, 12)] * 2, st.floats(-3.2, 3.2)), min_size=1, max_size=4),
    st.floats(-3.2, 3.2),
)
def test_contact_agrees_with_drawn_polygons(boxes, yaw):
    """Parity with the slow way: buffer every box with arcs and intersect; contacts thinner than 5 mm may differ."""
    planar = np.array([[0.0, 0.0, yaw]] * 2)
    result = collide(boxes, planar)
    ego_box = RoundedBox.from_size(5.393, 2.109, EvaluationProtocol())
    actor_box = RoundedBox.from_size(4.5, 1.9, EvaluationProtocol())
    ego = ego_box.outlines(result.ego_planar[:1])[0]
    gaps = [ego.distance(actor_box.outlines(np.array([box]))[0]) for box in boxes]
    assert result.series["min_distance_to_obstacle_m"].values[0] == pytest.approx(min(gaps), abs=5e-3)
    flags = result.series
    assert flags["collision_any"].values[0] == (flags["min_distance_to_obstacle_m"].values[0] == 0)
    assert flags["collision_any"].values[0] == max(
        flags[name].values[0] for name in ("collision_front", "collision_rear", "collision_lateral")
    )


def test_bumper_is_one_radius_deep():
    box = RoundedBox(4.0, 2.0, 0.5)
    front, rear = (box.bumpers(np.zeros((1, 3)), rear=rear)[0] for rear in (False, True))
    assert front.bounds == pytest.approx((1.5, -1.0, 2.0, 1.0), abs=1e-6)
    assert rear.bounds == pytest.approx((-2.0, -1.0, -1.5, 1.0), abs=1e-6)
    assert box.outlines(np.zeros((1, 3)))[0].area == pytest.approx(8 - (4 - np.pi) * 0.25, abs=2e-3)


@pytest.mark.parametrize(("beyond_m", "expected"), [(-0.01, 0), (0.01, 1)])
def test_offroad_to_the_centimetre(beyond_m, expected):
    scene = make_scene(half_width_m=3.0)
    result = score(scene, straight(3, y_m=3.0 - EGO_HALF_WIDTH + beyond_m))
    assert result.series["offroad"].values.tolist() == [expected] * 3
    assert result.series["offroad_or_collision_at_fault"].values.tolist() == [expected] * 3
    assert result.map_source == "derived"


def test_car_wholly_outside_is_offroad():
    assert score(make_scene(half_width_m=3.0), straight(3, y_m=50.0)).series["offroad"].values.all()


def test_inside_a_hole_is_offroad_and_adjoining_areas_join():
    scene = make_scene()
    left, right = shapely.box(-20, 0, 60, 5), shapely.box(-20, -5, 60, 0)
    hole = shapely.box(20, -2, 30, 2)
    areas = (shapely.difference(left, hole), shapely.difference(right, hole))
    scene = replace_map(scene, RoadMap((), (), areas, "recorded"))
    offroad = score(scene, straight(30, speed_mps=10.0)).series["offroad"].values
    front = np.arange(30) + CENTER_X + EGO_HALF_LENGTH
    assert offroad.tolist() == ((front > 20) & (np.arange(30) + CENTER_X - EGO_HALF_LENGTH < 30)).astype(float).tolist()


def replace_map(scene, road_map):
    from dataclasses import replace

    return replace(scene, road_map=road_map)


def test_scene_without_drivable_area_is_refused():
    scene = replace_map(make_scene(), RoadMap((), (), (), "recorded"))
    with pytest.raises(InputError, match="no drivable area, so off-road cannot be judged"):
        score(scene, straight(3))


def test_distances_to_the_expert():
    # 4 m/s behind an expert at 8 m/s, 1.5 m to the left, 2 s long, first 5 steps warm-up.
    result = score(make_scene(speed_mps=8.0), straight(21, 4.0, y_m=1.5), warmup_steps=5)
    seconds = np.arange(21) * 0.1
    values = {name: series.values for name, series in result.series.items()}
    assert values["dist_to_gt_trajectory"] == pytest.approx(1.5)
    assert values["dist_to_gt_location"] == pytest.approx(np.hypot(1.5, 4.0 * seconds))
    assert values["dist_traveled_m"] == pytest.approx(np.clip(4.0 * (seconds - 0.5), 0, None))
    assert values["gt_dist_traveled_m"] == pytest.approx(np.clip(8.0 * (seconds - 0.5), 0, None))
    assert values["progress"] == pytest.approx(4.0 * seconds / 160.0)
    assert values["progress_rel"][2:] == pytest.approx(0.5)
    assert result.series["progress_rel"].valid.tolist() == [False, False] + [True] * 19
    assert values["eval_relevant"].tolist() == [0] * 5 + [1] * 16
    assert values["duration_frac_20s"] == pytest.approx(np.maximum(np.arange(21) - 5, 0) * 0.1 / 20)
    for name in ("progress_rel_to_total", "progress_clipped_rel"):
        assert np.array_equal(values[name], values["progress"])


def test_distance_travelled_is_not_fooled_by_loops():
    angle = np.linspace(0, 4 * np.pi, 201)  # two turns on the same circle
    planar = np.stack([10 * np.cos(angle), 10 * np.sin(angle), angle + np.pi / 2], axis=-1)
    result = score(make_scene(), planar)
    radius = np.hypot(10, CENTER_X)
    chord = 2 * radius * np.sin(np.pi / 100)
    assert result.series["dist_traveled_m"].values[-1] == pytest.approx(200 * chord)


def test_location_beyond_the_log_is_invalid():
    result = score(make_scene(duration_s=1.0), straight(15))
    assert result.series["dist_to_gt_location"].valid.tolist() == [True] * 11 + [False] * 4
    assert result.series["dist_to_gt_trajectory"].valid.all()


def test_progress_of_a_standing_expert_is_invalid():
    result = score(make_scene(speed_mps=0.0), standing(5))
    assert not result.series["progress"].valid.any()
    assert result.series["dist_to_gt_trajectory"].values == pytest.approx(0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_projection_agrees_with_shapely(seed):
    generator = np.random.default_rng(seed)
    path, points = generator.normal(0, 5, (7, 2)), generator.normal(0, 6, (5, 2))
    line = shapely.LineString(path)
    distance, arc = project_on_path(points, path)
    assert distance == pytest.approx(shapely.distance(line, shapely.points(points)))
    assert arc == pytest.approx(shapely.line_locate_point(line, shapely.points(points)))
    prefix, _ = project_on_path(points, path, np.full(5, 3))
    assert prefix == pytest.approx(shapely.distance(shapely.LineString(path[:4]), shapely.points(points)))


def constant_plans(steps, offset_m):
    """Straight plans at 8 m/s, the later ones displaced sideways by offset_m * step index."""
    plans = np.zeros((steps, 64, 3), np.float32)
    plans[:, :, 0] = 0.8 * np.arange(1, 65)
    plans[:, :, 1] = offset_m * np.arange(steps)[:, None]
    return plans


def test_plan_deviation_of_steady_plans_is_zero():
    series = score(make_scene(), straight(4), plans=constant_plans(4, 0.0)).series["plan_deviation"]
    assert series.valid.tolist() == [False, True, True, True]
    assert series.values[1:] == pytest.approx(0.0, abs=1e-5)


def test_plan_deviation_of_displaced_plans_and_of_gaps():
    plans = constant_plans(5, 0.25)
    plans[2] = np.nan  # no plan at step 2: step 3 is compared with step 1
    series = score(make_scene(), straight(5), plans=plans).series["plan_deviation"]
    assert series.valid.tolist() == [False, True, False, True, True]
    # Before its first place the earlier plan starts at the rig itself, so all common places differ by the offset.
    assert series.values[[1, 3, 4]] == pytest.approx([0.25, 0.5, 0.25], abs=1e-5)


def test_plan_deviation_weighs_near_places_more():
    plans = constant_plans(2, 0.0)
    plans[1, 10, 1] = 1.0
    weights = np.exp(-0.1 * np.arange(63))
    value = score(make_scene(), straight(2), plans=plans).series["plan_deviation"].values[1]
    assert value == pytest.approx(weights[10] / weights.sum(), abs=1e-5)


def test_comfort_values():
    acceleration = np.array([[0.0, 0.0], [-2.0, 0.5], [1.0, 4.5], [1.0, 4.5]])
    result = score(make_scene(), straight(4), acceleration_mps2=acceleration, warmup_steps=1)
    values = {name: series.values for name, series in result.series.items()}
    assert values["abs_longitudinal_acceleration_mps2"].tolist() == [0.0, 2.0, 1.0, 1.0]
    assert values["abs_lateral_acceleration_mps2"].tolist() == [0.0, 0.5, 4.5, 4.5]
    assert result.series["abs_jerk_mps3"].valid.tolist() == [False, False, True, True]
    assert values["abs_jerk_mps3"][2:] == pytest.approx([50.0, 0.0])
    assert values["speed_mps"] == pytest.approx(8.0)
    assert values["expert_speed_mps"] == pytest.approx(8.0)


def test_events_are_counted_by_kind():
    events = [SimulationEvent(START_US + i * STEP_US, kind, "") for i, kind in enumerate(("b", "a", "b"))]
    assert score(make_scene(), straight(4), events=events).event_counts == {"a": 1, "b": 2}


def test_record_of_another_scene_is_refused():
    with pytest.raises(InputError, match="was driven in scene"):
        score_rollout(make_record(make_scene(0.01), straight(3)), make_scene(0.0), policy="ego")


def test_unknown_actor_is_refused():
    record = make_record(make_scene(), straight(3), actor_planar={"ghost": np.zeros((3, 3))})
    with pytest.raises(InputError, match="actor 'ghost' is no track of the scene"):
        score_rollout(record, make_scene(), policy="ego")


def test_expert_replay_is_faultless():
    scene = make_scene(curvature=0.02, speed_mps=9.0, tracks=[make_track("lead", (30.0, 0.0, 0.0), 8.0)])
    t_us = START_US + np.arange(100) * STEP_US
    result = score(scene, scene.expert.planar_at(t_us), actor_planar={"lead": logged(scene, "lead", t_us)})
    assert not result.series["offroad_or_collision"].values.any()
    assert result.series["dist_to_gt_location"].values == pytest.approx(0.0, abs=1e-9)
    assert result.series["progress_rel"].values[5:] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_distance_to_log_m", 0.0),
        ("box_shrink", 1.0),
        ("corner_radius_share", 0.5),
        ("standing_speed_mps", -0.1),
        ("bootstrap_resamples", 0),
        ("confidence", 1.0),
    ],
)
def test_protocol_names_the_bad_field(field, value):
    with pytest.raises(InputError, match=rf"{field} is {value}, expected"):
        EvaluationProtocol(**{field: value})
