"""The closed loop as a whole."""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
from synthetic_scene import CAMERAS, START_US, make_scene, make_track

from neural_sim.clips.clip import NavigationStep
from neural_sim.errors import InputError
from neural_sim.frames import planar_to_local
from neural_sim.rendering.renderer import RenderedImage, RenderRequest
from neural_sim.simulation.blank import BlankRenderer
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.ego_noise import EgoNoiseConfig
from neural_sim.simulation.observation import ImageFormat, Observation
from neural_sim.simulation.record import RolloutRecord, read_record, write_record
from neural_sim.simulation.simulator import Simulator
from neural_sim.trajectory import Trajectory

CONFIG = SimulationConfig()
IMAGES = ImageFormat(CAMERAS, num_frames=4, frame_interval_us=100_000, width_px=8, height_px=6)


class PoseRenderer:
    """Writes the camera poses, the time and the traffic into the first pixels, so that any difference shows."""

    name = "pose"

    def __init__(self) -> None:
        self.requests: list[RenderRequest] = []

    def render(self, requests: Sequence[RenderRequest]) -> list[RenderedImage]:
        self.requests += requests
        return [self._draw(request) for request in requests]

    def _draw(self, request: RenderRequest) -> RenderedImage:
        size = (request.camera.height_px, request.camera.width_px)
        actors = np.sum([np.zeros((4, 4)), *request.T_world_actors.values()], axis=0)
        poses = (request.T_world_camera_open, request.T_world_camera_close, actors)
        values = np.concatenate([pose[:3].ravel() for pose in poses])
        rgb = np.zeros((*size, 3), np.float32)
        rgb.reshape(-1)[: values.size] = np.mod(values * 1e5, 1.0)
        rgb.reshape(-1)[values.size] = request.t_us % 256 / 255
        return RenderedImage(rgb, np.zeros(size, np.float32), np.ones(size, np.float32))


def expert_plans(simulator: Simulator) -> np.ndarray:
    future, _ = simulator.expert_future()
    return planar_to_local(future[None], simulator.ego_planar[:, None])


def wandering_plans(simulator: Simulator, seeds: Sequence[int], step: int) -> np.ndarray:
    """Expert plans with a sideways drift that depends on seed and step only."""
    plans = expert_plans(simulator)
    for row, seed in enumerate(seeds):
        plans[row, :, 1] += 0.02 * np.sin(step / 7 + seed) * np.arange(64)
    return plans


def roll(simulator: Simulator, seeds: Sequence[int], steps: int, first: int = 0) -> list[Observation]:
    return [simulator.step(wandering_plans(simulator, seeds, first + k))[0] for k in range(steps)]


def assert_same(a: Observation, b: Observation, rows: slice = slice(None)) -> None:
    for name in ("t_us", "ego_history"):
        assert np.array_equal(getattr(a, name), getattr(b, name)[rows])
    for camera in a.images:
        assert np.array_equal(a.images[camera], b.images[camera][rows])
        assert np.array_equal(a.image_times_us[camera], b.image_times_us[camera][rows])


def assert_same_record(a: RolloutRecord, b: RolloutRecord) -> None:
    for item in fields(a):
        one, other = getattr(a, item.name), getattr(b, item.name)
        if isinstance(one, np.ndarray):
            assert np.array_equal(one, other, equal_nan=True), item.name
        elif item.name != "rollout_index":
            assert one == other


TRACKS = (make_track("car", (30, 3, 0), speed_mps=4.0), make_track("late", (60, -3, 0.3), start_s=5.0, duration_s=6.0))


