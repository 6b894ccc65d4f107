import dataclasses

import numpy as np
import pytest
import torch
from vla_examples import SMALL, rows_of, seeded, training_batch

from vla.checkpoint import HEAD_FILE, describe_checkpoint, from_pretrained, policy_hash, save_pretrained
from vla.errors import PolicyError
from vla.model import build_policy
from vla.open_loop import box_corners, open_loop_errors
from vla.regressor import RegressorPolicy
from vla.training_modes import TrainingModeConfig, apply_training_mode, merge_lora, parameter_groups

REGRESSOR = dataclasses.replace(SMALL, backbone="regressor")


@pytest.fixture(scope="module")
def regressor():
    policy = build_policy(REGRESSOR, seed=0)
    assert isinstance(policy, RegressorPolicy)
    return policy.eval()


def test_the_regressor_gives_one_plan_k_times(regressor):
    batch = training_batch(REGRESSOR, 3)
    poses = regressor.sample(batch, 4, 0.8, seeded(0, 1, 2)).poses
    assert poses.shape == (3, 4, 64, 3)
    assert torch.equal(poses[:, 1:], poses[:, :1].expand(-1, 3, -1, -1))
    alone = regressor.sample(rows_of(batch, [2]), 1, 0.8, seeded(9)).poses
    torch.testing.assert_close(alone, poses[2:, :1], atol=1e-4, rtol=1e-5)
    assert (poses[0, 0] - poses[1, 0]).abs().max() > 1e-3


def test_the_regressor_reads_images_and_history(regressor):
    batch = training_batch(REGRESSOR, 2)
    black = {camera: np.zeros_like(images) for camera, images in batch.images.items()}
    plan = regressor.sample(batch, 1, 1.0, seeded(0, 1)).poses
    assert not torch.equal(regressor.sample(dataclasses.replace(batch, images=black), 1, 1.0, seeded(0, 1)).poses, plan)
    faster = batch.ego_history * np.float32(1.1)
    changed = regressor.sample(dataclasses.replace(batch, ego_history=faster), 1, 1.0, seeded(0, 1)).poses
    assert not torch.equal(changed, plan)


def test_the_regressor_learns_what_only_the_images_tell():
    batch = training_batch(REGRESSOR, 8, seed=1, speed_mps=8.0)
    policy = build_policy(REGRESSOR, seed=0)
    policy.fit_action_statistics(torch.from_numpy(batch.target), torch.full((8,), 8.0))
    before = policy.open_loop_metrics(batch, seeded(*range(8)), num_samples=1)
    optimiser = torch.optim.AdamW(policy.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        policy(batch, seeded(0)[0])["loss"].backward()
        optimiser.step()
    after = policy.open_loop_metrics(batch, seeded(*range(8)), num_samples=1)
    assert after["ade_6.4s_m"] < 0.1 * before["ade_6.4s_m"]


def test_the_regressor_is_saved_and_read_back_strictly(regressor, tmp_path):
    batch = training_batch(REGRESSOR, 2)
    save_pretrained(regressor, tmp_path / "p")
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "action_statistics.json", HEAD_FILE, "roadloop_policy.json"
    ]  # fmt: skip
    loaded = from_pretrained(tmp_path / "p")
    assert isinstance(loaded, RegressorPolicy)
    expected = regressor.sample(batch, 1, 1.0, seeded(0, 1)).poses
    assert torch.equal(loaded.sample(batch, 1, 1.0, seeded(0, 1)).poses, expected)
    facts, problems = describe_checkpoint(tmp_path / "p")
    assert problems == []
    assert policy_hash(tmp_path / "p") in facts[1]
    regressor.vision.register_parameter("extra", torch.nn.Parameter(torch.ones(1)))
    save_pretrained(regressor, tmp_path / "q")
    del regressor.vision.extra
    with pytest.raises(PolicyError, match=r"unexpected tensors vision\.extra"):
        from_pretrained(tmp_path / "q")


def test_training_modes_of_the_regressor():
    policy = build_policy(REGRESSOR, seed=0)
    table = apply_training_mode(policy, TrainingModeConfig("freeze_vision"))
    counts = {row.part: (row.total, row.trained) for row in table.rows}
    assert counts["vision"][0] > 0
    assert counts["vision"][1] == 0
    assert counts["expert"][0] == counts["expert"][1] > 0
    assert counts["language"] == (0, 0)
    apply_training_mode(policy, TrainingModeConfig("all"))
    groups = parameter_groups(policy, {"vision": 1e-4, "expert": 1e-3})
    assert {group["name"] for group in groups} == {"vision", "expert"}
    merge_lora(policy)
    with pytest.raises(PolicyError, match="has no language model to adapt"):
        apply_training_mode(policy, TrainingModeConfig("lora"))
    with pytest.raises(PolicyError, match="the regressor has none"):
        policy.set_gradient_checkpointing(True)


def test_box_corners_by_hand():
    corners = box_corners(torch.tensor([10.0, 5.0, torch.pi / 2]))
    expected = torch.tensor([[9.0, 8.8], [11.0, 8.8], [11.0, 4.0], [9.0, 4.0]])
    torch.testing.assert_close(corners, expected, atol=1e-5, rtol=0)


def test_open_loop_errors_by_hand():
    target = torch.zeros(1, 64, 3)
    poses = torch.zeros(1, 2, 64, 3)
    poses[0, 0, :, 0] = 1.0
    poses[0, 1, :20, 1] = 0.5
    poses[0, 1, 20:, 1] = 4.0
    errors = open_loop_errors(poses, target)
    assert errors["ade_2s_m"] == pytest.approx(0.75)
    assert errors["min_ade_2s_m"] == pytest.approx(0.5)
    assert errors["fde_6.4s_m"] == pytest.approx(2.5)
    assert errors["min_fde_6.4s_m"] == pytest.approx(1.0)
    assert errors["min_ade_6.4s_m"] == pytest.approx(1.0)
    assert errors["corner_0.5s_m"] == pytest.approx(0.5)
    assert errors["miss_rate_6.4s"] == 0.0


def test_a_turned_box_has_corner_distance_without_displacement():
    target = torch.zeros(2, 64, 3)
    poses = torch.zeros(2, 1, 64, 3)
    poses[..., 2] = 0.1
    poses[1, :, -1, 0] = 2.5
    errors = open_loop_errors(poses, target)
    assert errors["ade_1s_m"] == 0.0
    # Chord of each corner about the rear axle: 2 sin(0.05) times its distance, (3.8, 1) and (-1, 1) m from it.
    chord = 2 * np.sin(0.05) * (np.hypot(3.8, 1.0) + np.hypot(1.0, 1.0)) / 2
    assert errors["corner_1s_m"] == pytest.approx(chord, rel=1e-5)
    assert errors["miss_rate_6.4s"] == 0.5
    assert errors["miss_rate_5s"] == 0.0
