"""Streets, traffic and the expert of the town."""

import dataclasses

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_sim.errors import InputError
from neural_sim.road_users import box_corners
from neural_sim.simulation.config import RouteConfig
from neural_sim.simulation.route import make_route
from neural_sim.town.choreography import find_problem
from neural_sim.town.config import STREET_KINDS, TownConfig
from neural_sim.town.lateral import CarBody, LateralPlan, Obstacle, plan_path
from neural_sim.town.longitudinal import CURVE_ACCEL_MPS2, STEP_S, Leader, curve_speeds, drive
from neural_sim.town.navigation import instruction
from neural_sim.town.network import make_network
from neural_sim.town.road import STEP_M, CrossSection, bend, road_along
from neural_sim.town.street_plan import EGO_START_S_M, draw_plan
from neural_sim.town.town import Town, build_town
from neural_sim.town.town_map import town_map

SEEDS = (1, 4, 6, 9, 12, 14)
STRAIGHT = road_along(np.zeros(1600), CrossSection())


@pytest.fixture(scope="module", params=SEEDS)
def town(request) -> Town:
    return build_town(TownConfig(seed=request.param))


def network_of(seed, **fields):
    config = TownConfig(seed=seed, **fields)
    return make_network(np.random.default_rng(seed), draw_plan(np.random.default_rng(seed), config), config)


def ego_boxes(town, every=5):
    vehicle = town.ego_vehicle
    planar = town.expert.planar[::every]
    return shapely.polygons(box_corners(planar, vehicle.length_m, vehicle.width_m, vehicle.center_x_m))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(STREET_KINDS))
def test_streets_are_smooth_and_never_meet_but_at_junctions(seed, kind):
    network = network_of(seed, street=kind)
    main = network.main
    assert main.line.is_simple
    assert network.carriageway.is_valid
    assert np.abs(np.diff(main.curvature_per_m)).max() < 0.12 / 5.0 * STEP_M + 1e-9
    assert (main.left_m >= network.plan.lane_width_m).all()
    assert (main.right_m >= network.plan.lane_width_m).all()
    # Inside tight turns the kerb stays on the near side of the centre of curvature.
    assert (main.curvature_per_m * main.left_m).max() < 1.0
    assert (-main.curvature_per_m * main.right_m).max() < 1.0
    for side in network.sides:
        rest = shapely.LineString(side.road.line_at(0.0, side.mouth_m + 12.0, side.road.length_m))
        others = [road.line for road in network.roads if road is not side.road]
        assert min(rest.distance(other) for other in others) > 9.0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), s=st.floats(5.0, 290.0), d=st.floats(-5.0, 5.0))
def test_road_coordinates_round_trip(seed, s, d):
    road = network_of(seed).main
    found = road.to_road(road.to_world(s, d)[None, :2])[0]
    # The centreline is a polyline of 0.25 m pieces, whose foot points lie a little beside the smooth curve's.
    np.testing.assert_allclose(found, [s, d], atol=0.1)


