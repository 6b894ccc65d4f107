import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from vla_examples import SMALL, seeded, training_batch

from vla.backbone import load_backbone
from vla.checkpoint import (
    HEAD_FILE,
    POLICY_FILE,
    describe_checkpoint,
    from_pretrained,
    policy_hash,
    read_policy_config,
    save_pretrained,
)
from vla.config import PolicyConfig
from vla.errors import PolicyError
from vla.model import build_policy
from vla.training_modes import TrainingModeConfig, apply_training_mode, merge_lora


def trained_policy(mode="all"):
    policy = build_policy(SMALL, seed=0)
    batch = training_batch(SMALL, 4)
    policy.fit_action_statistics(torch.from_numpy(batch.target), torch.from_numpy(batch.ego_history[:, -1, 3]))
    apply_training_mode(policy, TrainingModeConfig(mode, lora_rank=4))
    optimiser = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], 1e-3)
    for step in range(2):
        optimiser.zero_grad()
        policy.loss(batch, seeded(step)[0])["loss"].backward()
        optimiser.step()
    return policy.eval()


def plans(policy):
    return policy.sample(training_batch(SMALL, 2, navigation=["", "turn left"]), 3, 0.8, seeded(0, 1)).poses


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "policy"
    policy = trained_policy()
    save_pretrained(policy, folder)
    return folder, plans(policy)


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "policy")


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_loaded_policy_samples_the_same_plans(saved):
    folder, expected = saved
    policy = from_pretrained(folder)
    assert torch.equal(plans(policy), expected)
    assert policy.config == SMALL
    assert not policy.training
    assert sorted(path.name for path in folder.parent.iterdir()) == ["policy"]


def test_saving_again_replaces_the_folder_and_keeps_the_hash(saved, tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "leftover").write_text("x")
    save_pretrained(from_pretrained(saved[0]), folder)
    assert not (folder / "leftover").exists()
    assert policy_hash(folder) == policy_hash(saved[0])
    assert len(policy_hash(folder)) == 16


def test_adapters_are_saved_in_peft_format(tmp_path):
    policy = trained_policy("lora")
    expected = plans(policy)
    save_pretrained(policy, tmp_path / "adapted")
    loaded = from_pretrained(tmp_path / "adapted")
    assert torch.equal(plans(loaded), expected)
    assert loaded.lora_config is not None
    apply_training_mode(loaded, TrainingModeConfig("lora", lora_rank=4))
    peft = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(tmp_path / "adapted"), tmp_path / "adapted" / "adapter"
    )
    found = peft.base_model.model.model.language_model.layers[0].self_attn.k_proj.lora_A["default"].weight
    layer = policy.backbone.model.model.language_model.layers[0]
    assert torch.equal(found, layer.self_attn.k_proj.lora_A["default"].weight)
    merge_lora(policy)
    save_pretrained(policy, tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter").exists()
    torch.testing.assert_close(plans(from_pretrained(tmp_path / "merged")), expected, atol=2e-4, rtol=1e-5)


def test_a_local_folder_serves_as_backbone(saved):
    config = PolicyConfig(**{**SMALL.to_json(), "backbone": str(saved[0])})
    policy = build_policy(config, seed=5)
    expected = from_pretrained(saved[0])
    state = policy.backbone.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.backbone.state_dict().items())
    assert policy.sample(training_batch(SMALL, 1), 1, 1.0, seeded(0)).poses.shape == (1, 1, 64, 3)
    rows = policy._prompts.rows(training_batch(SMALL, 1))
    assert rows == expected._prompts.rows(training_batch(SMALL, 1))


def test_a_backbone_that_is_not_there_is_named():
    with pytest.raises(PolicyError, match="backbone /nowhere/model: cannot be loaded"):
        load_backbone(PolicyConfig(backbone="/nowhere/model"), seed=0)


@pytest.mark.parametrize("file", [HEAD_FILE, "model.safetensors"])
def test_missing_unexpected_and_misshapen_tensors_are_named(copy, file):
    name = {HEAD_FILE: "expert.norm.weight", "model.safetensors": "model.language_model.norm.weight"}[file]
    whole = load_file(copy / file)
    edit_tensors(copy / file, lambda tensors: tensors.pop(name))
    with pytest.raises(PolicyError, match=rf"missing tensors .*{name}"):
        from_pretrained(copy)
    save_file({**whole, "extra.weight": torch.zeros(2)}, copy / file, metadata={"format": "pt"})
    with pytest.raises(PolicyError, match=r"unexpected tensors .*extra\.weight"):
        from_pretrained(copy)
    save_file({**whole, name: torch.zeros(7)}, copy / file, metadata={"format": "pt"})
    with pytest.raises(PolicyError, match=rf"{name}"):
        from_pretrained(copy)


def test_a_damaged_adapter_is_named(tmp_path):
    save_pretrained(trained_policy("lora"), tmp_path / "p")
    path = tmp_path / "p" / "adapter" / "adapter_model.safetensors"
    name = sorted(load_file(path))[0]
    edit_tensors(path, lambda tensors: tensors.pop(name))
    with pytest.raises(PolicyError, match=f"missing tensors {name}"):
        from_pretrained(tmp_path / "p")


def test_other_versions_and_folders_are_refused(copy, tmp_path):
    description = json.loads((copy / POLICY_FILE).read_text())
    (copy / POLICY_FILE).write_text(json.dumps({**description, "format_version": 99}))
    with pytest.raises(PolicyError, match="found format_version 99, expected 1"):
        from_pretrained(copy)
    (copy / POLICY_FILE).write_text("{")
    with pytest.raises(PolicyError, match="not JSON"):
        read_policy_config(copy)
    (copy / POLICY_FILE).unlink()
    with pytest.raises(PolicyError, match=rf"{POLICY_FILE}: missing"):
        from_pretrained(copy)
    with pytest.raises(PolicyError, match="no such folder"):
        from_pretrained(tmp_path / "nothing")


def test_the_hash_changes_with_a_single_weight(copy, saved):
    edit_tensors(copy / HEAD_FILE, lambda tensors: tensors["expert.norm.weight"].mul_(1.001))
    assert policy_hash(copy) != policy_hash(saved[0])


def test_a_sound_checkpoint_is_described(saved):
    facts, problems = describe_checkpoint(saved[0])
    assert problems == []
    total = sum(p.numel() for p in from_pretrained(saved[0]).parameters())
    assert facts[0] == f"{total:,} parameters"
    assert policy_hash(saved[0]) in facts[1]
    assert ", ".join(SMALL.cameras) in facts[2]


def test_an_unsound_checkpoint_lists_its_problems(copy):
    edit_tensors(copy / HEAD_FILE, lambda tensors: tensors["expert.norm.weight"].fill_(float("nan")))
    (copy / "tokenizer.json").unlink()
    (copy / "model.safetensors").write_bytes(b"short")
    (copy / "action_statistics.json").write_text("{}")
    _, problems = describe_checkpoint(copy)
    text = "\n".join(problems)
    for expected in ("expert.norm.weight is not finite", "tokenizer.json: missing", "damaged", "action statistics"):
        assert expected in text
    with pytest.raises(PolicyError):
        from_pretrained(copy)
