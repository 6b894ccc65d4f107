"""What decides in a rollout, driven through the real simulator with blank images."""

import numpy as np
import pytest
import torch
from synthetic_scene import CAMERAS, make_scene

from neural_sim.errors import InputError
from neural_sim.frames import planar_to_world
from neural_sim.simulation.blank import BlankRenderer
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.observation import ImageFormat
from neural_sim.simulation.simulator import Simulator
from pipelines.drive import drive
from pipelines.guidance import GuidanceConfig
from pipelines.perturbation import SmoothErrors, shifted
from pipelines.strategies import expert_answers, make_strategy
from vla.policy import PlanSamples

IMAGES = ImageFormat(CAMERAS[:1], num_frames=1, frame_interval_us=100_000, width_px=8, height_px=6)


class ConstantPolicy:
    """Draws straight plans at a share of the present speed, drifting sideways; sample k drifts k times `drift_mps`."""

    def __init__(self, speed_share=1.0, drift_mps=0.0):
        self.speed_share, self.drift_mps = speed_share, drift_mps

    def sample(self, observation, num_samples, temperature, generators):
        times = 0.1 * torch.arange(1, 65)
        speed = torch.from_numpy(observation.ego_history[:, -1, 3])[:, None, None] * self.speed_share
        drift = self.drift_mps * torch.arange(num_samples)[None, :, None]
        x, y = speed * times, drift * times
        x, y = torch.broadcast_tensors(x, y)
        return PlanSamples(torch.stack([x, y, torch.zeros_like(x)], dim=-1).float())


def simulator(curvature=0.0, speed_mps=8.0):
    scene = make_scene(curvature=curvature, speed_mps=speed_mps)
    return Simulator(scene, BlankRenderer(), SimulationConfig(duration_us=7_000_000), IMAGES)


def run(config, policy=None, curvature=0.0, rollouts=(0,), seed=1):
    world = simulator(curvature)
    return world, drive(world, policy, rollouts, seed, config, world.scene.ego_vehicle)


def distances_to_log_m(world, driven):
    record = driven.records[0]
    expert = world.scene.expert.planar_at(record.t_us)
    return np.linalg.norm(record.T_world_rig[:, :2, 3] - expert[:, :2], axis=1)


def test_guidance_orders_the_distance_to_the_expert():
    # On a bend, straight plans leave the road; candidates that drift are closer, the recording itself is closest.
    policy = ConstantPolicy(drift_mps=0.4)
    mean_m = {}
    for name in ("expert", "road", "none"):
        world, driven = run(GuidanceConfig(strategy=name, num_samples=8), policy, curvature=0.02)
        mean_m[name] = distances_to_log_m(world, driven).mean()
    assert mean_m["expert"] < 0.2 < mean_m["road"] < mean_m["none"]


def test_the_expert_query_stays_on_the_log_when_it_is_there():
    world = simulator(curvature=0.03)
    world.reset([0])
    expert, _ = world.expert_future()
    np.testing.assert_allclose(world.expert_query()[0, :, :2], expert[:, :2], atol=0.15)


def test_the_expert_query_leads_back_from_beside_the_log():
    world, driven = run(GuidanceConfig(strategy="none"), ConstantPolicy(drift_mps=0.0), curvature=0.01)
    world.reset([0])
    for step in driven.steps[:25]:
        world.step(step.guided.plans)
    expert, _ = world.expert_future()
    away_m = np.linalg.norm(world.expert_query()[0, :, :2] - expert[:, :2], axis=1)
    assert away_m[0] > 1.0
    assert away_m[-1] < 0.3
    assert (np.diff(np.unwrap(world.expert_query()[0, :, 2])) < 0.1).all()


