"""Two machines, played by two network namespaces joined by a cable: the documented multi-node commands."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_fixtures import make_policy, weights, write_shards

from pipelines.training.config import TrainingConfig
from pipelines.training.train import train

BIN = Path(sys.executable).parent
ADDRESSES = ("10.77.31.1", "10.77.31.2")
CONFIG = TrainingConfig(
    steps=4, batch_size=4, micro_batch_size=2, learning_rate=3e-3, warmup_steps=2, zero_stage=2, num_processes=2,
    save_every=2, wandb_project="",
)  # fmt: skip
FLAGS = (
    "--finetune.steps=4", "--finetune.batch-size=4", "--finetune.micro-batch-size=2", "--finetune.learning-rate=3e-3",
    "--finetune.warmup-steps=2", "--finetune.zero-stage=2", "--finetune.save-every=2", "--finetune.wandb-project=",
    "--seed=1", "--device=cpu",
)  # fmt: skip


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two namespaces; `net0` in each has an address of `ADDRESSES`."""
    names = (f"roadloop-a{os.getpid()}", f"roadloop-b{os.getpid()}")
    try:
        ip("netns", "add", names[0])
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not permitted here ({error})")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", "net0", "netns", names[0], "type", "veth", "peer", "name", "net0", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "net0")
            ip("-n", name, "link", "set", "net0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def on_both(hosts: tuple[str, str], commands: list[list[str]], limit_s: float = 400) -> list[tuple[int, str]]:
    """Run one command on each host at the same time. Returns exit codes and outputs."""
    environment = {
        **os.environ, "GLOO_SOCKET_IFNAME": "net0", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }  # fmt: skip
    running = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, *command],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for host, command in zip(hosts, commands, strict=True)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=limit_s)[0] for process in running]
        return [(process.returncode, output) for process, output in zip(running, outputs, strict=True)]
    finally:
        for process in running:
            process.kill()


def launchers(kind: str, folder: Path, port: int) -> list[list[str]]:
    """The launcher part of the documented command, for each host."""
    if kind == "torchrun":
        common = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", ADDRESSES[0], "--master-port", str(port)]
        return [[str(BIN / "torchrun"), *common, "--node-rank", str(rank)] for rank in (0, 1)]
    hostfile = folder / "hosts"
    hostfile.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    common = ["--hostfile", str(hostfile), "--no_ssh", "--master_addr", ADDRESSES[0], "--master_port", str(port)]
    return [[str(BIN / "deepspeed"), *common, "--no_local_rank", "--node_rank", str(rank)] for rank in (0, 1)]


@pytest.mark.slow
def test_two_hosts_train_as_one(hosts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Equal to the bit only when every process computes on as many threads.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    policy, shards = make_policy(tmp_path / "base"), write_shards(tmp_path / "shards", 12)
    expected = weights(train(policy, [shards], tmp_path / "one_host", CONFIG, seed=1, device="cpu"))
    for kind, port in (("torchrun", 29711), ("deepspeed", 29712)):
        out = tmp_path / kind
        stage = [str(BIN / "roadloop"), "finetune", "--policy", str(policy), "--shards", str(shards), "--out", str(out)]
        commands = [[*launcher, *stage, *FLAGS] for launcher in launchers(kind, tmp_path, port)]
        for code, output in on_both(hosts, commands):
            assert code == 0, output
        for name, weight in weights(out).items():
            assert torch.equal(weight, expected[name]), (kind, name)


@pytest.mark.slow
def test_preflight_names_the_host_without_the_shards(hosts: tuple[str, str], tmp_path: Path) -> None:
    policy, shards = make_policy(tmp_path / "base"), write_shards(tmp_path / "shards", 12)
    stages = [
        [str(BIN / "roadloop"), "finetune", "--preflight", "--policy", str(policy), "--shards", str(folder)]
        for folder in (shards, tmp_path / "missing")
    ]
    hostnames = [["unshare", "-u", "sh", "-c", f'hostname {name}; exec "$@"', "sh"] for name in ("first", "second")]
    commands = [
        [*hostname, *launcher, *stage, "--out", str(tmp_path / "out"), *FLAGS]
        for hostname, launcher, stage in zip(hostnames, launchers("torchrun", tmp_path, 29713), stages, strict=True)
    ]
    results = on_both(hosts, commands)
    assert all(code != 0 for code, _ in results)
    assert f"second: {tmp_path / 'missing'}: no such folder of shards" in results[0][1]
