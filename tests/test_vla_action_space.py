import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vla_examples import arc_plan

from vla.action_space import (
    CURVATURE_BOUND_PER_M,
    ActionStatistics,
    actions_to_plan,
    invert_plan,
    plan_to_actions,
    projection_error_m,
)
from vla.errors import PolicyError
from vla.plan_projection import _jacobians, _positions, _states

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def fine_plan(speed_at, curvature_at, substeps=50):
    """Midpoint integration with small steps: independent of the code under test."""
    x = y = yaw = 0.0
    step = 0.1 / substeps
    rows = []
    for index in range(64 * substeps):
        time = (index + 0.5) * step
        speed, curvature = speed_at(time), curvature_at(time)
        middle = yaw + 0.5 * speed * curvature * step
        x, y = x + speed * math.cos(middle) * step, y + speed * math.sin(middle) * step
        yaw += speed * curvature * step
        if (index + 1) % substeps == 0:
            rows.append((x, y, yaw))
    return torch.tensor([rows], dtype=torch.float64)


CASES = {
    "straight": (lambda t: 10.0, lambda t: 0.0),
    "weaving": (lambda t: 10.0, lambda t: 0.05 * math.sin(t)),
    "brake to standstill": (lambda t: max(10.0 - 3.0 * t, 0.0), lambda t: 0.0),
    "slow and tight": (lambda t: 2.0, lambda t: 0.2),
    "start from standstill": (lambda t: 1.5 * t, lambda t: 0.02),
    "standstill": (lambda t: 0.0, lambda t: 0.0),
    "u-turn": (lambda t: 4.0, lambda t: 0.15),
}


def round_trip_ade_m(plan, v0, invert=plan_to_actions):
    reached = actions_to_plan(invert(plan, v0), v0)
    return (reached - plan)[..., :2].norm(dim=-1).mean().item()


def test_integration_by_hand():
    actions = torch.zeros(1, 64, 2)
    actions[0, 0] = torch.tensor([1.0, 0.1])
    plan = actions_to_plan(actions, torch.tensor([10.0]))
    yaw = 0.1 * (10.0 * 0.1 + 1.0 * 0.005)
    x = 0.05 * (10.0 + 10.1 * math.cos(yaw))
    y = 0.05 * 10.1 * math.sin(yaw)
    assert plan[0, 0].tolist() == pytest.approx([x, y, yaw], abs=1e-6)
    assert plan[0, 1].tolist() == pytest.approx([x + 1.01 * math.cos(yaw), y + 1.01 * math.sin(yaw), yaw], abs=1e-6)


def test_constant_acceleration_in_a_straight_line_is_exact():
    actions = torch.zeros(1, 64, 2, dtype=torch.float64)
    actions[..., 0] = 1.5
    plan = actions_to_plan(actions, torch.tensor([3.0], dtype=torch.float64))
    times = 0.1 * torch.arange(1, 65, dtype=torch.float64)
    torch.testing.assert_close(plan[0, :, 0], 3.0 * times + 0.75 * times**2)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_of_analytic_drives_is_below_a_centimetre(name, dtype):
    speed_at, curvature_at = CASES[name]
    plan = fine_plan(speed_at, curvature_at).to(dtype)
    assert round_trip_ade_m(plan, torch.tensor([speed_at(0.0)], dtype=dtype)) < 0.01


# Figures of the published inversion for the same cases, m.
@pytest.mark.parametrize(("name", "published_m"), [("straight", 0.0008), ("weaving", 0.005), ("slow and tight", 0.013)])
def test_the_unrefined_inversion_has_the_published_error(name, published_m):
    speed_at, curvature_at = CASES[name]
    plan = fine_plan(speed_at, curvature_at)
    found = round_trip_ade_m(plan, torch.tensor([speed_at(0.0)], dtype=torch.float64), invert_plan)
    assert found == pytest.approx(published_m, rel=0.1)


