import dataclasses
import json

import pytest
import torch
from vla_examples import SMALL, seeded, training_batch

from vla.errors import PolicyError
from vla.images import preprocess_images
from vla.model import build_policy
from vla.training_modes import (
    MODES,
    TRAINED_PARTS,
    TrainingModeConfig,
    apply_training_mode,
    merge_lora,
    parameter_groups,
    parameter_table,
    part_of,
)

RATES = {"vision": 1e-5, "language": 1e-4, "lora": 2e-4, "expert": 1e-3}


def train(policy, batch, steps=2):
    optimiser = torch.optim.AdamW(parameter_groups(policy, RATES), weight_decay=0.01)
    for step in range(steps):
        optimiser.zero_grad()
        policy.loss(batch, seeded(step)[0])["loss"].backward()
        optimiser.step()


@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_exactly_the_parameters_the_mode_names(mode):
    policy = build_policy(SMALL, seed=0)
    table = apply_training_mode(policy, TrainingModeConfig(mode))
    # A fresh adapter's second matrix is zero, which keeps the first from moving: after one step both have gradients.
    train(policy, training_batch(SMALL, 2), steps=2)
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and bool(p.grad.abs().max() > 0)}
    named = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert reached == named
    assert {part_of(policy, name) for name in named} == set(TRAINED_PARTS[mode])
    counts = {row.part: row for row in table.rows}
    assert {part for part, row in counts.items() if row.trained} == set(TRAINED_PARTS[mode])
    assert all(row.trained in (0, row.total) for row in table.rows)
    assert table.total.total == sum(p.numel() for p in policy.parameters())


@pytest.mark.parametrize("mode", ["freeze_vision", "freeze_backbone", "lora"])
def test_frozen_weights_and_vision_outputs_stay_byte_identical(mode):
    policy = build_policy(SMALL, seed=0)
    batch = training_batch(SMALL, 2)
    patches, grid = preprocess_images(torch.from_numpy(batch.images[SMALL.cameras[0]]), policy.backbone.image_settings)
    apply_training_mode(policy, TrainingModeConfig(mode))
    frozen = {name: p.detach().clone() for name, p in policy.named_parameters() if not p.requires_grad}
    trained = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}
    visual = policy.backbone.model.model.visual
    before = visual(patches, grid_thw=grid, return_dict=True)
    train(policy, batch, steps=3)
    after = visual(patches, grid_thw=grid, return_dict=True)
    assert torch.equal(before.pooler_output, after.pooler_output)
    assert all(torch.equal(a, b) for a, b in zip(before.deepstack_features, after.deepstack_features, strict=True))
    now = dict(policy.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert not any(torch.equal(now[name], value) for name, value in trained.items())


def test_expert_only_builds_no_graph_through_the_prompt():
    policy = build_policy(SMALL, seed=0)
    batch = training_batch(SMALL, 1)
    assert policy.encode(batch).keys[0].requires_grad
    apply_training_mode(policy, TrainingModeConfig("freeze_backbone"))
    assert not any(key.requires_grad for key in policy.encode(batch).keys)


def test_gradient_checkpointing_changes_no_gradient():
    batch = training_batch(SMALL, 2)
    gradients = []
    for enabled in (False, True):
        policy = build_policy(SMALL, seed=0).train()
        policy.backbone.set_gradient_checkpointing(enabled)
        apply_training_mode(policy, TrainingModeConfig("all"))
        policy.loss(batch, seeded(0)[0])["loss"].backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.requires_grad})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-6, rtol=1e-4)


def test_lora_starts_neutral_and_merges_into_the_same_policy():
    policy = build_policy(SMALL, seed=0).eval()
    batch = training_batch(SMALL, 2)
    plain = policy.sample(batch, 2, 1.0, seeded(0, 1)).poses
    table = apply_training_mode(policy, TrainingModeConfig("lora", lora_rank=4, lora_alpha=8))
    lora = next(row for row in table.rows if row.part == "lora")
    # Rank times (in + out) for k and v of four layers, q and o of the three that are read.
    assert lora.total == 4 * (4 * 2 * (128 + 64) + 3 * 2 * (128 + 128))
    assert torch.equal(policy.sample(batch, 2, 1.0, seeded(0, 1)).poses, plain)
    train(policy, batch)
    trained = policy.sample(batch, 2, 1.0, seeded(0, 1)).poses
    names = set(build_policy(SMALL, seed=0).state_dict())
    merge_lora(policy)
    assert set(policy.state_dict()) == names
    assert parameter_table(policy).rows[2].total == 0
    torch.testing.assert_close(policy.sample(batch, 2, 1.0, seeded(0, 1)).poses, trained, atol=2e-4, rtol=1e-5)


def test_lora_targets_can_be_chosen():
    policy = build_policy(SMALL, seed=0)
    apply_training_mode(policy, TrainingModeConfig("lora", lora_targets=("v_proj", "down_proj")))
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in policy.named_parameters() if ".lora_" in name}
    assert adapted == {"v_proj", "down_proj"}
    with pytest.raises(PolicyError, match="'gate' matches no linear layer"):
        apply_training_mode(build_policy(SMALL, seed=0), TrainingModeConfig("lora", lora_targets=("gate",)))
    with pytest.raises(PolicyError, match="already has adapters of rank 16"):
        apply_training_mode(policy, TrainingModeConfig("lora", lora_rank=2))


def test_groups_carry_their_rates_and_every_trained_parameter_once():
    policy = build_policy(SMALL, seed=0)
    apply_training_mode(policy, TrainingModeConfig("all"))
    groups = parameter_groups(policy, RATES)
    assert {group["name"]: group["lr"] for group in groups} == {k: v for k, v in RATES.items() if k != "lora"}
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in policy.parameters() if p.requires_grad)
    with pytest.raises(PolicyError, match="none for the trained groups vision"):
        parameter_groups(policy, {"language": 1.0, "expert": 1.0})
    with pytest.raises(PolicyError, match="unknown groups head"):
        parameter_groups(policy, {**RATES, "head": 1.0})


def test_the_table_prints_and_stores():
    policy = build_policy(dataclasses.replace(SMALL), seed=0)
    table = apply_training_mode(policy, TrainingModeConfig("freeze_vision"))
    stored = json.loads(json.dumps(table.to_json()))
    assert stored["vision"]["trained"] == 0
    assert stored["total"]["trained"] + stored["total"]["frozen"] == stored["total"]["total"]
    lines = str(table).splitlines()
    assert lines[0].split() == ["part", "parameters", "trained", "frozen"]
    assert f"{stored['expert']['trained']:,}" in next(line for line in lines if line.startswith("expert"))


def test_bad_modes_are_named():
    with pytest.raises(PolicyError, match="mode: found 'none', expected one of all, freeze_vision"):
        TrainingModeConfig("none")
    with pytest.raises(PolicyError, match="lora_rank: found 0"):
        TrainingModeConfig("lora", lora_rank=0)
