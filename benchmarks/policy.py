"""Time sampling and training of the tiny policy, print the memory table of a 2B class model, overfit a real drive.

    python benchmarks/policy.py --json policy.json
    python benchmarks/policy.py --memory-table
    python benchmarks/policy.py --overfit CLIP --json policy_overfit.json

The first writes flat {"figure": number}, medians of `--repeats` calls after two that warm up, on `--threads` threads:
`sample_ms/b1_k64` (one rollout, 64 plans), `encode_ms/b1` (the prompt alone, part of every sample),
`whole_passes_ms/b1_k64` (64 plans by 64 calls that draw one), `sample_ratio/k64_to_k1`, `training_step_ms/b16` (forward
and backward in mode `all`), `regressor_sample_ms/b1`, and the speed of the matrix products with oneDNN and without.

`--overfit` takes a clip folder of `roadloop ingest`, trains on 32 windows of its first half and reports the distances
there and on windows of the second half, beside constant velocity.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from neural_sim.clips.storage import read_clip
from pipelines.shards.reader import stack_examples
from pipelines.training.clip_examples import clip_examples
from pipelines.worlds import image_format
from vla.baselines import ConstantVelocityPolicy
from vla.config import REGRESSOR, PolicyConfig
from vla.driving_policy import DrivingPolicy
from vla.linear import linear
from vla.memory import memory_table
from vla.model import build_policy
from vla.open_loop import open_loop_errors
from vla.policy import TrainingBatch

SAMPLES = (1, 16, 64, 128)
BATCHES = (1, 8)
TEMPERATURE = 0.8
TRAINING_WINDOWS = 32


def random_batch(config: PolicyConfig, size: int, seed: int = 0) -> TrainingBatch:
    """Random images, straight histories and straight plans."""
    random = np.random.default_rng(seed)
    speed_mps = random.uniform(3, 12, size).astype(np.float32)
    history, target = np.zeros((size, 16, 4), np.float32), np.zeros((size, 64, 3), np.float32)
    history[..., 0] = speed_mps[:, None] * 0.1 * np.arange(-15, 1)
    history[..., 3] = speed_mps[:, None]
    target[..., 0] = speed_mps[:, None] * 0.1 * np.arange(1, 65)
    shape = (size, config.num_frames, config.image_height_px, config.image_width_px, 3)
    times_us = 1_000_000 + config.frame_interval_us * np.arange(1 - config.num_frames, 1)
    return TrainingBatch(
        t_us=np.full(size, 1_000_000),
        images={camera: random.integers(0, 256, shape, dtype=np.uint8) for camera in config.cameras},
        image_times_us={camera: np.tile(times_us, (size, 1)) for camera in config.cameras},
        ego_history=history,
        navigation=("",) * size,
        target=target,
        weight=np.ones(size, np.float32),
    )


def generators(size: int) -> list[torch.Generator]:
    """One generator per rollout."""
    return [torch.Generator().manual_seed(seed) for seed in range(size)]


def median_ms(call: Callable[[], object], repeats: int, warm_up: int = 2) -> float:
    """Median duration of `repeats` calls after `warm_up` others, ms."""
    for _ in range(warm_up):
        call()
    durations = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        durations.append(time.perf_counter() - started)
    return 1e3 * statistics.median(durations)


def time_sampling(config: PolicyConfig, repeats: int) -> dict[str, float]:
    """Sampling by batch and K, the prompt alone, and 64 whole passes, ms."""
    policy, figures = build_policy(config).eval(), {}
    for size in BATCHES:
        batch, seeds = random_batch(config, size), generators(size)
        for count in SAMPLES:
            figures[f"sample_ms/b{size}_k{count}"] = median_ms(
                lambda batch=batch, count=count, seeds=seeds: policy.sample(batch, count, TEMPERATURE, seeds), repeats
            )
    alone, seeds = random_batch(config, 1), generators(1)

    def draw_one_by_one() -> None:
        for _ in range(64):
            policy.sample(alone, 1, TEMPERATURE, seeds)

    figures["whole_passes_ms/b1_k64"] = median_ms(draw_one_by_one, repeats=2, warm_up=0)
    for size in BATCHES:
        figures[f"sample_ratio/b{size}_k64_to_k1"] = (
            figures[f"sample_ms/b{size}_k64"] / figures[f"sample_ms/b{size}_k1"]
        )
    regressor = build_policy(dataclasses.replace(config, backbone=REGRESSOR)).eval()
    figures["regressor_sample_ms/b1"] = median_ms(lambda: regressor.sample(alone, 1, TEMPERATURE, seeds), repeats)
    return figures


def time_training(config: PolicyConfig, repeats: int, size: int = 16) -> dict[str, float]:
    """Forward and backward of one batch in mode `all`, and the projection of its targets, ms."""
    policy, batch = build_policy(config).train(), random_batch(config, size)

    def step() -> None:
        policy.zero_grad()
        policy.loss(batch, torch.Generator().manual_seed(0))["loss"].backward()

    return {
        f"training_step_ms/b{size}": median_ms(step, max(3, repeats // 2)),
        f"project_targets_ms/b{size}": median_ms(lambda: policy.target_actions(batch), repeats),
    }


def time_products(repeats: int) -> dict[str, float]:
    """Speed of a product of the expert's size through `vla.linear` and through PyTorch alone, GFLOP/s."""
    x, weight = torch.randn(512, 128), torch.randn(512, 128)
    operations = 2 * 512 * 128 * 512
    calls = {"linear": linear, "torch": torch.nn.functional.linear}
    with torch.no_grad():
        return {
            f"product_gflops/{name}": operations / (1e6 * median_ms(lambda call=call: call(x, weight), 20 * repeats))
            for name, call in calls.items()
        }