def test_the_first_observation_is_whole():
    renderer = PoseRenderer()
    scene = make_scene(curvature=0.02, tracks=TRACKS, navigation=(NavigationStep(START_US, "turn left"),))
    simulator = Simulator(scene, renderer, CONFIG, IMAGES)
    seen = simulator.reset([3, 4])
    now = START_US + 1_700_000
    assert simulator.t_us == simulator.handover_us == now
    assert seen.t_us.tolist() == [now, now]
    assert set(seen.images) == set(scene.cameras)
    for camera in scene.cameras:
        assert seen.images[camera].shape == (2, 4, 6, 8, 3)
        assert seen.images[camera].dtype == np.uint8
        assert seen.image_times_us[camera].tolist() == [[now - 300_000, now - 200_000, now - 100_000, now]] * 2
    assert seen.navigation == ("turn left", "turn left")
    # Rollouts do not differ yet: four frames of two cameras, once for both.
    assert len(renderer.requests) == 8


def test_frames_move_through_the_history_and_are_drawn_once():
    renderer = PoseRenderer()
    simulator = Simulator(make_scene(tracks=TRACKS), renderer, CONFIG, IMAGES)
    before = simulator.reset([1, 2])
    after, _ = simulator.step(expert_plans(simulator))
    for camera in before.images:
        assert np.array_equal(before.images[camera][:, 1:], after.images[camera][:, :-1])
        assert not np.array_equal(after.images[camera][:, -1], after.images[camera][:, -2])
    assert len(renderer.requests) == 8 + 2 * 2


def test_the_shutter_opens_where_the_car_was_then():
    renderer = PoseRenderer()
    simulator = Simulator(make_scene(speed_mps=8.0), renderer, CONFIG, IMAGES)
    simulator.reset([1])
    request = renderer.requests[-1]
    moved = request.T_world_camera_close[:3, 3] - request.T_world_camera_open[:3, 3]
    np.testing.assert_allclose(moved, [8.0 * 0.03, 0, 0], atol=1e-9)
    assert request.T_world_camera_close[0, 3] == pytest.approx(8.0 * 1.7 + 1.5)
    assert request.t_us == simulator.t_us


def test_history_during_warm_up_follows_the_log():
    config = replace(CONFIG, ego_noise=EgoNoiseConfig(enabled=False))
    seen = Simulator(make_scene(curvature=0.02), BlankRenderer(), config, IMAGES).reset([0])
    np.testing.assert_allclose(seen.ego_history[0, :, 3], 8.0, rtol=1e-3)
    np.testing.assert_allclose(seen.ego_history[0, 0, 2], -0.02 * 8.0 * 1.5, atol=1e-6)


def test_the_car_is_handed_over_in_the_steady_state_of_its_turn():
    simulator = Simulator(make_scene(curvature=0.03, speed_mps=8.0), BlankRenderer(), CONFIG, IMAGES)
    simulator.reset([0])
    record, vehicle = simulator.records()[0], CONFIG.vehicle
    assert np.abs(record.acceleration_mps2[:, 0]).max() < 0.05
    assert record.velocity[-1, 0] == pytest.approx(8.0, rel=1e-3)
    assert record.velocity[-1, 2] == pytest.approx(0.03 * 8.0, rel=0.02)
    lateral_mps2 = 0.03 * 8.0**2
    steering = 0.03 * vehicle.wheelbase_m + vehicle.understeer_rad_per_mps2 * lateral_mps2
    assert record.steering_rad[-1] == pytest.approx(steering, rel=0.03)
    assert record.acceleration_mps2[-1, 1] == pytest.approx(lateral_mps2, rel=0.05)


@pytest.mark.parametrize(("curvature", "slope"), [(0.0, 0.0), (0.03, 0.05), (-0.06, 0.0)])
def test_expert_plans_keep_the_car_on_the_expert_path(curvature, slope):
    scene = make_scene(curvature=curvature, speed_mps=8.0, slope=slope)
    simulator = Simulator(scene, BlankRenderer(), CONFIG, IMAGES)
    simulator.reset([5])
    off_m = []
    while not simulator.is_done:
        _, info = simulator.step(expert_plans(simulator))
        off_m.append(np.linalg.norm(info.ego_planar[0, :2] - scene.expert.planar_at(np.array([info.t_us]))[0, :2]))
        assert abs(info.cross_track_m[0]) < 0.3
    assert np.mean(off_m) < 0.15
    assert max(off_m) < 0.3
    assert len(off_m) == simulator.num_steps == 183
    record = simulator.records()[0]
    np.testing.assert_allclose(record.T_world_rig[:, 2, 3], slope * record.T_world_rig[:, 0, 3], atol=0.02)


