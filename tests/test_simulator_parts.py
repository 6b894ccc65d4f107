"""Ground, traffic, expert path, plan checks, history and settings of the simulator."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_scene import CAMERAS, START_US, STEP_US, arc_planar, make_scene, make_track

from neural_sim.errors import InputError
from neural_sim.frames import planar_from_pose, planar_to_world
from neural_sim.rendering.renderer import RenderRequest
from neural_sim.simulation.blank import BlankRenderer
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.expert import ExpertPath
from neural_sim.simulation.ground import ExpertGround
from neural_sim.simulation.history import ego_history
from neural_sim.simulation.observation import ImageFormat
from neural_sim.simulation.plans import checked_plans, drivable_rows, placed_plan, rejection_detail
from neural_sim.simulation.state import StepEntry
from neural_sim.simulation.traffic import TrafficStep, replay_traffic
from neural_sim.trajectory import Trajectory


def test_the_expert_settled_on_its_own_ground_is_itself():
    scene = make_scene(curvature=0.03, slope=0.08)
    found = ExpertGround(scene.expert).settle(scene.expert.planar)
    np.testing.assert_allclose(found, scene.expert.T_world_rig, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 150), st.floats(-5, 5), st.floats(-7, 7))
def test_cars_beside_the_path_stand_on_the_slope(x, y, yaw):
    pose = ExpertGround(make_scene(slope=0.1).expert).settle(np.array([[x, y, yaw]]))[0]
    assert pose[2, 3] == pytest.approx(0.1 * x, abs=1e-9)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(pose[:3, 2], np.array([-0.1, 0, 1]) / np.hypot(0.1, 1), atol=1e-12)
    np.testing.assert_allclose(np.exp(1j * (planar_from_pose(pose)[2] - yaw)), 1.0, atol=1e-9)


def test_far_from_the_path_the_height_stays_bounded():
    # A car body that rolled by 0.1 rad must not tilt the whole world.
    poses = make_scene().expert.T_world_rig.copy()
    cosine, sine = np.cos(0.1), np.sin(0.1)
    poses[:, 1:3, 1:3] = [[cosine, -sine], [sine, cosine]]
    ground = ExpertGround(Trajectory(make_scene().expert.t_us, poses))
    heights = ground.settle(np.array([[20.0, 5.0, 0.0], [20.0, 50.0, 0.0]]))[:, 2, 3]
    np.testing.assert_allclose(heights, [5.0 * np.tan(0.1), 6.0 * np.tan(0.1)])


def test_a_standing_expert_has_a_ground_too():
    poses = np.repeat(np.eye(4)[None], 3, axis=0)
    ground = ExpertGround(Trajectory(np.arange(3), poses))
    np.testing.assert_allclose(ground.settle(np.array([[3.0, 1.0, 0.5]]))[0, :3, 3], [3, 1, 0])
    single = ExpertGround(Trajectory(np.arange(1), poses[:1]))
    np.testing.assert_allclose(single.settle(np.array([[3.0, 1.0, 0.5]]))[0, :3, 3], [3, 1, 0])


def test_traffic_is_interpolated_and_leaves_out_glimpses():
    tracks = [
        make_track("car", (10, 2, 0), speed_mps=5.0, start_s=1.0, duration_s=6.0),
        make_track("glimpse", (10, 5, 0), duration_s=2.9),
        make_track("cone", (10, 8, 0), duration_s=0.5, category="obstacle"),
    ]
    times = START_US + np.array([0, 250_000, 1_050_000, 7_000_000, 7_000_001])
    traffic = replay_traffic(tracks, times, 3.0)
    assert traffic.track_ids == ("car", "cone")
    assert traffic.present.tolist() == [[False, True], [False, True], [True, False], [True, False], [False, False]]
    np.testing.assert_allclose(traffic.at(2).planar[0, 0], [10.25, 2, 0])
    assert np.isnan(traffic.at(0).planar[0, 0]).all()
    shown = traffic.at(1).actors(traffic.track_ids, 3)
    assert [list(actors) for actors in shown] == [["cone"]] * 3
    np.testing.assert_allclose(traffic.at(2).actors(traffic.track_ids, 1)[0]["car"][:3, 3], [10.25, 2, 0.8])


def test_a_world_without_traffic_works():
    traffic = replay_traffic([], np.array([0, 1]), 3.0)
    assert traffic.at(0).planar.shape == (1, 0, 3)
    assert traffic.at(0).actors((), 2) == [{}, {}]


def test_the_expert_drives_straight_on_after_its_log():
    path = ExpertPath(make_scene(speed_mps=8.0, duration_s=10.0).expert)
    future, in_log = path.future(START_US + 9_000_000)
    assert in_log.tolist() == [True] * 10 + [False] * 54
    np.testing.assert_allclose(future[:, 0], 72.0 + 0.8 * np.arange(1, 65), atol=1e-9)
    assert path.rates_at(START_US + 5_000_000) == pytest.approx((8.0, 0.0))


def test_expert_rates_on_a_curve():
    speed, yaw_rate = ExpertPath(make_scene(curvature=0.05, speed_mps=6.0).expert).rates_at(START_US + 5_000_000)
    assert speed == pytest.approx(6.0, rel=1e-3)
    assert yaw_rate == pytest.approx(0.3, rel=1e-9)


def test_plans_are_placed_at_the_rig():
    plans = np.zeros((2, 64, 3))
    plans[..., 0] = np.arange(1, 65)
    plans[..., 2] = 0.1
    ego = np.array([[5.0, 1.0, np.pi / 2], [0.0, 0.0, 7.0]])
    placed = placed_plan(plans, ego, 123)
    expected = planar_to_world(plans, ego[:, None])
    np.testing.assert_allclose(placed.x_m[:, 1:], expected[..., 0])
    np.testing.assert_allclose(placed.y_m[:, 1:], expected[..., 1])
    np.testing.assert_allclose(placed.yaw_rad[:, -1], ego[:, 2] + 0.1)
    np.testing.assert_allclose(placed.x_m[:, 0], ego[:, 0])
    assert placed.start_us.tolist() == [123, 123]


def test_undrivable_plans_are_found_and_explained():
    plans = np.zeros((4, 64, 3))
    plans[1, 5, 2] = np.nan
    plans[2, 7:, 0] = 200.0
    plans[3, :, 1] = 1e308 * np.resize([1, -1], 64)
    assert drivable_rows(plans, 10.0).tolist() == [True, False, False, False]
    assert rejection_detail(plans[1], 10.0) == "1 of 64 poses are not finite, the first at step 5"
    assert rejection_detail(plans[2], 10.0) == "jumps 200 m into step 7, at most 10 m in 0.1 s are accepted"
    assert "jumps inf m into step 1" in rejection_detail(plans[3], 10.0)


@pytest.mark.parametrize("bad", [np.zeros((2, 64, 3)), np.zeros((3, 65, 3)), np.zeros((3, 64, 3), bool), [["a"]]])
def test_plans_of_another_shape_are_an_error(bad):
    with pytest.raises(InputError, match=r"plans: found .* expected numbers of shape \(3, 64, 3\)"):
        checked_plans(bad, 3)


def entries_on_arc(step_us: int, count: int) -> list[StepEntry]:
    distance = 8.0 * np.arange(count) * step_us * 1e-6
    velocity, nothing = np.array([[8.0, 0.0, 0.16]]), np.zeros((1, 2))
    nobody = TrafficStep(np.zeros((1, 0, 4, 4)), np.zeros((1, 0), bool), np.zeros((1, 0)))
    return [
        StepEntry(k * step_us, True, p[None], p[None], np.eye(4)[None], velocity, nothing, nothing[0], nobody)
        for k, p in enumerate(arc_planar(distance, 0.02))
    ]


@pytest.mark.parametrize("step_us", [100_000, 33_334, 50_000])
def test_history_is_every_tenth_of_a_second_whatever_the_step(step_us):
    history = ego_history(entries_on_arc(step_us, 60), step_us)
    assert history.dtype == np.float32
    ages = 0.1 * np.arange(-15, 1)
    expected = np.column_stack([arc_planar(8.0 * ages, 0.02), np.full(16, 8.0)])
    np.testing.assert_allclose(history[0], expected, atol=2e-3)
    assert (history[0, -1, :3] == 0).all()


def test_blank_images_have_the_wanted_size():
    camera = make_scene().cameras["camera_front_wide_120fov"].resized(12, 7)
    image = BlankRenderer(0.25).render([RenderRequest(camera, np.eye(4), np.eye(4), {}, 0)])[0]
    assert image.rgb.shape == (7, 12, 3)
    assert image.depth_m.shape == image.opacity.shape == (7, 12)
    assert (image.rgb == 0.25).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control_step_us": 0}, "simulation.control_step_us is 0, expected a positive number"),
        ({"warmup_us": 1_750_000}, "warmup_us is 1750000 us, expected a multiple of the control step"),
        ({"warmup_us": 1_400_000}, "warmup_us is 1400000 us, expected at least 1500000 us to fill the ego history"),
        ({"duration_us": 1_700_000}, "duration_us is 1700000 us, expected at least one control step more"),
        ({"plan_delay_us": -1}, "plan_delay_us is -1"),
    ],
)
def test_bad_settings_are_explained(change, message):
    with pytest.raises(InputError, match=message):
        replace(SimulationConfig(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_interval_us": 150_000}, "frame interval of the policy is 150000 us, expected a multiple of"),
        ({"num_frames": 20}, "warmup_us is 1700000 us, expected at least 1900000 us to fill 20 frames"),
    ],
)
def test_frames_that_do_not_fit_the_clock_are_explained(change, message):
    images = ImageFormat(CAMERAS, num_frames=4, frame_interval_us=100_000, width_px=8, height_px=6)
    with pytest.raises(InputError, match=message):
        SimulationConfig().frame_stride(replace(images, **change))


@pytest.mark.parametrize("change", [{"width_px": 0}, {"num_frames": 0}, {"cameras": ()}])
def test_an_impossible_image_format_is_refused(change):
    images = ImageFormat(CAMERAS, num_frames=4, frame_interval_us=100_000, width_px=8, height_px=6)
    with pytest.raises(InputError, match="image format: "):
        replace(images, **change)


def test_step_constant_of_the_synthetic_scene_is_ten_hertz():
    assert np.diff(make_scene().expert.t_us).tolist() == [STEP_US] * 200
