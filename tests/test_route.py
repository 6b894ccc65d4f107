"""Waypoints and commands."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_scene import CAMERAS, START_US, arc_planar, make_scene

from neural_sim.clips.clip import NavigationStep
from neural_sim.errors import InputError
from neural_sim.frames import pose_from_planar
from neural_sim.road_map import Lane, RoadMap, corridor_map
from neural_sim.road_users import EgoVehicle
from neural_sim.simulation.blank import BlankRenderer
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.observation import ImageFormat
from neural_sim.simulation.route import Route, RouteConfig, command_of, make_route, thinned
from neural_sim.simulation.simulator import Simulator
from neural_sim.trajectory import Trajectory

CONFIG = RouteConfig()
IMAGES = ImageFormat(CAMERAS, num_frames=1, frame_interval_us=100_000, width_px=8, height_px=6)


def lane(name: str, planar: np.ndarray, *successors: str) -> Lane:
    return Lane(name, np.column_stack([planar[:, :2], np.zeros(len(planar))]), 3.5, successors)


def recorded(*lanes: Lane) -> RoadMap:
    return RoadMap(lanes, (), corridor_map(make_scene().expert, 5.0).drivable_areas, "recorded")


def test_waypoints_are_twenty_over_eighty_metres():
    route = Route(np.array([[0.0, 0.0], [200.0, 0.0]]), "recorded")
    found = route.waypoints(np.array([[10.0, 1.0, 0.0], [10.0, 0.0, np.pi / 2]]))
    np.testing.assert_allclose(found[0, :, 0], np.linspace(0, 80, 20))
    np.testing.assert_allclose(found[0, :, 1], -1.0)
    np.testing.assert_allclose(found[1, :, 1], -np.linspace(0, 80, 20), atol=1e-12)


def test_waypoints_end_with_the_route():
    found = Route(np.array([[0.0, 0.0], [50.0, 0.0]]), "recorded").waypoints(np.zeros((1, 3)))
    known = np.isfinite(found[0]).all(axis=1)
    assert known.sum() == int(50 / (80 / 19)) + 1
    assert not known[known.sum() :].any()


@pytest.mark.parametrize(("curvature", "expected"), [(0.0, "STRAIGHT"), (0.03, "LEFT"), (-0.03, "RIGHT")])
def test_commands_follow_the_bend(curvature, expected):
    route = make_route(make_scene(curvature=curvature).expert, make_scene().road_map, CONFIG)
    assert route.source == "recorded"
    assert command_of(route.waypoints(np.zeros((1, 3))), CONFIG) == (expected,)


def test_the_command_is_unknown_where_the_route_is_too_short():
    route = Route(np.array([[0.0, 0.0], [15.0, 0.0]]), "recorded")
    assert command_of(route.waypoints(np.zeros((1, 3))), CONFIG) == ("UNKNOWN",)
    single = Route(np.zeros((1, 2)), "recorded")
    assert command_of(single.waypoints(np.zeros((1, 3))), CONFIG) == ("UNKNOWN",)


def test_the_map_draws_the_route_to_lane_centres_and_on():
    # The recording drives 0.8 m left of the lane's centre for 160 m; the lane goes on for 100 m more.
    own = lane("own", arc_planar(np.arange(0.0, 170.0, 5.0), 0.0) - np.array([0, 0.8, 0]), "next")
    after = lane("next", arc_planar(np.arange(165.0, 266.0, 5.0), 0.0) - np.array([0, 0.8, 0]))
    oncoming = lane("oncoming", arc_planar(np.arange(170.0, -1.0, -5.0), 0.0) + np.array([0, 0.1, 0]))
    route = make_route(make_scene().expert, recorded(own, after, oncoming), CONFIG)
    assert route.source == "map"
    np.testing.assert_allclose(route.points_m[1:, 1], -0.8)
    assert route.points_m[-1, 0] >= 160 + 80
    found = route.waypoints(np.array([[150.0, 0.0, 0.0]]))
    assert np.isfinite(found).all()


def test_at_a_fork_the_straighter_lane_is_taken():
    own = lane("own", arc_planar(np.arange(0.0, 161.0, 5.0), 0.0), "bend", "straight")
    start = np.array([160.0, 0.0, 0.0])
    bend = lane("bend", arc_planar(np.arange(0.0, 61.0, 5.0), 0.1) + start)
    straight = lane("straight", arc_planar(np.arange(0.0, 101.0, 5.0), 0.0) + start)
    route = make_route(make_scene(duration_s=19.0).expert, recorded(own, bend, straight), CONFIG)
    assert np.abs(route.points_m[:, 1]).max() < 0.01


def test_without_a_lane_nearby_the_recorded_path_is_the_route():
    far = lane("far", arc_planar(np.arange(0.0, 160.0, 5.0), 0.0) + np.array([0, 30, 0]))
    assert make_route(make_scene().expert, recorded(far), CONFIG).source == "recorded"
    assert make_route(make_scene().expert, recorded(far), RouteConfig(source="recorded")).source == "recorded"


def test_a_route_that_folds_back_is_cut():
    planar = np.column_stack([[0, 5, 10, 15, 10, 5, 0], [0, 0, 0, 0, 0.1, 0.1, 0.1], np.zeros(7)])
    expert = Trajectory(np.arange(7), pose_from_planar(planar))
    route = make_route(expert, make_scene().road_map, CONFIG)
    np.testing.assert_allclose(route.points_m[-1], [15, 0])


def test_thinning_keeps_the_first_point_of_each_stretch():
    points = np.column_stack([np.arange(0, 1.05, 0.1), np.zeros(11)])
    np.testing.assert_allclose(thinned(points, 0.25)[:, 0], [0, 0.3, 0.6, 0.9])


def test_navigation_texts_come_from_the_route_on_request_only():
    scene = make_scene(curvature=0.03)
    asked = replace(SimulationConfig(), navigation_from_route=True)
    assert Simulator(scene, BlankRenderer(), asked, IMAGES).reset([1, 2]).navigation == ("turn left", "turn left")
    assert Simulator(scene, BlankRenderer(), SimulationConfig(), IMAGES).reset([1]).navigation == ("",)
    told = make_scene(navigation=(NavigationStep(START_US, "go on"),))
    assert Simulator(told, BlankRenderer(), asked, IMAGES).reset([1]).navigation == ("go on",)


def test_the_wheelbase_comes_from_the_scene_on_request():
    ego = EgoVehicle(wheelbase_m=2.6)
    given = SimulationConfig(vehicle_from_scene=True).vehicle_of(ego)
    assert given.wheelbase_m == 2.6
    assert given.rear_axle_to_cg_m / given.front_axle_to_cg_m == pytest.approx(1.59 / 1.26)
    assert given.rear_axle_to_cg_m == pytest.approx(1.59 * 2.6 / 2.85)
    assert SimulationConfig().vehicle_of(ego).wheelbase_m == 2.85


def test_bad_settings_are_named():
    with pytest.raises(InputError, match=r"simulation.route.source is 'x', expected map or recorded"):
        RouteConfig(source="x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"simulation.route.lookahead_m is 0, expected a positive length"):
        RouteConfig(lookahead_m=0)
