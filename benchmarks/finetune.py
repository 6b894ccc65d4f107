"""Fine-tuning: loader against trainer, DeepSpeed against a bare PyTorch loop, peak memory of each mode.

python benchmarks/finetune.py --sizes tiny large --steps 12 --json FILE

`tiny` is the embedded policy, `large` one of about 100 million parameters of the same class. Both loops see the same
examples in one process, in turn, so that other load on the machine meets both; the ratio is that of the medians.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from neural_sim.artifacts import write_json
from pipelines.device import resolve_device
from pipelines.shards.example import ShardExample
from pipelines.shards.writer import ShardWriter, finalize
from pipelines.training.config import TrainingConfig, TrainingMode
from pipelines.training.data import Loader, MicroBatch
from pipelines.training.engine import TrainingEngine, start_distributed
from pipelines.training.figures import peak_memory_gb
from pipelines.training.ranks import Ranks
from pipelines.training.source import ExampleSource
from vla.config import PolicyConfig
from vla.model import DrivingPolicy, build_policy
from vla.policy import TrainingBatch
from vla.training_modes import TrainingModeConfig, apply_training_mode, parameter_groups

CAMERA = "camera_front_wide_120fov"
EXAMPLES = 64
WARMUP_STEPS = 2
LOADED_STEPS = 64


def main() -> None:
    arguments = _arguments()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder) / "shards")
        for size in arguments.sizes:
            figures |= _in_new_process(measure_steps, shards, size, arguments.steps, arguments.batch_size)
            needed = figures[f"{size}_trainer_examples_per_s"]
            figures |= measure_loader(shards, size, arguments.batch_size, needed)
            for mode in arguments.modes:
                figures |= _in_new_process(measure_memory, shards, size, mode, arguments.batch_size)
    for name, value in figures.items():
        print(f"{name:48s} {value:.4g}")
    if arguments.json is not None:
        write_json(arguments.json, figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "large"), default=["tiny"])
    parser.add_argument("--modes", nargs="*", choices=TrainingMode.__args__, default=list(TrainingMode.__args__))
    parser.add_argument("--steps", type=int, default=12, help="measured steps of each loop")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    return parser.parse_args()


def write_shards(folder: Path) -> Path:
    """Examples of the embedded policy's size with images as hard to decode as photographs."""
    rng = np.random.default_rng(0)
    ahead_m = np.arange(1, 65)
    with ShardWriter(folder, "benchmark") as writer:
        for number in range(EXAMPLES):
            speed_mps = rng.uniform(3, 12)
            path = np.stack([0.1 * speed_mps * ahead_m, np.zeros(64), np.zeros(64)], axis=-1).astype(np.float32)
            history = np.zeros((16, 4), np.float32)
            history[:, 0], history[:, 3] = 0.1 * speed_mps * np.arange(-15, 1), speed_mps
            coarse = rng.integers(0, 256, (2, 24, 48, 3)).astype(np.uint8)
            writer.write(
                ShardExample(
                    key=f"benchmark-{number:04d}", t_us=100_000 * (number + 1),
                    images={CAMERA: coarse.repeat(4, axis=1).repeat(4, axis=2)},
                    image_times_us={CAMERA: 100_000 * np.array([number, number + 1])},
                    ego_history=history, navigation="", target=path, plan=path,
                    candidate_distances=np.zeros(0, np.float32), recovered=False, meta={"source": "benchmark"},
                )
            )  # fmt: skip
    finalize(folder, ["benchmark"], {})
    return folder


def make_policy(size: str) -> DrivingPolicy:
    """The embedded policy, or one of about 100 million parameters."""
    config = PolicyConfig(cameras=(CAMERA,), num_frames=2, image_width_px=192, image_height_px=96)
    if size == "large":
        config = replace(config, expert_hidden=1664, expert_ffn=4608)
    return build_policy(config, seed=0)