def test_a_batch_of_three_equals_three_single_runs_bit_for_bit():
    scene = make_scene(curvature=0.03, slope=0.03, tracks=TRACKS)
    seeds = [11, 5, 8]
    together = Simulator(scene, PoseRenderer(), CONFIG, IMAGES)
    together.reset(seeds)
    batched = roll(together, seeds, 60)
    for row, seed in enumerate(seeds):
        alone = Simulator(scene, PoseRenderer(), CONFIG, IMAGES)
        alone.reset([seed])
        for one, many in zip(roll(alone, [seed], 60), batched, strict=True):
            assert_same(one, many, slice(row, row + 1))
        assert_same_record(alone.records()[0], together.records()[row])


def test_a_restored_simulation_repeats_itself():
    scene, seeds = make_scene(curvature=0.02, tracks=TRACKS), [1, 2]
    simulator = Simulator(scene, PoseRenderer(), CONFIG, IMAGES)
    simulator.reset(seeds)
    roll(simulator, seeds, 20)
    saved, seen = simulator.save_state(), simulator.observation()
    first = roll(simulator, seeds, 50, first=20)
    first_records = simulator.records()
    assert_same(seen, simulator.restore_state(saved))
    again = roll(simulator, seeds, 50, first=20)
    for one, other in zip(first, again, strict=True):
        assert_same(one, other)
    for one, other in zip(first_records, simulator.records(), strict=True):
        assert_same_record(one, other)
    # Another simulator of the scene can go on from the same state.
    other = Simulator(scene, PoseRenderer(), CONFIG, IMAGES)
    other.restore_state(saved)
    assert_same(first[0], roll(other, seeds, 1, first=20)[0])


