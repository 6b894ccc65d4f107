"""Tests that start training processes; each start costs seconds of imports."""

import json
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_fixtures import make_policy, write_shards

from neural_sim.errors import InputError
from pipelines.shards.reader import iterate_examples, stack_examples
from pipelines.training.config import TrainingConfig
from pipelines.training.log import read_log
from pipelines.training.state import read_latest
from pipelines.training.train import train
from vla.checkpoint import from_pretrained

CONFIG = TrainingConfig(
    steps=10, batch_size=4, micro_batch_size=2, learning_rate=3e-3, warmup_steps=2, zero_stage=2, num_processes=2,
    fit_action_statistics=True, save_every=2, log_every=1, keep=2,
)  # fmt: skip


class Inputs:
    """A base policy, shards, and the result of an unbroken run on two processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.policy = make_policy(root / "base")
        self.shards = write_shards(root / "shards", 12)

    def train(self, name: str, config: TrainingConfig = CONFIG) -> Path:
        return train(self.policy, [self.shards], self.root / name, config, seed=1, device="cpu")

    def loss_of(self, policy_folder: Path) -> float:
        """Loss on all examples with the same noise for every policy."""
        policy = from_pretrained(policy_folder)
        reference = from_pretrained(self.root / "unbroken")
        policy.statistics = reference.statistics
        with torch.no_grad():
            losses = policy.loss(stack_examples(list(iterate_examples(self.shards))), torch.Generator().manual_seed(0))
        return float(losses["loss"])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    inputs = Inputs(tmp_path_factory.mktemp("training"))
    inputs.train("unbroken")
    return inputs


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors") | load_file(folder / "policy_head.safetensors")


def worker_processes(work: Path) -> list[int]:
    """Process ids of the training processes of a run, without their launcher."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(work / "job.json").encode() in command and b"torch.distributed.run" not in command:
            found.append(int(process.name))
    return found


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_a_whole_checkpoint(inputs: Inputs) -> None:
    out = inputs.root / "unbroken"
    assert inputs.loss_of(out) < 0.9 * inputs.loss_of(inputs.policy)
    record = json.loads((out / "training.json").read_text())
    assert record["config"]["steps"] == 10
    assert record["parameters"]["vision"]["trained"] == 0
    assert record["parameters"]["expert"]["trained"] > 0
    entries = read_log(out / "log.jsonl")
    assert [entry["step"] for entry in entries] == list(range(1, 11))
    assert {"loss", "gradient_norm", "lr_expert", "samples_per_s", "data_wait_share"} <= set(entries[0])
    assert not (inputs.root / ".unbroken.training").exists()
    base = weights(inputs.policy)
    for name, trained in weights(out).items():
        if "visual" in name:
            assert torch.equal(trained, base[name]), name


@pytest.mark.slow
def test_one_process_ends_with_the_weights_of_two(inputs: Inputs) -> None:
    alone = inputs.train("alone", replace(CONFIG, num_processes=1, zero_stage=0))
    losses = [[entry["loss"] for entry in read_log(inputs.root / name / "log.jsonl")] for name in ("unbroken", "alone")]
    # Same examples, same noise, same micro-batches: only the order of float32 sums differs. AdamW divides by the
    # root of tiny second moments in its first steps, which enlarges that rounding in weights with tiny gradients.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    together = weights(inputs.root / "unbroken")
    for name, weight in weights(alone).items():
        torch.testing.assert_close(weight, together[name], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(inputs: Inputs) -> None:
    work = inputs.root / ".killed.training"
    errors: list[BaseException] = []

    def run() -> None:
        try:
            inputs.train("killed")
        except RuntimeError as error:
            errors.append(error)

    runner = threading.Thread(target=run)
    runner.start()
    while runner.is_alive() and len(read_log(work / "log.jsonl")) < 5:
        time.sleep(0.02)
    os.kill(worker_processes(work)[-1], signal.SIGKILL)
    runner.join()
    assert "run the same command again to resume" in str(errors[0])
    assert not (inputs.root / "killed").exists()
    latest = read_latest(work)
    assert latest is not None
    assert 2 <= latest["step"] < 10
    with pytest.raises(InputError, match=r"learning_rate: 0\.003 -> 0\.001"):
        inputs.train("killed", replace(CONFIG, learning_rate=1e-3))

    resumed = inputs.train("killed")
    unbroken = weights(inputs.root / "unbroken")
    for name, weight in weights(resumed).items():
        assert torch.equal(weight, unbroken[name]), name
    steps = [entry["step"] for entry in read_log(resumed / "log.jsonl")]
    assert steps == list(range(1, 11))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_under_torchrun(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = inputs.root / "broken"
    policy = from_pretrained(inputs.policy)
    with torch.no_grad():
        policy.expert.action_out_proj.weight.fill_(float("nan"))
    from vla.checkpoint import save_pretrained

    save_pretrained(policy, broken)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(InputError, match=r"loss is nan at step 1 on examples scene-r000-s\d{4}, scene-r000-s\d{4};"):
        train(broken, [inputs.shards], inputs.root / "never", CONFIG, seed=1, device="cpu")
    assert not (inputs.root / "never").exists()


@pytest.mark.slow
def test_adapters_in_bfloat16_with_split_weights_leave_frozen_weights_exact(inputs: Inputs) -> None:
    config = replace(CONFIG, mode="lora", lora_rank=4, zero_stage=3, bf16=True, steps=3)
    out = inputs.train("adapters", config)
    base, trained = weights(inputs.policy), weights(out)
    for name, weight in load_file(inputs.policy / "model.safetensors").items():
        assert torch.equal(trained[name], weight), name
    head = "expert.action_out_proj.weight"
    assert trained[head].dtype == torch.float32
    assert not torch.equal(trained[head], base[head])
    # The checkpoint has the float32 master weights, not their bfloat16 copies.
    assert not torch.equal(trained[head], trained[head].bfloat16().float())
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    assert any(name.endswith("lora_B.weight") and weight.any() for name, weight in adapter.items())
    assert from_pretrained(out).lora_config is not None