def overfit(clip_folder: Path, steps: int) -> dict[str, float]:
    """Distances of the tiny policy on 32 windows that it was trained on, and on windows it has not seen, m."""
    clip = read_clip(clip_folder)
    config = dataclasses.replace(PolicyConfig(), cameras=(next(iter(clip.cameras)),), image_width_px=320)
    examples = list(clip_examples(clip, image_format(config), 100_000))
    seen = stack_examples(examples[: len(examples) // 2][:: max(1, len(examples) // 64)][:TRAINING_WINDOWS])
    held_out = stack_examples(examples[len(examples) // 2 :: 4])
    policy = build_policy(config)
    policy.fit_action_statistics(
        torch.from_numpy(seen.target), torch.from_numpy(np.ascontiguousarray(seen.ego_history[:, -1, 3]))
    )
    _train(policy, seen, steps)
    figures = {"overfit/windows": float(len(seen.t_us)), "overfit/steps": float(steps)}
    for name, batch in (("seen", seen), ("held_out", held_out)):
        seeds = generators(len(batch.t_us))
        still = ConstantVelocityPolicy().sample(batch, 1, 1.0, seeds).poses
        found = {"policy": policy.eval().open_loop_metrics(batch, seeds)}
        found["constant_velocity"] = open_loop_errors(still, torch.from_numpy(batch.target))
        figures |= {f"{name}/{who}/{key}": value for who, errors in found.items() for key, value in errors.items()}
    return figures


def _train(policy: DrivingPolicy, batch: TrainingBatch, steps: int) -> None:
    optimiser = torch.optim.AdamW(policy.train().parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimiser.zero_grad()
        losses = policy.loss(batch, generator)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {float(losses['loss']):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--repeats", type=int, default=9, help="timed calls per figure")
    parser.add_argument("--threads", type=int, default=1, help="threads to use")
    parser.add_argument("--memory-table", action="store_true", help="print the memory table and nothing else")
    parser.add_argument("--overfit", type=Path, metavar="CLIP", help="train on 32 windows of this clip instead")
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of --overfit")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_table:
        print("\n".join(memory_table()))
        return
    figures: dict[str, float] = {"threads": float(arguments.threads)}
    if arguments.overfit:
        figures |= overfit(arguments.overfit, arguments.steps)
    else:
        config = PolicyConfig()
        figures |= time_products(arguments.repeats)
        figures |= time_sampling(config, arguments.repeats) | time_training(config, arguments.repeats)
    for name, value in figures.items():
        print(f"{name}: {value:.3f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