@settings(max_examples=25, deadline=None)
@given(
    v0=st.floats(0.0, 25.0),
    start=st.floats(-3.0, 2.0),
    end=st.floats(-3.0, 2.0),
    bend=st.floats(-0.15, 0.15),
    swing=st.floats(-0.05, 0.05),
)
def test_round_trip_of_smooth_drives(v0, start, end, bend, swing):
    times = torch.linspace(0.0, 6.3, 64, dtype=torch.float64)
    acceleration = start + (end - start) * times / 6.3
    slowest = v0 + 0.1 * acceleration.cumsum(0).min()
    acceleration = torch.where(slowest < 0, torch.zeros_like(acceleration), acceleration)
    # Lateral acceleration stays below 10 m/s^2, as on a road.
    limit = 10.0 / max(v0 + 13.0, 1.0) ** 2
    curvature = torch.clamp(bend + swing * torch.sin(times), -max(limit, 0.02), max(limit, 0.02))
    speed = torch.tensor([v0], dtype=torch.float64)
    plan = actions_to_plan(torch.stack([acceleration, curvature], dim=-1)[None], speed)
    assert round_trip_ade_m(plan, speed) < 0.02


def test_batches_are_inverted_row_by_row():
    plans = torch.from_numpy(arc_plan([4.0, 8.0, 12.0], [0.03, -0.02, 0.01]))
    v0 = torch.tensor([4.0, 8.0, 12.0])
    together = plan_to_actions(plans, v0)
    for row in range(3):
        alone = plan_to_actions(plans[row : row + 1], v0[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=0)
    assert plan_to_actions(plans[:0], v0[:0]).shape == (0, 64, 2)


def test_yaw_beyond_pi_is_unwrapped():
    plan = fine_plan(*CASES["u-turn"])
    wrapped = plan.clone()
    wrapped[..., 2] = torch.atan2(plan[..., 2].sin(), plan[..., 2].cos())
    assert (wrapped[..., 2] - plan[..., 2]).abs().max() > 1
    v0 = torch.tensor([4.0], dtype=torch.float64)
    torch.testing.assert_close(plan_to_actions(wrapped, v0), plan_to_actions(plan, v0))


def test_bounds_are_enforced_and_what_they_cost_is_reported():
    spin = torch.from_numpy(arc_plan([2.0], [1.0])).double()
    v0 = torch.tensor([2.0], dtype=torch.float64)
    actions = plan_to_actions(spin, v0)
    assert actions[..., 1].abs().max() <= CURVATURE_BOUND_PER_M
    assert projection_error_m(spin, actions, v0).item() > 0.3
    beyond = torch.full((1, 64, 2), 50.0)
    within = torch.tensor([9.8, 0.33]).expand(1, 64, 2)
    torch.testing.assert_close(actions_to_plan(beyond, torch.ones(1)), actions_to_plan(within, torch.ones(1)))


def test_a_plan_with_a_tilted_yaw_is_met_in_position():
    plan = fine_plan(*CASES["weaving"])
    tilt = 0.02
    turn = torch.tensor([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]], dtype=torch.float64)
    plan[..., :2] = plan[..., :2] @ turn
    v0 = torch.tensor([10.0], dtype=torch.float64)
    assert round_trip_ade_m(plan, v0, invert_plan) > 0.3
    assert round_trip_ade_m(plan, v0) < 0.02


@pytest.mark.parametrize("size_m", [1e2, 1e4, 1e6])
def test_absurd_plans_become_bounded_actions(size_m):
    plan = size_m * torch.randn(3, 64, 3, generator=torch.Generator().manual_seed(0))
    actions = plan_to_actions(plan, torch.tensor([0.0, 10.0, size_m]))
    assert actions.isfinite().all()
    assert actions[..., 0].abs().max() <= 9.8
    assert projection_error_m(plan, actions, torch.tensor([0.0, 10.0, size_m])).min() > 1.0


def test_jacobians_equal_automatic_derivatives():
    random = torch.Generator().manual_seed(0)
    actions = torch.randn(2, 64, 2, generator=random, dtype=torch.float64) * torch.tensor([1.0, 0.03])
    v0 = torch.tensor([6.0, 0.5], dtype=torch.float64)

    def outputs(unknowns):
        speed, _, heading = _states(unknowns.view(-1, 2, 64).mT, v0)
        return torch.cat([_positions(speed, heading).flatten(1), heading[:, 1:]], dim=1).sum(0)

    automatic = torch.autograd.functional.jacobian(outputs, actions.mT.flatten(1)).permute(1, 0, 2)
    speed, arc_m, heading = _states(actions, v0)
    by_hand = torch.cat(_jacobians(actions[..., 1], speed, arc_m, heading), dim=1)
    torch.testing.assert_close(by_hand, automatic)