def test_every_kind_of_street_and_scene_occurs_among_the_first_seeds():
    plans = [draw_plan(np.random.default_rng(seed), TownConfig()) for seed in range(60)]
    assert {plan.kind for plan in plans} == set(STREET_KINDS)
    for name in ("lead_car", "cut_in", "lane_ends", "ego_in_ending_lane", "both_sides_narrow"):
        assert {getattr(plan, name) for plan in plans} == {True, False}, name
    turns = {junction.place.turn for seed in range(12) for junction in network_of(seed).junctions}
    assert turns == {-1, 0, 1}


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(STREET_KINDS))
def test_map_is_connected_and_its_lanes_lie_on_the_carriageway(seed, kind):
    network = network_of(seed, street=kind)
    road_map = town_map(network)
    lanes = {lane.lane_id: lane for lane in road_map.lanes}
    assert len(lanes) == len(road_map.lanes)
    for lane in lanes.values():
        for successor in lane.successors:
            gap = np.linalg.norm(lane.centerline_m[-1] - lanes[successor].centerline_m[0])
            assert gap < 0.05
        middle = shapely.Point(lane.centerline_m[len(lane.centerline_m) // 2, :2])
        assert shapely.contains(road_map.drivable, middle), lane.lane_id
    ends = [name for name, lane in lanes.items() if not lane.successors]
    # Only where streets leave the town is there nowhere to go.
    assert all(name.endswith("_out") or name == max_of(lanes, "ego_way") or name == max_of(lanes, "other_way", min)
               for name in ends)  # fmt: skip
    for number, junction in enumerate(network.junctions):
        ways = [name for name in lanes if name.startswith(f"way_{number}_")]
        count = len(junction.sides) + 2
        assert len(ways) == count * (count - 1) - 2
        assert all(lanes[name].is_junction for name in ways)


def max_of(lanes, prefix, choose=max):
    numbers = [int(name.removeprefix(f"{prefix}_")) for name in lanes if name.startswith(prefix)]
    return f"{prefix}_{choose(numbers)}"


def test_route_of_the_expert_follows_the_map(town):
    route = make_route(town.expert, town.road_map, RouteConfig())
    assert route.source == "map"
    offset = town.network.main.to_road(route.points_m)[:, 1]
    half = town.network.main.section.lane_width_m / 2
    assert np.median(np.abs(offset + half)) < 0.1


def test_expert_stays_on_the_road_and_touches_nobody(town):
    boxes = ego_boxes(town)
    assert shapely.covers(town.road_map.drivable, boxes).all()
    t_us = town.expert.t_us[::5]
    for track in town.tracks:
        planar = track.trajectory.planar_at(t_us)
        others = shapely.polygons(box_corners(planar, track.size_m[0], track.size_m[1]))
        here = (t_us >= track.trajectory.start_us) & (t_us <= track.trajectory.end_us)
        assert np.asarray(shapely.distance(boxes, others))[here].min() > 0.25, track.track_id


def test_what_is_wrong_with_a_drive_is_found(town):
    assert find_problem(town, town.network) == ""
    aside = town.expert.T_world_rig.copy()
    aside[:, :3, 3] += 4.0 * aside[:, :3, 1]
    off = dataclasses.replace(town, expert=dataclasses.replace(town.expert, T_world_rig=aside))
    assert find_problem(off, town.network) != ""


def test_expert_drives_comfortably_and_like_a_bicycle(town):
    planar, dt = town.expert.planar, 0.02
    delta = np.diff(planar[:, :2], axis=0)
    speed = np.linalg.norm(delta, axis=1) / dt
    yaw = np.unwrap(planar[:, 2])
    lateral = speed * np.diff(yaw) / dt
    acceleration = np.diff(speed) / dt
    assert np.abs(lateral).max() < 2.6
    assert acceleration.max() < 1.6
    assert acceleration.min() > -3.5
    assert np.abs(np.diff(acceleration) / dt).max() < 4.0
    assert speed.max() <= town.network.plan.speed_limit_mps + 0.05
    # The rear axle of a car moves along its heading: no side slip.
    middle = (yaw[1:] + yaw[:-1]) / 2
    slip = -np.sin(middle) * delta[:, 0] + np.cos(middle) * delta[:, 1]
    assert np.abs(slip).max() < 1e-5


def test_drivers_differ_from_seed_to_seed():
    speeds = [draw_plan(np.random.default_rng(seed), TownConfig()).speed_limit_mps for seed in range(20)]
    assert np.ptp(speeds) > 4.0


def test_lead_car_stops_and_the_ego_stops_behind_it():
    for seed in range(8):
        town = build_town(TownConfig(seed=seed, street="bends", lead_car=True, crossing_pedestrians=0))
        lead = next(track for track in town.tracks if track.track_id == "lead")
        t_us = town.expert.t_us[::10]
        slowest = lead.trajectory.speed_mps_at(t_us).min()
        along = [
            town.network.main.to_road(path.planar_at(t_us)[:, :2])[:, 0] for path in (lead.trajectory, town.expert)
        ]
        assert (along[0] - along[1]).min() > lead.size_m[0] / 2 + 3.7 + 1.0
        if slowest < 0.3:
            assert town.expert.speed_mps_at(t_us).min() < 3.0
            return
    raise AssertionError("no lead car of eight stopped")


def test_ego_waits_for_people_who_cross():
    town = build_town(TownConfig(seed=0, street="bends", lead_car=False, cut_in=False, crossing_pedestrians=1))
    person = next(track for track in town.tracks if track.track_id.startswith("crossing"))
    assert person.category == "pedestrian"
    d_m = town.network.main.to_road(person.trajectory.planar[:, :2])[:, 1]
    assert d_m.min() < -3.0
    assert d_m.max() > 3.0
    calm = build_town(TownConfig(seed=0, street="bends", lead_car=False, cut_in=False, crossing_pedestrians=0))
    t_us = town.expert.t_us[::10]
    assert town.expert.speed_mps_at(t_us).min() < calm.expert.speed_mps_at(t_us).min() - 1.0


def test_car_that_pulls_out_comes_into_the_lane_ahead():
    town = build_town(TownConfig(seed=9, street="bends", cut_in=True))
    car = next(track for track in town.tracks if track.track_id == "cut_in")
    road = town.network.main.to_road(car.trajectory.planar[:, :2])
    half = town.network.main.section.lane_width_m / 2
    assert road[0, 1] < -2 * half
    assert abs(road[-1, 1] + half) < 0.3
    ego = town.network.main.to_road(town.expert.planar_at(car.trajectory.t_us)[:, :2])[:, 0]
    assert (road[:, 0] - ego).min() > 5.0


def test_parked_cars_narrow_the_lane_and_the_ego_passes_them():
    town = build_town(TownConfig(seed=4, street="narrow", lead_car=False, cut_in=False))
    parked = [track for track in town.tracks if track.track_id.startswith("parked")]
    road = town.network.main
    inner = [np.abs(road.to_road(box_corners(t.trajectory.planar[0], t.size_m[0], t.size_m[1]))[:, 1]).min()
             for t in parked]  # fmt: skip
    assert min(inner) < road.section.lane_width_m - 0.3
    d_m = road.to_road(town.expert.planar[:, :2])[:, 1] + road.section.lane_width_m / 2
    assert np.ptp(d_m) > 0.3
    assert not any(track.is_moving(1e-9) for track in parked)


def test_tracks_touch_no_other_track(town):
    t_us = town.expert.t_us[::25]
    boxes = [
        [shapely.Polygon(box) if track.is_present(int(t)) else None for t, box in zip(t_us, corners, strict=True)]
        for track in town.tracks
        if track.category != "pedestrian"
        for corners in [box_corners(track.trajectory.planar_at(t_us), track.size_m[0], track.size_m[1])]
    ]
    for i, first in enumerate(boxes):
        for second in boxes[:i]:
            assert not shapely.intersects(first, second).any()


def test_buildings_keep_off_the_road_and_each_other(town):
    polygons = [shapely.Polygon(building.footprint_m) for building in town.layout.buildings]
    assert len(polygons) > 12
    assert min(polygon.distance(town.network.carriageway) for polygon in polygons) > 4.0
    tree = shapely.STRtree(polygons)
    first, second = tree.query(polygons, predicate="intersects")
    assert (first == second).all()


def test_nothing_stands_in_the_way(town):
    carriageway = town.network.carriageway
    places = [tree.xy_m for tree in town.layout.trees] + [sign.xy_m for sign in town.layout.signs]
    places += list(town.layout.lamps[:, :2])
    assert not shapely.contains(carriageway, shapely.points(np.array(places))).any()


def test_same_settings_same_town_and_parts_draw_from_their_own_streams():
    town, again = build_town(TownConfig(seed=5)), build_town(TownConfig(seed=5))
    np.testing.assert_array_equal(town.expert.T_world_rig, again.expert.T_world_rig)
    quiet = build_town(TownConfig(seed=5, crossing_pedestrians=2))
    np.testing.assert_array_equal(town.network.main.xy_m, quiet.network.main.xy_m)
    np.testing.assert_array_equal(town.layout.lamps, quiet.layout.lamps)
    np.testing.assert_array_equal(town.weather.light.sun, quiet.weather.light.sun)
    other = build_town(TownConfig(seed=6))
    assert not np.allclose(town.network.main.xy_m[-1], other.network.main.xy_m[-1])


def test_optional_road_users_can_be_left_out():
    config = TownConfig(
        duration_s=4.0, parked_cars=0, lead_car=False, cut_in=False, oncoming_cars=0, crossing_pedestrians=0
    )
    town = build_town(config)
    assert {track.track_id.split("_")[0] for track in town.tracks} <= {"walker", "waiting"}
    assert town.expert.end_us == 4_000_000


def test_curve_speeds_keep_lateral_acceleration():
    curvature = np.concatenate([np.zeros(200), bend(0.1, 1.5, 5.0), np.zeros(200)])
    for direction in (1.0, -1.0):
        speeds = curve_speeds(curvature, 15.0, direction)
        assert (speeds**2 * np.abs(curvature)).max() <= CURVE_ACCEL_MPS2 + 1e-9
        assert speeds.max() > 9.0


def test_follower_stops_behind_a_standing_leader_and_ignores_one_it_has_passed():
    limit = np.full(round(30.0 / STEP_S), 8.0)
    lane = LateralPlan(np.full(len(STRAIGHT.s_m), -1.6))
    standing = Leader(np.full(len(limit), 150.0), np.zeros(len(limit)))
    s_m, speed = drive(STRAIGHT, lane, 1.0, 40.0, limit, [standing])
    assert speed[-1] < 0.2
    assert 1.0 < 150.0 - s_m[-1] < 8.0
    passed = Leader(np.full(len(limit), 30.0), np.zeros(len(limit)))
    assert drive(STRAIGHT, lane, 1.0, 40.0, limit, [passed])[1].min() > 7.5


def test_path_keeps_its_distance_from_obstacles_and_comes_back():
    base = np.full(len(STRAIGHT.s_m), -1.6)
    body = CarBody(ahead_m=3.7, behind_m=0.9, half_width_m=0.925)
    path = plan_path(base, [Obstacle(100.0, 104.5, -2.2)], body, 0.6, 16.0)
    beside = (STRAIGHT.s_m > 100.0 - 3.7) & (STRAIGHT.s_m < 104.5 + 0.9)
    assert (path.d_m[beside] >= -2.2 + 0.6 + 0.925 - 1e-9).all()
    assert path.at(60.0)[0] == pytest.approx(-1.6)
    assert path.at(150.0)[0] == pytest.approx(-1.6)
    both = plan_path(base, [Obstacle(100.0, 104.0, -1.2), Obstacle(100.0, 104.0, 1.4)], body, 0.6, 16.0)
    assert both.at(102.0)[0] == pytest.approx(0.1)


def test_navigation_announces_turns_with_their_distance(town):
    assert town.navigation[0].start_us == 0
    for junction in town.network.junctions:
        place = junction.place
        if place.turn:
            text = instruction(town.network, place.start_m - 30.0)
            if not any(j.place.start_m < place.start_m < j.place.end_m + 60.0 for j in town.network.junctions):
                assert text == f"turn {'left' if place.turn > 0 else 'right'} in 30 m"
            assert instruction(town.network, place.start_m + 1.0) == f"turn {'left' if place.turn > 0 else 'right'}"


def test_navigation_tells_of_the_lane_that_ends():
    told = []
    for seed in range(40):
        network = network_of(seed, street="avenue")
        if network.merge_m is None or not network.plan.ego_in_ending_lane:
            continue
        assert network.merge_m[0] > EGO_START_S_M
        place = network.merge_m[0] - 20.0
        if not network.is_near_junction(place, 60.0):
            told.append(instruction(network, place))
    assert told
    assert set(told) == {"merge left in 20 m"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"seed": -1}, "seed is -1; expected an integer >= 0"),
        ({"duration_s": 0.0}, "duration_s is 0.0; expected 1 to 600 s"),
        ({"max_curvature_per_m": 0.2}, "max_curvature_per_m is 0.2; expected 0.002 to 0.045 1/m"),
        ({"cameras": ("rear",)}, "expected one or more of camera_front_wide_120fov"),
        ({"cameras": ()}, "expected one or more of camera_front_wide_120fov"),
        ({"sensor_noise": -0.1}, "sensor_noise is -0.1"),
        ({"image_width_px": 4}, "image_width_px is 4"),
        ({"street": "canal"}, "street is 'canal'; expected one of bends, junctions, narrow, avenue"),
        ({"speed_limit_mps": 90.0}, "speed_limit_mps is 90.0; expected 3 to 20 m/s"),
        ({"lead_car": True, "cut_in": True}, "expected no car that cuts in where there is a lead car"),
    ],
)
def test_impossible_settings_are_refused(fields, expected):
    with pytest.raises(InputError, match="town setting") as error:
        TownConfig(**fields)
    assert expected in str(error.value)


def test_more_parked_cars_than_bays_are_refused():
    with pytest.raises(InputError, match=r"parked_cars is 200, but this street of kind .* of 2\.0 s has \d+"):
        build_town(TownConfig(duration_s=2.0, parked_cars=200))
    with pytest.raises(InputError, match=r"of kind 'avenue' .* has 0 bays"):
        build_town(TownConfig(street="avenue", parked_cars=3))


def test_settings_survive_json_and_unknown_fields_are_refused():
    config = TownConfig(seed=3, cameras=("camera_front_tele_30fov",), lead_car=False, street="narrow")
    assert TownConfig.from_json(config.to_json()) == config
    with pytest.raises(InputError, match=r"unknown fields \['weather'\]"):
        TownConfig.from_json({"weather": "rain"})
    assert set(config.to_json()) == {field.name for field in dataclasses.fields(TownConfig)}
