import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file
from vla_examples import SMALL, seeded, training_batch

from vla.action_expert import fourier_frequencies
from vla.alpamayo import alpamayo_tokenizer, convert_alpamayo, rename
from vla.checkpoint import from_pretrained, save_pretrained
from vla.errors import PolicyError
from vla.model import build_policy

CONFIG = dataclasses.replace(SMALL, action_features="fourier", waypoints_per_token=1, expert_ffn=128)
STATISTICS = {"accel_mean": 0.03, "accel_std": 0.7, "curvature_mean": 0.0003, "curvature_std": 0.026}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A backbone folder, as `Qwen/Qwen3-VL-8B-Instruct` is for the real weights."""
    folder = tmp_path_factory.mktemp("base") / "backbone"
    save_pretrained(build_policy(SMALL, seed=0), folder)
    return folder


@pytest.fixture(scope="module")
def config(base):
    return dataclasses.replace(CONFIG, backbone=str(base))


@pytest.fixture(scope="module")
def source(base):
    """Tensors under the names of the public code: 11 a layer, the projections, frequencies and statistics."""
    rows = len(alpamayo_tokenizer(str(base)))
    expert = build_policy(CONFIG, seed=3)
    random = torch.Generator().manual_seed(7)
    tensors = {}
    for name, value in expert.backbone.model.state_dict().items():
        shape = (rows, value.shape[1]) if name.endswith(("embed_tokens.weight", "lm_head.weight")) else value.shape
        tensors[f"vlm.{name}"] = 0.1 * torch.randn(shape, generator=random)
    tensors["vlm.lm_head.weight"] = tensors["vlm.model.language_model.embed_tokens.weight"].clone()
    for name, value in expert.expert.state_dict().items():
        module, _, rest = name.partition(".")
        if module == "action_in_proj":
            index, kind = rest.split(".")
            public = f"action_in_proj.norm.{kind}" if index == "7" else f"action_in_proj.encoder.trunk.{rest}"
        else:
            public = name if module == "action_out_proj" else f"expert.{name}"
        tensors[public] = 0.1 * torch.randn(value.shape, generator=random)
    for place in ("sinus.0", "sinus.1", "timestep_fourier_encoder"):
        tensors[f"action_in_proj.{place}.freqs"] = torch.logspace(0, 2, 10)[None].bfloat16()
    return tensors | {f"action_space.{name}": torch.tensor(value) for name, value in STATISTICS.items()}


def write(folder, tensors):
    """Two shards and their index."""
    folder.mkdir()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: tensors[name].contiguous() for name in members}, folder / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_the_layout_has_the_public_number_of_tensors(source):
    outside = [name for name in source if not name.startswith("vlm.")]
    # R1 has 416 with 36 layers: 11 a layer, and 20 besides.
    assert len(outside) == 11 * 4 + 20
    assert source["action_in_proj.encoder.trunk.0.weight"].shape == (512, 60)
    assert source["action_in_proj.encoder.trunk.3.weight"].shape == (512, 512)


def test_every_tensor_is_copied_to_its_place(source, config, tmp_path):
    policy = convert_alpamayo(write(tmp_path / "r1", source), config)
    parameters = dict(policy.named_parameters())
    for name, tensor in source.items():
        if name.startswith("action_space.") or name.endswith(".freqs") or name == "vlm.lm_head.weight":
            continue
        assert torch.equal(parameters[rename(name)], tensor), name
    assert policy.statistics.to_json()["std"] == pytest.approx([0.7, 0.026])
    batch = training_batch(SMALL, 1)
    plans = policy.sample(batch, 2, 1.0, seeded(0)).poses
    save_pretrained(policy, tmp_path / "converted")
    assert torch.equal(from_pretrained(tmp_path / "converted").sample(batch, 2, 1.0, seeded(0)).poses, plans)


def test_the_tokens_have_the_public_order(base):
    vocabulary = alpamayo_tokenizer(str(base)).get_vocab()
    assert vocabulary["<i3999>"] - vocabulary["<i0>"] == 3999


def test_frequencies_are_those_of_the_public_code():
    torch.testing.assert_close(fourier_frequencies(), torch.logspace(0, 2, 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("expert.norm.weight"), "missing tensors for expert.norm.weight"),
        (lambda t: t.update({"vlm.model.extra.weight": torch.ones(1)}), "unexpected tensors vlm.model.extra.weight"),
        (lambda t: t.update({"decoder.weight": torch.ones(1)}), "tensor decoder.weight is not of the Alpamayo layout"),
        (
            lambda t: t.update({"expert.layers.0.mlp.up_proj.weight": torch.ones(3, 128)}),
            r"up_proj.weight has shape \(3, 128\), expected \(128, 128\)",
        ),
        (lambda t: t.pop("action_space.accel_std"), "missing tensors action_space.accel_std"),
        (
            lambda t: t.update({"action_in_proj.sinus.0.freqs": torch.ones(1, 10)}),
            r"sinus.0.freqs is \[1.0, 1.0",
        ),
    ],
)
def test_what_does_not_fit_is_named(source, config, tmp_path, change, message):
    tensors = dict(source)
    change(tensors)
    with pytest.raises(PolicyError, match=message):
        convert_alpamayo(write(tmp_path / "r1", tensors), config)


def test_broken_folders_are_named(source, config, tmp_path):
    with pytest.raises(PolicyError, match=r"found neither model\.safetensors\.index\.json nor model\.safetensors"):
        convert_alpamayo(tmp_path, config)
    folder = write(tmp_path / "r1", source)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"cut")
    with pytest.raises(PolicyError, match=r"model-00002-of-00002.safetensors: damaged"):
        convert_alpamayo(folder, config)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(PolicyError, match=r"names 'model-00002-of-00002\.safetensors', which is no file"):
        convert_alpamayo(folder, config)
    with pytest.raises(PolicyError, match="expected action_features fourier"):
        convert_alpamayo(folder, SMALL)