def test_statistics_normalise_to_mean_zero_and_spread_one():
    actions = torch.randn(50, 64, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.05]) + 0.5
    statistics = ActionStatistics.fit(actions)
    normalised = statistics.normalise(actions)
    assert normalised.mean(dim=(0, 1)).abs().max() < 1e-4
    torch.testing.assert_close(normalised.std(dim=(0, 1), correction=0), torch.ones(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(statistics.denormalise(normalised), actions, atol=1e-5, rtol=0)
    assert ActionStatistics.from_json(statistics.to_json()) == statistics


def test_statistics_of_a_straight_road_keep_a_floor():
    assert ActionStatistics.fit(torch.zeros(3, 64, 2)).std.tolist() == pytest.approx([0.05, 1e-3])


def test_unusable_statistics_are_refused():
    with pytest.raises(PolicyError, match="finite actions"):
        ActionStatistics.fit(torch.full((1, 64, 2), math.nan))
    with pytest.raises(PolicyError, match="expected mean and std of two values"):
        ActionStatistics.from_json({"mean": [0.0, 0.0]})
    with pytest.raises(PolicyError, match="two positive values"):
        ActionStatistics.from_json({"mean": [0.0, 0.0], "std": [1.0, 0.0]})


def kitti_windows(lever_arm_m):
    """Plans and start speeds along the KITTI odometry log, camera moved `lever_arm_m` back to the rear axle."""
    from neural_sim.trajectory import Trajectory

    folder = SHARED_DATA / "kitti_odometry"
    camera = np.loadtxt(folder / "poses" / "00.txt").reshape(-1, 3, 4)
    times_us = np.rint(np.loadtxt(folder / "sequences" / "00" / "times.txt")[: len(camera)] * 1e6).astype(np.int64)
    rig_from_camera = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    poses = np.tile(np.eye(4), (len(camera), 1, 1))
    poses[:, :3, :3] = rig_from_camera @ camera[:, :, :3] @ rig_from_camera.T
    poses[:, :3, 3] = camera[:, :, 3] @ rig_from_camera.T - poses[:, :3, 0] * lever_arm_m
    log = Trajectory(times_us, poses)
    now_us = np.arange(log.start_us + 200_000, log.end_us - 6_500_000, 250_000)
    planar = log.planar_at((now_us[:, None] + 100_000 * np.arange(65)).ravel()).reshape(-1, 65, 3)
    yaw = planar[:, :1, 2]
    moved = planar[:, 1:, :2] - planar[:, :1, :2]
    local = np.stack(
        [
            np.cos(yaw) * moved[..., 0] + np.sin(yaw) * moved[..., 1],
            -np.sin(yaw) * moved[..., 0] + np.cos(yaw) * moved[..., 1],
            planar[:, 1:, 2] - yaw,
        ],
        axis=-1,
    )
    return torch.from_numpy(local), torch.from_numpy(log.speed_mps_at(now_us))


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs the shared drives")
@pytest.mark.parametrize("name", ["0061", "0103", "0553", "0655", "1077", "argoverse2"])
def test_real_logs_in_traffic_round_trip_below_two_centimetres(name, tmp_path):
    from neural_sim.clips.options import IngestOptions
    from neural_sim.clips.registry import ingest
    from pipelines.training.clip_examples import ego_future

    dataset, sequence = ("argoverse2", "") if name == "argoverse2" else ("scenarionet", name)
    log = ingest(dataset, IngestOptions(root=SHARED_DATA / dataset, sequence=sequence), tmp_path / "clip").ego
    now_us = np.arange(log.start_us, log.end_us - 6_400_000, 500_000)
    plans = torch.from_numpy(np.stack([ego_future(log, int(t_us)) for t_us in now_us])).double()
    v0 = torch.from_numpy(log.speed_mps_at(now_us)).double()
    error_m = projection_error_m(plans, plan_to_actions(plans, v0), v0)
    assert error_m.mean() < 0.02, (name, error_m.mean(), v0)


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs the shared drives")
def test_real_drive_round_trip_is_below_two_centimetres():
    plans, v0 = kitti_windows(lever_arm_m=1.35)
    assert len(plans) > 40
    actions = plan_to_actions(plans, v0)
    error_m = projection_error_m(plans, actions, v0)
    assert error_m.mean() < 0.01
    assert error_m.max() < 0.02
    # Accelerations stay those of a car, not of the noise in the poses.
    assert actions[..., 0].abs().max() < 5.0
    # The log's yaw and direction of travel differ by degrees: the plain inversion drifts off it.
    assert projection_error_m(plans, invert_plan(plans, v0), v0).mean() > 0.1