def test_a_saved_state_cannot_be_changed_through_what_was_handed_out():
    simulator = Simulator(make_scene(), PoseRenderer(), CONFIG, IMAGES)
    seen = simulator.reset([1])
    saved = simulator.save_state()
    expected = simulator.observation()
    plans = expert_plans(simulator)
    simulator.step(plans)
    plans[:], seen.ego_history[:] = 1e3, 7.0
    next(iter(seen.images.values()))[:] = 0
    assert_same(expected, simulator.restore_state(saved))
    with pytest.raises(ValueError, match="read-only"):
        saved.vehicle.x_m[0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        saved.now.planar[0] = 1.0


def test_seeds_change_what_the_policy_sees_and_not_where_the_car_is():
    simulator = Simulator(make_scene(), BlankRenderer(), CONFIG, IMAGES)
    seen = simulator.reset([1, 2, 1])
    assert not np.array_equal(seen.ego_history[0], seen.ego_history[1])
    assert np.array_equal(seen.ego_history[0], seen.ego_history[2])
    assert (simulator.ego_planar == simulator.ego_planar[0]).all()
    assert 0.001 < np.abs(seen.ego_history[0] - seen.ego_history[1]).max() < 0.5


def test_a_bad_plan_is_rejected_and_the_others_drive_on():
    scene = make_scene(curvature=0.03)
    mixed, clean = (Simulator(scene, BlankRenderer(), CONFIG, IMAGES) for _ in range(2))
    mixed.reset([1, 2, 3])
    clean.reset([1, 2, 3])
    for k in range(30):
        plans = expert_plans(mixed)
        if 10 <= k < 13:
            plans[1, 4] = np.nan
            plans[2, 20:, 0] += 500.0
        _, info = mixed.step(plans)
        clean.step(expert_plans(clean))
        assert info.plan_accepted.tolist() == [True, *[not 10 <= k < 13] * 2]
    records = mixed.records()
    assert [len(record.events) for record in records] == [0, 3, 3]
    event = records[1].events[0]
    assert event.kind == "plan_rejected"
    assert event.t_us == START_US + 2_700_000
    assert event.detail == "1 of 64 poses are not finite, the first at step 4"
    assert "jumps" in records[2].events[0].detail
    assert_same_record(records[0], clean.records()[0])
    # The previous plan goes on for 0.3 s: still on the expert's path.
    np.testing.assert_allclose(mixed.ego_planar[1], clean.ego_planar[1], atol=0.1)


@pytest.mark.parametrize("speed_mps", [0.0, -6.0])
def test_standing_and_backwards_plans_bring_the_car_to_rest(speed_mps):
    simulator = Simulator(make_scene(speed_mps=10.0), BlankRenderer(), CONFIG, IMAGES)
    simulator.reset([1])
    plan = np.zeros((1, 64, 3))
    plan[0, :, 0] = speed_mps * 0.1 * np.arange(1, 65)
    for _ in range(60):
        simulator.step(plan)
    record = simulator.records()[0]
    assert record.velocity[-1, 0] == 0.0
    assert (np.diff(record.T_world_rig[:, 0, 3]) >= 0).all()
    kind = "plan_stands_still" if speed_mps == 0 else "plan_backwards"
    assert [event.kind for event in record.events] == [kind]
    assert record.events[0].t_us == simulator.handover_us


def test_too_much_speed_is_noted_once():
    simulator = Simulator(make_scene(speed_mps=10.0), BlankRenderer(), replace(CONFIG, max_speed_mps=12.0), IMAGES)
    simulator.reset([1])
    plan = np.zeros((1, 64, 3))
    plan[0, :, 0] = 3.0 * np.arange(1, 65)
    for _ in range(30):
        simulator.step(plan)
    events = simulator.records()[0].events
    assert [event.kind for event in events] == ["speed_out_of_bounds"]
    assert "exceeds 12 m/s" in events[0].detail


def test_plans_take_effect_after_the_delay():
    """A stop ordered at the hand-over must not show before 0.2 s, plus the first moments of the actuator."""
    simulator = Simulator(make_scene(speed_mps=10.0), BlankRenderer(), CONFIG, IMAGES)
    simulator.reset([1])
    speeds = []
    for _ in range(4):
        simulator.step(np.zeros((1, 64, 3)))
        speeds.append(simulator.records()[0].velocity[-1, 0])
    np.testing.assert_allclose(speeds[:2], 10.0, atol=1e-6)
    assert speeds[2] < 9.9
    at_once = Simulator(make_scene(speed_mps=10.0), BlankRenderer(), replace(CONFIG, plan_delay_us=0), IMAGES)
    at_once.reset([1])
    at_once.step(np.zeros((1, 64, 3)))
    assert at_once.records()[0].velocity[-1, 0] < 9.9


def test_records_are_whole_and_survive_the_disk(tmp_path):
    simulator = Simulator(make_scene(tracks=TRACKS), BlankRenderer(), CONFIG, IMAGES)
    simulator.reset([7, 9])
    roll(simulator, [7, 9], 10)
    record = simulator.records([4, 5])[1]
    assert (record.rollout_index, record.seed, record.scene_id) == (5, 9, "synthetic-c0-v8")
    assert len(record.t_us) == 28
    assert record.is_warmup.tolist() == [True] * 17 + [False] * 11
    assert np.isnan(record.plans[:17]).all()
    assert np.isfinite(record.plans[17:27]).all()
    assert np.isnan(record.plans[27]).all()
    assert record.actor_ids == ("car", "late")
    np.testing.assert_allclose(record.actor_planar[10, 0], [34, 3, 0])
    assert np.isnan(record.actor_planar[10, 1]).all()
    assert 0 < np.abs(record.estimated_planar[:, :2] - record.T_world_rig[:, :2, 3]).max() < 0.5
    write_record(record, tmp_path / "r.npz")
    assert_same_record(record, read_record(tmp_path / "r.npz"))


def test_thirty_hertz_with_frames_every_third_step():
    step_us = 33_334
    config = replace(CONFIG, control_step_us=step_us, warmup_us=51 * step_us)
    images = replace(IMAGES, frame_interval_us=3 * step_us)
    simulator = Simulator(make_scene(curvature=0.03), PoseRenderer(), config, images)
    seen = simulator.reset([1])
    frames = {int(t): i for t, i in zip(*_last_camera(seen), strict=True)}
    for _ in range(30):
        seen, info = simulator.step(expert_plans(simulator))
        times, images = _last_camera(seen)
        assert np.diff(times).tolist() == [3 * step_us] * 3
        for t, image in zip(times, images, strict=True):
            assert np.array_equal(frames.setdefault(int(t), image), image)
        assert abs(info.cross_track_m[0]) < 0.2


def _last_camera(seen: Observation) -> tuple[np.ndarray, np.ndarray]:
    name = list(seen.images)[-1]
    return seen.image_times_us[name][0], seen.images[name][0]


def test_the_log_or_the_duration_ends_the_simulation():
    short = Simulator(make_scene(duration_s=4.0), BlankRenderer(), CONFIG, IMAGES)
    assert short.num_steps == 23
    assert short.end_us == START_US + 4_000_000
    cut = Simulator(make_scene(), BlankRenderer(), replace(CONFIG, duration_us=2_000_000), IMAGES)
    cut.reset([1])
    for _ in range(3):
        assert not cut.is_done
        cut.step(expert_plans(cut))
    assert cut.is_done
    with pytest.raises(InputError, match="the simulation ended at 7000000 us; call reset"):
        cut.step(np.zeros((1, 64, 3)))


def test_the_simulation_starts_when_all_cameras_have_an_image():
    scene = make_scene()
    late = {name: times + 400_000 for name, times in scene.camera_times_us.items()}
    simulator = Simulator(replace(scene, camera_times_us=late), BlankRenderer(), CONFIG, IMAGES)
    assert simulator.handover_us == START_US + 2_100_000


def test_misuse_is_explained():
    scene = make_scene()
    with pytest.raises(InputError, match=r"the policy sees camera rear, but the scene has camera_front_tele_30fov, "):
        Simulator(scene, BlankRenderer(), CONFIG, replace(IMAGES, cameras=("rear",)))
    with pytest.raises(InputError, match=r"its log covers 1.5 s, expected more than the warm-up of 1.7 s"):
        Simulator(make_scene(duration_s=1.5), BlankRenderer(), CONFIG, IMAGES)
    simulator = Simulator(scene, BlankRenderer(), CONFIG, IMAGES)
    with pytest.raises(InputError, match="has not started; call reset first"):
        _ = simulator.t_us
    with pytest.raises(InputError, match="at least one, none negative"):
        simulator.reset([])
    simulator.reset([1])
    with pytest.raises(InputError, match=r"found float64 of shape \(2, 64, 3\)"):
        simulator.step(np.zeros((2, 64, 3)))
    with pytest.raises(InputError, match="rollout indices: found 3, expected 1"):
        simulator.records([1, 2, 3])
    elsewhere = Simulator(make_scene(curvature=0.1), BlankRenderer(), CONFIG, IMAGES)
    with pytest.raises(InputError, match="saved state of scene synthetic-c0-v8"):
        elsewhere.restore_state(simulator.save_state())


def test_a_parked_expert_stays_parked():
    poses = np.repeat(np.eye(4)[None], 101, axis=0)
    expert = Trajectory(START_US + 100_000 * np.arange(101), poses)
    simulator = Simulator(replace(make_scene(), expert=expert), BlankRenderer(), CONFIG, IMAGES)
    simulator.reset([1])
    while not simulator.is_done:
        simulator.step(expert_plans(simulator))
    np.testing.assert_allclose(simulator.ego_planar, 0.0, atol=1e-6)