def measure_steps(shards: Path, size: str, steps: int, batch_size: int) -> dict[str, float]:
    """Steps of DeepSpeed and of a bare loop in turn."""
    config = TrainingConfig(
        steps=steps + WARMUP_STEPS, batch_size=batch_size, micro_batch_size=batch_size, mode="all", zero_stage=0
    )
    source = ExampleSource([shards])
    batches = _load(source, config)
    engine, bare = _engine(size, config), _Bare(make_policy(size), config)
    engine_s, bare_s = [], []
    for step, micro in enumerate(batches):
        # Who goes first alternates: the second finds warm caches.
        order = ((engine_s, engine), (bare_s, bare)) if step % 2 else ((bare_s, bare), (engine_s, engine))
        for times_s, trainer in order:
            started_s = time.perf_counter()
            trainer.accumulate(micro.batch, torch.Generator().manual_seed(step), True)
            trainer.step(step)
            times_s.append(time.perf_counter() - started_s)
    ours, theirs = (statistics.median(times_s[WARMUP_STEPS:]) for times_s in (engine_s, bare_s))
    weights = sum(weight.numel() for weight in engine.policy.parameters())
    return {
        f"{size}_parameters": float(weights),
        f"{size}_step_s": ours,
        f"{size}_bare_step_s": theirs,
        f"{size}_step_ratio": ours / theirs,
        f"{size}_trainer_examples_per_s": batch_size / ours,
    }


def measure_loader(shards: Path, size: str, batch_size: int, trainer_examples_per_s: float) -> dict[str, float]:
    """Examples per second that the loader decodes with nothing else to do, in threads and in processes."""
    figures = {}
    for name, workers in (("threads", 0), ("processes", 2)):
        config = TrainingConfig(
            steps=LOADED_STEPS, batch_size=batch_size, micro_batch_size=batch_size, loader_workers=workers
        )
        with Loader(ExampleSource([shards]), config, 0, 0, 1, 0) as loader:
            batches = iter(loader)
            # The first ones wait for processes to start, and those decoded ahead meanwhile come for nothing.
            for _ in range(2 * config.prefetch):
                next(batches)
            started_s = time.perf_counter()
            rate = batch_size * sum(1 for _ in batches) / (time.perf_counter() - started_s)
        figures[f"{size}_loader_examples_per_s/{name}"] = rate
        figures[f"{size}_loader_over_trainer/{name}"] = rate / trainer_examples_per_s
    return figures


def measure_memory(shards: Path, size: str, mode: TrainingMode, batch_size: int) -> dict[str, float]:
    """Peak memory of a process that takes three steps in `mode`."""
    config = TrainingConfig(steps=3, batch_size=batch_size, micro_batch_size=batch_size, mode=mode, zero_stage=0)
    batches = _load(ExampleSource([shards]), config)
    engine = _engine(size, config)
    before_gb = peak_memory_gb("cpu")
    for step, micro in enumerate(batches):
        engine.accumulate(micro.batch, torch.Generator().manual_seed(step), True)
        engine.step(step)
    after_gb = peak_memory_gb("cpu")
    return {f"{size}_{mode}_peak_gb": after_gb, f"{size}_{mode}_peak_of_steps_gb": after_gb - before_gb}


def _load(source: ExampleSource, config: TrainingConfig) -> list[MicroBatch]:
    with Loader(source, config, 0, 0, 1, 0) as loader:
        return list(loader)


class _Bare:
    """The same policy, optimiser, clipping and noise without DeepSpeed."""

    def __init__(self, policy: DrivingPolicy, config: TrainingConfig) -> None:
        apply_training_mode(policy, TrainingModeConfig(config.mode))
        self._policy, self._config = policy.train(), config
        groups = [
            {"params": group["params"], "lr": group["lr"]}
            for group in parameter_groups(policy, config.peak_learning_rates)
        ]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=False)

    def accumulate(self, batch: TrainingBatch, generator: torch.Generator, is_last: bool) -> None:
        self._policy(batch, generator)["loss"].backward()

    def step(self, step: int) -> None:
        torch.nn.utils.clip_grad_norm_(self._policy.parameters(), self._config.gradient_clip)
        self._optimizer.step()
        self._optimizer.zero_grad()


def _engine(size: str, config: TrainingConfig) -> TrainingEngine:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "LOCAL_RANK": "0"}
    ranks = Ranks()
    policy = make_policy(size)
    apply_training_mode(policy, TrainingModeConfig(config.mode))
    return TrainingEngine(start_distributed(resolve_device("cpu"), ranks), policy, config, ranks)


def _in_new_process(measure: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """Peak memory is that of a process, so every measurement has its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


if __name__ == "__main__":
    main()
