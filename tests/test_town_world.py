"""The town's street, traffic and expert drive, without pictures."""

import dataclasses

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_sim.errors import InputError
from neural_sim.road_users import box_corners
from neural_sim.town.config import TownConfig
from neural_sim.town.longitudinal import CURVE_ACCEL_MPS2, STEP_S, Leader, curve_speeds, drive
from neural_sim.town.road import EGO_START_S_M, make_road, road_map
from neural_sim.town.town import Town, build_town

SEEDS = (7, 1, 6, 11)


@pytest.fixture(scope="module", params=SEEDS)
def town(request) -> Town:
    return build_town(TownConfig(seed=request.param))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), bound=st.floats(0.004, 0.03))
def test_road_is_smooth_bounded_and_never_meets_itself(seed, bound):
    road = make_road(np.random.default_rng(seed), 300.0, bound)
    assert road.length_m >= 300.0 - 1.0
    assert np.abs(road.curvature_per_m).max() <= bound + 1e-12
    # Clothoid ramps are at least 10 m long, so the curvature changes by at most bound / 10 m.
    assert np.abs(np.diff(road.curvature_per_m)).max() <= bound / 10.0 * 0.25 + 1e-9
    assert np.abs(road.heading_rad).max() < np.deg2rad(75.0)
    edge = road.section.building_line_m
    sides = [shapely.LineString(road.line_at(d, 0.0, road.length_m)) for d in (edge, -edge)]
    assert all(side.is_simple for side in (road.line, *sides))
    assert not sides[0].intersects(sides[1])
    assert road_map(road).drivable_areas[0].is_valid


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), s=st.floats(5.0, 290.0), d=st.floats(-10.0, 10.0))
def test_road_coordinates_round_trip(seed, s, d):
    road = make_road(np.random.default_rng(seed), 300.0, 0.03)
    found = road.to_road(road.to_world(s, d)[None, :2])[0]
    # The centreline is a polyline of 0.25 m pieces, whose foot points lie a few millimetres beside the smooth curve's.
    np.testing.assert_allclose(found, [s, d], atol=0.05)


def test_first_bend_turns_clearly(town):
    stretch = np.linspace(EGO_START_S_M, EGO_START_S_M + 120.0, 200)
    assert np.ptp(town.road.heading_at(stretch)) > np.deg2rad(25.0)


