"""Tests that start training processes; each start costs seconds of imports, so all but three starts are slow."""

import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_fixtures import alone_under_torchrun, make_policy, weights, write_shards

from pipelines.shards.reader import iterate_examples, stack_examples
from pipelines.training.config import TrainingConfig
from pipelines.training.log import read_log
from pipelines.training.state import newest_state
from pipelines.training.train import preflight, train
from vla.checkpoint import from_pretrained

CONFIG = TrainingConfig(
    steps=10, batch_size=4, micro_batch_size=2, learning_rate=3e-3, warmup_steps=2, zero_stage=2, num_processes=2,
    fit_action_statistics=True, save_every=2, log_every=1, keep=2, wandb_project="",
)  # fmt: skip
FLAGS = (
    "--finetune.steps=10", "--finetune.batch-size=4", "--finetune.micro-batch-size=2", "--finetune.learning-rate=3e-3",
    "--finetune.warmup-steps=2", "--finetune.zero-stage=2", "--finetune.fit-action-statistics",
    "--finetune.save-every=2", "--finetune.wandb-project=", "--finetune.log-every=1", "--seed=1", "--device=cpu",
)  # fmt: skip
BIN = Path(sys.executable).parent


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

    def losses(self, name: str) -> list[float]:
        return [entry["loss"] for entry in read_log(self.root / name / "log.jsonl")]

    def command(self, out: str, *extra: str) -> list[str]:
        """The `roadloop finetune` command line of an unbroken run."""
        paths = ("--policy", str(self.policy), "--shards", str(self.shards), "--out", str(self.root / out))
        return [str(BIN / "roadloop"), "finetune", *paths, *FLAGS, *extra]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    inputs = Inputs(tmp_path_factory.mktemp("training"))
    inputs.train("unbroken")
    return inputs


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


