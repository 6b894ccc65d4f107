import numpy as np
import pytest

from neural_sim.errors import InputError
from neural_sim.frames import planar_to_world
from neural_sim.simulation.ego_noise import EgoNoiseConfig, ego_pose_errors, estimated_pose
from neural_sim.simulation.plans import placed_plan

CONFIG = EgoNoiseConfig(position_sigma_m=0.2, yaw_sigma_rad=0.03, position_tau_s=2.0, yaw_tau_s=4.0)


@pytest.mark.parametrize("step_s", [0.1, 1 / 30])
def test_spread_and_memory_do_not_depend_on_the_step(step_s):
    errors = ego_pose_errors(CONFIG, range(4000), 31, step_s)
    # 4000 rollouts: the standard error of a standard deviation is 1.1 %.
    for k in (0, 30):
        np.testing.assert_allclose(errors[:, k].std(axis=0), [0.2, 0.2, 0.03], rtol=0.05)
    correlation = (errors[:, 0] * errors[:, 30]).mean(axis=0) / errors[:, 0].var(axis=0)
    np.testing.assert_allclose(correlation, np.exp(-30 * step_s / np.array([2.0, 2.0, 4.0])), atol=0.06)
    assert abs(np.corrcoef(errors[:, 0].T)[0, 1]) < 0.06


def test_each_rollout_has_its_own_stream():
    together = ego_pose_errors(CONFIG, [7, 8, 9], 50, 0.1)
    alone = ego_pose_errors(CONFIG, [8], 50, 0.1)
    assert np.array_equal(together[1], alone[0])
    assert not np.array_equal(together[0], together[1])
    assert np.array_equal(ego_pose_errors(CONFIG, [8], 20, 0.1)[0], alone[0, :20])


def test_switched_off_it_is_zero():
    assert not ego_pose_errors(EgoNoiseConfig(enabled=False), [1, 2], 5, 0.1).any()


def test_the_error_is_in_the_body_frame():
    found = estimated_pose(np.array([[10.0, 5.0, np.pi / 2]]), np.array([[1.0, 0.5, 0.1]]))
    np.testing.assert_allclose(found, [[9.5, 6.0, np.pi / 2 + 0.1]])


def test_a_plan_comes_back_to_the_true_world_whatever_the_estimate():
    """Mapping the plan of the estimated world by T_true * T_est^-1 is the same as placing it at the true pose."""
    rng = np.random.default_rng(0)
    true, plans = rng.normal(size=(3, 3)), rng.normal(size=(3, 64, 3))
    estimate = estimated_pose(true, rng.normal(size=(3, 3)))
    in_estimated_world = planar_to_world(plans, estimate[:, None])
    dx = in_estimated_world - estimate[:, None]
    turn = (true - estimate)[:, None, 2]
    x = true[:, None, 0] + np.cos(turn) * dx[..., 0] - np.sin(turn) * dx[..., 1]
    y = true[:, None, 1] + np.sin(turn) * dx[..., 0] + np.cos(turn) * dx[..., 1]
    placed = placed_plan(plans, true, 0)
    np.testing.assert_allclose(placed.x_m[:, 1:], x, atol=1e-12)
    np.testing.assert_allclose(placed.y_m[:, 1:], y, atol=1e-12)
    heading = in_estimated_world[..., 2] + turn - placed.yaw_rad[:, 1:]
    np.testing.assert_allclose(np.exp(1j * heading), 1.0, atol=1e-12)


def test_bad_settings_are_named():
    with pytest.raises(InputError, match=r"ego_noise.yaw_tau_s is 0"):
        EgoNoiseConfig(yaw_tau_s=0)
    with pytest.raises(InputError, match=r"ego_noise.position_sigma_m is -0.1"):
        EgoNoiseConfig(position_sigma_m=-0.1)
