"""Saving, resuming and stopping, with one training process inside the test: no launcher, no imports per run."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_fixtures import alone_under_torchrun, make_policy, weights, write_shards

from neural_sim.errors import InputError
from pipelines.training import worker
from pipelines.training.checkpoints import BestCheckpoint, mark_best, read_best
from pipelines.training.config import TrainingConfig
from pipelines.training.log import read_log
from pipelines.training.state import newest_state
from pipelines.training.train import train
from vla.checkpoint import from_pretrained, save_pretrained

CONFIG = TrainingConfig(
    steps=6, batch_size=4, micro_batch_size=2, learning_rate=3e-3, warmup_steps=2, zero_stage=1,
    fit_action_statistics=True, save_every=2, log_every=1, keep=2, wandb_project="",
)  # fmt: skip


class Stopped(Exception):
    """Stands for a kill."""


class Inputs:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.policy = make_policy(root / "base")
        self.shards = write_shards(root / "shards", 12)

    def train(self, name: str, config: TrainingConfig = CONFIG) -> Path:
        return train(self.policy, [self.shards], self.root / name, config, seed=1, device="cpu")

    def train_and_stop(self, name: str, config: TrainingConfig, step: int, patch: pytest.MonkeyPatch) -> None:
        """Stop in the middle of `step` (from 1)."""

        def stopping(job, engine, batches, at, heartbeat, run=worker._run_step):
            if at + 1 == step:
                raise Stopped
            return run(job, engine, batches, at, heartbeat)

        with patch.context() as here:
            here.setattr(worker, "_run_step", stopping)
            with pytest.raises(Stopped):
                self.train(name, config)


@pytest.fixture(autouse=True)
def _launched(monkeypatch: pytest.MonkeyPatch) -> None:
    alone_under_torchrun(monkeypatch)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    inputs = Inputs(tmp_path_factory.mktemp("training"))
    with pytest.MonkeyPatch.context() as patch:
        alone_under_torchrun(patch)
        inputs.train("unbroken")
    return inputs


def assert_equal_weights(found: Path, expected: Path) -> None:
    expected_weights = weights(expected)
    for name, weight in weights(found).items():
        assert torch.equal(weight, expected_weights[name]), name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_stopped_run_ends_with_the_bits_of_an_unbroken_one(
    inputs: Inputs, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, zero_stage=stage)
    inputs.train_and_stop(f"stopped_{stage}", config, 6, monkeypatch)
    state = newest_state(inputs.root / f".stopped_{stage}.training")
    assert state is not None
    assert state["step"] == 4
    resumed = inputs.train(f"stopped_{stage}", config)
    # Stages 0 and 3 sum the norm of the gradient in another order, so they are compared with themselves.
    assert_equal_weights(resumed, inputs.root / "unbroken" if stage in (1, 2) else inputs.train(f"own_{stage}", config))
    assert [entry["step"] for entry in read_log(resumed / "log.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("before", "after"), [(3, 0), (0, 2)])
def test_a_state_moves_to_another_zero_stage_and_says_so(
    inputs: Inputs, before: int, after: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"moved_{before}_{after}"
    inputs.train_and_stop(name, replace(CONFIG, zero_stage=before), 5, monkeypatch)
    with caplog.at_level(logging.INFO, "roadloop"):
        resumed = inputs.train(name, replace(CONFIG, zero_stage=after, gradient_checkpointing=True))
    assert f"resuming step 4 with zero_stage: {before} -> {after}; gradient_checkpointing: False -> True" in caplog.text
    expected = weights(inputs.root / "unbroken")
    for key, weight in weights(resumed).items():
        torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-3)


@pytest.mark.parametrize("stage", [1, 3])
def test_bfloat16_resumes_from_exact_weights(inputs: Inputs, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, zero_stage=stage, bf16=True, mode="lora", lora_rank=4)
    unbroken = inputs.train(f"bf16_{stage}", config)
    inputs.train_and_stop(f"bf16_stopped_{stage}", config, 4, monkeypatch)
    resumed = inputs.train(f"bf16_stopped_{stage}", config)
    assert_equal_weights(resumed, unbroken)
    head = weights(resumed)["expert.action_out_proj.weight"]
    assert not torch.equal(head, head.bfloat16().float())
    adapter = "adapter/adapter_model.safetensors"
    expected = load_file(unbroken / adapter)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(resumed / adapter).items())


@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "all")])
def test_offloading_changes_nothing(inputs: Inputs, stage: int, offload: str) -> None:
    config = replace(CONFIG, zero_stage=stage, offload=offload)
    expected = weights(inputs.root / "unbroken")
    for name, weight in weights(inputs.train(f"offload_{stage}", config)).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-3)


def test_checkpoints_on_the_way_are_policies(inputs: Inputs) -> None:
    steps = inputs.root / "unbroken.steps"
    assert sorted(path.name for path in steps.iterdir()) == ["best.json", "step_00000002", "step_00000004"]
    best = read_best(steps)
    losses = [entry["loss"] for entry in read_log(inputs.root / "unbroken" / "log.jsonl")]
    assert best is not None
    assert (best.step, best.by) == (4, "loss")
    assert best.value == pytest.approx((losses[2] + losses[3]) / 2)
    early = from_pretrained(steps / "step_00000002")
    final = from_pretrained(inputs.root / "unbroken")
    assert not torch.equal(early.expert.action_out_proj.weight, final.expert.action_out_proj.weight)
    assert early.statistics.to_json() == final.statistics.to_json()


def test_the_best_by_an_evaluation_is_kept(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, keep=1, save_every=1)
    inputs.train_and_stop("judged", config, 3, monkeypatch)
    steps = inputs.root / "judged.steps"
    mark_best(steps, BestCheckpoint(1, "driving_score", 0.6))
    shutil.copytree(steps / "step_00000002", steps / "step_00000001", dirs_exist_ok=True)
    inputs.train("judged", config)
    assert sorted(path.name for path in steps.iterdir()) == ["best.json", "step_00000001", "step_00000005"]
    assert read_best(steps) == BestCheckpoint(1, "driving_score", 0.6)


def test_a_resume_with_another_configuration_shows_the_difference(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs.train_and_stop("changed", CONFIG, 3, monkeypatch)
    with pytest.raises(InputError, match=r"stopped after step 2 .*\(learning_rate: 0\.003 -> 0\.001\); restore these"):
        inputs.train("changed", replace(CONFIG, learning_rate=1e-3))
    assert newest_state(inputs.root / ".changed.training") is not None


def test_a_damaged_state_is_named(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs.train_and_stop("damaged", CONFIG, 5, monkeypatch)
    path = inputs.root / ".damaged.training" / "state" / "step_00000004" / "exp_avg.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"exp_avg\.safetensors: damaged .* delete .* to resume from the state before"):
        inputs.train("damaged")
    shutil.rmtree(path.parent)
    assert_equal_weights(inputs.train("damaged"), inputs.root / "unbroken")


def test_a_loss_that_is_not_finite_names_the_examples_and_keeps_the_checkpoint(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = inputs.root / "broken"
    policy = from_pretrained(inputs.policy)
    with torch.no_grad():
        policy.expert.action_out_proj.weight.fill_(float("nan"))
    save_pretrained(policy, broken)
    with pytest.raises(InputError, match=r"loss is nan at step 1 on examples scene-r000-s\d{4}, scene-r000-s\d{4};"):
        train(broken, [inputs.shards], inputs.root / "never", CONFIG, seed=1, device="cpu")
    assert not (inputs.root / "never").exists()

    def exploding(job, engine, batches, at, heartbeat, run=worker._run_step):
        if at == 3:
            with torch.no_grad():
                engine.policy.expert.action_out_proj.bias.fill_(float("inf"))
        return run(job, engine, batches, at, heartbeat)

    with monkeypatch.context() as here:
        here.setattr(worker, "_run_step", exploding)
        with pytest.raises(InputError, match=r"is (inf|nan) at step 4 on examples .* the last checkpoint is untouched"):
            inputs.train("exploded")
    state = newest_state(inputs.root / ".exploded.training")
    assert state is not None
    assert state["step"] == 2
    assert_equal_weights(inputs.train("exploded"), inputs.root / "unbroken")


def test_too_little_disk_is_refused_before_the_first_step(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(inputs.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000_000))
    with pytest.raises(InputError, match=r"0\.01 GB free, but 2 checkpoints, the best and the result need 0\.\d\d GB"):
        inputs.train("full")
    assert not (inputs.root / "full.steps").exists()


def test_a_disk_that_fills_up_keeps_the_checkpoint_before(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.training import state

    def full(tensors, path, write=state.save_file):
        if "step_00000004" in str(path) and path.name.startswith("exp_avg_sq"):
            raise OSError(28, os.strerror(28))
        write(tensors, path)

    with monkeypatch.context() as here:
        here.setattr(state, "save_file", full)
        with pytest.raises(InputError, match="disk is full while writing step 4; the checkpoint before is untouched"):
            inputs.train("filling")
    folder = inputs.root / ".filling.training" / "state"
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000002"]
    assert_equal_weights(inputs.train("filling"), inputs.root / "unbroken")


def test_weights_of_examples_count_in_the_loss(inputs: Inputs) -> None:
    config = replace(CONFIG, steps=1, warmup_steps=0)
    ignored = replace(config, weighting=replace(config.weighting, recovery_weight=0.0))
    plain, weighted = (inputs.train(name, value) for name, value in (("plain", config), ("ignored", ignored)))
    records = [json.loads((folder / "training.json").read_text()) for folder in (plain, weighted)]
    assert records[1]["job"]["weighting"]["recovery_weight"] == 0.0
    assert records[0]["loss"]["first"] != records[1]["loss"]["first"]


def test_log_has_the_figures(inputs: Inputs) -> None:
    entry = read_log(inputs.root / "unbroken" / "log.jsonl")[-1]
    expected = {"step", "loss", "projection_error_m", "gradient_norm", "lr_language", "lr_expert", "samples_per_s"}
    assert expected | {"tokens_per_s", "peak_memory_gb", "data_wait_share"} == set(entry)
    assert entry["tokens_per_s"] > 40 * entry["samples_per_s"]
    assert 0.1 < entry["peak_memory_gb"] < 30