def test_dagger_executes_the_policy_and_learns_the_way_back():
    world, driven = run(GuidanceConfig(strategy="dagger"), ConstantPolicy(), curvature=0.01)
    own = run(GuidanceConfig(strategy="none"), ConstantPolicy(), curvature=0.01)[1]
    np.testing.assert_array_equal(driven.records[0].T_world_rig, own.records[0].T_world_rig)
    step, t_us = driven.steps[30], int(driven.decision_times_us()[30])
    place = int(np.searchsorted(driven.records[0].t_us, t_us))
    ego = world.scene.expert.planar_at(np.array([t_us]))
    ego[0, :2] = driven.records[0].T_world_rig[place, :2, 3]
    ego[0, 2] = np.arctan2(*driven.records[0].T_world_rig[place, [1, 0], 0])
    end = planar_to_world(step.guided.targets[0, -1], ego[0])
    expert_end = world.scene.expert.planar_at(np.array([t_us + 6_400_000]))[0]
    assert np.linalg.norm(end[:2] - expert_end[:2]) < 0.5
    assert np.linalg.norm(step.guided.plans[0, -1, :2] - step.guided.targets[0, -1, :2]) > 1.0


def test_perturb_leaves_the_log_and_learns_the_way_back():
    world, driven = run(GuidanceConfig(strategy="perturb"))
    away_m = distances_to_log_m(world, driven)
    assert 0.3 < away_m.max() < 6.0
    assert any(np.abs(step.guided.targets - step.guided.plans).max() > 0.3 for step in driven.steps)


def test_by_path_position_a_slow_policy_is_not_pulled_forward():
    policy, last = ConstantPolicy(speed_share=0.9), {}
    for progress in ("time", "path"):
        _, driven = run(GuidanceConfig(strategy="road_no_recovery", num_samples=1, progress=progress), policy)
        last[progress] = driven.chosen_distance_m(0)[50]
    assert last["time"] > 2 * last["path"]
    # A standing car is on average 8 m/s * 1.05 s behind over the next 2 s, however long it has stood.
    assert last["path"] < 8.4


@pytest.mark.parametrize("strategy", ["road", "dagger", "perturb", "expert"])
def test_a_rollout_does_not_depend_on_its_batch(strategy):
    config = GuidanceConfig(strategy=strategy, num_samples=3)
    policy = ConstantPolicy(drift_mps=0.3)
    together = run(config, policy, 0.02, rollouts=(0, 1, 2))[1]
    alone = run(config, policy, 0.02, rollouts=(1,))[1]
    np.testing.assert_array_equal(together.records[1].T_world_rig, alone.records[0].T_world_rig)
    np.testing.assert_array_equal(together.steps[40].guided.targets[1], alone.steps[40].guided.targets[0])


def test_errors_start_at_zero_and_are_smooth_and_seeded():
    errors = SmoothErrors([5, 6], (1.5, 0.8), 4_000_000)
    course = np.concatenate([errors.ahead(t)[:, :1] for t in range(0, 60_000_000, 100_000)], axis=1)
    assert np.abs(course[:, 0]).max() < 0.01
    assert np.abs(np.diff(course, axis=1)).max() < 0.35
    assert course[..., 1].std() == pytest.approx(0.6, abs=0.25)
    np.testing.assert_array_equal(
        SmoothErrors([6], (1.5, 0.8), 4_000_000).ahead(7_000_000), errors.ahead(7_000_000)[1:]
    )


def test_errors_are_along_and_to_the_left_of_the_heading():
    np.testing.assert_allclose(
        shifted(np.array([[10.0, 0.0, np.pi / 2]]), np.array([[[2.0, 1.0]]])), [[[9.0, 2.0, np.pi / 2]]], atol=1e-12
    )


def test_a_strategy_that_asks_a_policy_needs_one():
    with pytest.raises(InputError, match=r"guidance strategy 'road' asks a policy; pass --policy"):
        make_strategy(GuidanceConfig(), None, make_scene().ego_vehicle, [0])


def test_answers_are_in_the_rig_frame():
    world = simulator()
    world.reset([0, 1])
    answers = expert_answers(world)
    assert answers.shape == (2, 64, 3)
    np.testing.assert_allclose(answers[0, -1, :2], [8.0 * 6.4, 0.0], atol=0.3)