@contextlib.contextmanager
def running(run: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Run in a thread; the list gets what it raised, once the block has ended."""
    errors: list[BaseException] = []

    def body() -> None:
        try:
            run()
        except RuntimeError as error:
            errors.append(error)

    runner = threading.Thread(target=body)
    runner.start()
    yield errors
    runner.join()


def wait_for(condition: Callable[[], bool], limit_s: float = 120.0) -> None:
    ends_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends_s, "waited in vain"
        time.sleep(0.02)


def assert_equal_weights(found: Path, expected: Path) -> None:
    expected_weights = weights(expected)
    for name, weight in weights(found).items():
        assert torch.equal(weight, expected_weights[name]), name


def assert_like_unbroken(inputs: Inputs, name: str) -> None:
    """Same examples, noise and micro-batches as the unbroken run; only the order of float32 sums differs."""
    assert inputs.losses(name) == pytest.approx(inputs.losses("unbroken"), rel=1e-4)
    # AdamW divides by the root of tiny second moments in its first steps, which enlarges the rounding.
    expected = weights(inputs.root / "unbroken")
    for key, weight in weights(inputs.root / name).items():
        torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-3)


def test_training_lowers_the_loss_and_leaves_a_whole_checkpoint(inputs: Inputs) -> None:
    out = inputs.root / "unbroken"
    assert inputs.loss_of(out) < 0.9 * inputs.loss_of(inputs.policy)
    record = json.loads((out / "training.json").read_text())
    assert record["config"]["steps"] == 10
    assert record["layout"]["processes"] == 2
    assert record["parameters"]["vision"]["trained"] == 0
    assert record["parameters"]["expert"]["trained"] > 0
    assert [entry["step"] for entry in read_log(out / "log.jsonl")] == list(range(1, 11))
    assert not (inputs.root / ".unbroken.training").exists()
    base = weights(inputs.policy)
    for name, trained in weights(out).items():
        if "visual" in name:
            assert torch.equal(trained, base[name]), name


def test_one_process_without_zero_ends_with_the_weights_of_two(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    alone_under_torchrun(monkeypatch)
    inputs.train("alone", replace(CONFIG, zero_stage=0))
    assert_like_unbroken(inputs, "alone")


def test_a_hanging_process_is_named_and_a_killed_one_resumes_to_the_same_bits(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work = inputs.root / ".killed.training"
    config = replace(CONFIG, stall_s=2.0)
    with caplog.at_level(logging.INFO, "roadloop"), running(lambda: inputs.train("killed", config)) as errors:
        wait_for(lambda: len(read_log(work / "log.jsonl")) >= 5)
        victim = max(worker_processes(work))
        os.kill(victim, signal.SIGSTOP)
        wait_for(lambda: "training hangs: no sign of life" in caplog.text and f"pid {victim})" in caplog.text)
        os.kill(victim, signal.SIGKILL)
    assert "run the same command again to resume" in str(errors[0])
    assert not (inputs.root / "killed").exists()
    state = newest_state(work)
    assert state is not None
    assert 2 <= state["step"] < 10
    for folder in (work, inputs.root / "killed.steps"):
        shutil.copytree(folder, folder.with_name(folder.name.replace("killed", "fewer")))

    assert_equal_weights(inputs.train("killed"), inputs.root / "unbroken")
    assert [entry["step"] for entry in read_log(inputs.root / "killed" / "log.jsonl")] == list(range(1, 11))

    alone_under_torchrun(monkeypatch)
    with caplog.at_level(logging.INFO, "roadloop"):
        inputs.train("fewer", replace(CONFIG, zero_stage=1))
    assert f"resuming step {state['step']} with processes: 2 -> 1; zero_stage: 2 -> 1" in caplog.text
    assert_like_unbroken(inputs, "fewer")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_zero_stages_on_two_processes_have_the_same_curve(inputs: Inputs, stage: int) -> None:
    inputs.train(f"zero_{stage}", replace(CONFIG, zero_stage=stage))
    assert_like_unbroken(inputs, f"zero_{stage}")


@pytest.mark.slow
def test_five_kills_at_random_steps_change_no_bit(inputs: Inputs) -> None:
    work = inputs.root / ".often.training"
    draw = random.Random(0)
    for _ in range(5):
        with running(lambda: inputs.train("often")) as errors:
            done = len(read_log(work / "log.jsonl"))
            step = min(done + draw.randint(1, 3), 9)
            wait_for(lambda step=step: len(read_log(work / "log.jsonl")) >= step and len(worker_processes(work)) == 2)
            os.kill(draw.choice(worker_processes(work)), signal.SIGKILL)
        assert "run the same command again to resume" in str(errors[0])
    assert_equal_weights(inputs.train("often"), inputs.root / "unbroken")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("torchrun", "--standalone", "--nproc-per-node", "2"),
        ("deepspeed", "--num_gpus", "2", "--no_local_rank", "--master_port", "29643"),
    ],
    ids=["torchrun", "deepspeed"],
)
def test_the_command_runs_under_a_launcher(inputs: Inputs, launcher: tuple[str, ...]) -> None:
    name = f"under_{launcher[0]}"
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    for _ in range(2):
        done = subprocess.run(
            [str(BIN / launcher[0]), *launcher[1:], *inputs.command(name)],
            env=environment, cwd=inputs.root, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert f"finetune: {inputs.root / name} is there already" in done.stderr + done.stdout
    assert_equal_weights(inputs.root / name, inputs.root / "unbroken")


@pytest.mark.slow
def test_preflight_trains_nothing_and_reports(inputs: Inputs, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "roadloop"):
        preflight(inputs.policy, [inputs.shards], inputs.root / "planned", CONFIG, seed=1, device="cpu")
    assert "preflight: 2 process(es)" in caplog.text
    assert "preflight: a collective takes" in caplog.text
    assert "preflight: all is well" in caplog.text
    assert not list(inputs.root.glob("*planned*"))