def test_map_has_one_connected_lane_each_way(town):
    lanes = {lane.lane_id: lane for lane in town.road_map.lanes}
    for lane in lanes.values():
        for successor in lane.successors:
            np.testing.assert_allclose(lane.centerline_m[-1], lanes[successor].centerline_m[0], atol=1e-9)
        middle = lane.centerline_m[len(lane.centerline_m) // 2]
        d = town.road.to_road(middle[None, :2])[0, 1]
        assert d == pytest.approx(-1.75 if lane.lane_id.startswith("ego_way") else 1.75, abs=0.01)
        forward = (lane.centerline_m[-1] - lane.centerline_m[0])[0]
        assert (forward > 0) == lane.lane_id.startswith("ego_way")
    assert sum(not lane.successors for lane in lanes.values()) == 2


def test_expert_stays_on_the_road_and_touches_nobody(town):
    vehicle = town.ego_vehicle
    boxes = shapely.polygons(box_corners(town.expert.planar, vehicle.length_m, vehicle.width_m, vehicle.center_x_m))
    assert shapely.contains(town.road_map.drivable, boxes).all()
    for track in town.tracks:
        planar = track.trajectory.planar_at(town.expert.t_us)
        others = shapely.polygons(box_corners(planar, track.size_m[0], track.size_m[1]))
        assert shapely.distance(boxes, others).min() > 0.4, track.track_id


def test_tracks_touch_no_other_track(town):
    t_us = town.expert.t_us[::25]
    boxes = [
        shapely.polygons(box_corners(track.trajectory.planar_at(t_us), track.size_m[0], track.size_m[1]))
        for track in town.tracks
    ]
    for i, first in enumerate(boxes):
        for second in boxes[:i]:
            assert not shapely.intersects(first, second).any()


def test_expert_drives_comfortably_and_like_a_bicycle(town):
    planar, dt = town.expert.planar, 0.02
    delta = np.diff(planar[:, :2], axis=0)
    speed = np.linalg.norm(delta, axis=1) / dt
    yaw = np.unwrap(planar[:, 2])
    lateral = speed * np.diff(yaw) / dt
    acceleration = np.diff(speed) / dt
    assert np.abs(lateral).max() < 2.0
    assert acceleration.max() < 1.5
    assert acceleration.min() > -3.0
    assert np.abs(np.diff(acceleration) / dt).max() < 2.5
    assert np.abs(np.diff(lateral) / dt).max() < 2.0
    assert speed.max() <= town.config.speed_limit_mps + 0.05
    # The rear axle of a car moves along its heading: no side slip.
    middle = (yaw[1:] + yaw[:-1]) / 2
    slip = -np.sin(middle) * delta[:, 0] + np.cos(middle) * delta[:, 1]
    assert np.abs(slip).max() < 1e-5


def test_expert_varies_within_its_lane(town):
    offset = town.road.to_road(town.expert.planar[:, :2])[:, 1] + town.road.section.lane_width_m / 2
    assert np.abs(offset).max() < 0.35
    assert np.std(offset) > 0.02


def test_lead_car_slows_down_and_speeds_up(town):
    lead = next(track for track in town.tracks if track.track_id == "lead")
    speed = lead.trajectory.speed_mps_at(town.expert.t_us[::10])
    slowest = int(speed.argmin())
    assert speed.min() < 4.5
    assert speed[: slowest + 1].max() > speed.min() + 2.0
    assert speed[slowest:].max() > speed.min() + 2.0
    ahead = town.road.to_road(lead.trajectory.planar_at(town.expert.t_us)[:, :2])[:, 0]
    ego = town.road.to_road(town.expert.planar[:, :2])[:, 0]
    assert (ahead - ego).min() > 5.0


def test_parked_cars_stand_still_between_lane_and_kerb(town):
    parked = [track for track in town.tracks if track.track_id.startswith("parked")]
    assert len(parked) == town.config.parked_cars
    for track in parked:
        assert not track.is_moving(1e-9)
        assert track.trajectory.T_world_rig[0, 2, 3] == pytest.approx(track.size_m[2] / 2)
        corners = box_corners(track.trajectory.planar[0], track.size_m[0], track.size_m[1])
        side = np.abs(town.road.to_road(corners)[:, 1])
        assert side.min() > town.road.section.lane_width_m - 0.15
        assert side.max() < town.road.section.carriageway_half_width_m


def test_buildings_keep_off_the_road_and_each_other(town):
    polygons = [shapely.Polygon(building.footprint_m) for building in town.layout.buildings]
    assert len(polygons) > 20
    assert min(polygon.distance(town.road.line) for polygon in polygons) >= town.road.section.building_line_m - 0.3
    tree = shapely.STRtree(polygons)
    first, second = tree.query(polygons, predicate="intersects")
    assert (first == second).all()


def test_same_settings_same_town_and_parts_draw_from_their_own_streams():
    town, again = build_town(TownConfig(seed=5)), build_town(TownConfig(seed=5))
    np.testing.assert_array_equal(town.expert.T_world_rig, again.expert.T_world_rig)
    more = build_town(TownConfig(seed=5, parked_cars=20))
    np.testing.assert_array_equal(town.road.xy_m, more.road.xy_m)
    np.testing.assert_array_equal(town.expert.T_world_rig, more.expert.T_world_rig)
    np.testing.assert_array_equal(town.layout.lamps, more.layout.lamps)
    other = build_town(TownConfig(seed=6))
    assert not np.allclose(town.road.xy_m[-1], other.road.xy_m[-1])


def test_optional_cars_can_be_left_out():
    town = build_town(TownConfig(duration_s=4.0, parked_cars=0, lead_car=False, oncoming_cars=0))
    assert town.tracks == ()
    assert town.expert.end_us == 4_000_000
    assert town.expert.speed_mps_at(town.expert.t_us).min() > 6.0


def test_curve_speeds_keep_lateral_acceleration():
    road = make_road(np.random.default_rng(0), 300.0, 0.03)
    for direction in (1.0, -1.0):
        speeds = curve_speeds(road, 0.0, 15.0, direction)
        assert (speeds**2 * np.abs(road.curvature_per_m)).max() <= CURVE_ACCEL_MPS2 + 1e-9
        assert speeds.max() == pytest.approx(15.0)


def test_follower_stops_behind_a_standing_leader():
    road = make_road(np.random.default_rng(0), 300.0, 0.002)
    limit = np.full(round(30.0 / STEP_S), 8.0)
    leader = Leader(np.full(len(limit), 150.0), np.zeros(len(limit)))
    s_m, speed = drive(road, 0.0, 1.0, 40.0, limit, leader)
    assert speed[-1] < 0.2
    assert 1.0 < 150.0 - s_m[-1] < 8.0


def test_navigation_names_the_side_of_the_first_bend(town):
    texts = [step.text for step in town.navigation]
    bends = [text for text in texts if text.startswith("follow")]
    peak = town.road.curvature_per_m[np.flatnonzero(np.abs(town.road.curvature_per_m) > 0.008)[0]]
    assert bends[0] == f"follow the road to the {'left' if peak > 0 else 'right'}"
    assert town.navigation[0].start_us == 0


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("seed", -1, "seed is -1; expected an integer >= 0"),
        ("duration_s", 0.0, "duration_s is 0.0; expected 1 to 600 s"),
        ("max_curvature_per_m", 0.2, "max_curvature_per_m is 0.2; expected 0.002 to 0.03 1/m"),
        ("cameras", ("rear",), "expected one or more of camera_front_wide_120fov"),
        ("cameras", (), "expected one or more of camera_front_wide_120fov"),
        ("sensor_noise", -0.1, "sensor_noise is -0.1"),
        ("image_width_px", 4, "image_width_px is 4"),
    ],
)
def test_impossible_settings_are_refused(field, value, expected):
    with pytest.raises(InputError, match="town setting") as error:
        TownConfig(**{field: value})
    assert expected in str(error.value)


def test_more_parked_cars_than_bays_are_refused():
    with pytest.raises(InputError, match=r"parked_cars is 200, but a street for 2\.0 s has \d+ bays"):
        build_town(TownConfig(duration_s=2.0, parked_cars=200))


def test_settings_survive_json_and_unknown_fields_are_refused():
    config = TownConfig(seed=3, cameras=("camera_front_tele_30fov",), lead_car=False)
    assert TownConfig.from_json(config.to_json()) == config
    with pytest.raises(InputError, match=r"unknown fields \['weather'\]"):
        TownConfig.from_json({"weather": "rain"})
    assert set(config.to_json()) == {field.name for field in dataclasses.fields(TownConfig)}
