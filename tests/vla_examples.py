"""Small policies and synthetic observations for the tests of the policy part."""

import os
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from vla.config import PolicyConfig
from vla.policy import TrainingBatch

NOW_US = 1_000_000
SMALL = PolicyConfig(
    cameras=("camera_front_wide_120fov", "camera_front_tele_30fov"),
    num_frames=2,
    image_width_px=64,
    image_height_px=32,
    training_draws=2,
    euler_steps=3,
)


def arc_plan(speed_mps, curvature):
    """Exact constant-curvature plans [B, 64, 3]."""
    arc_m = np.asarray(speed_mps)[:, None] * 0.1 * np.arange(1, 65)
    curvature = np.asarray(curvature)[:, None]
    yaw = curvature * arc_m
    radius = 1.0 / curvature
    return np.stack([radius * np.sin(yaw), radius * (1 - np.cos(yaw)), yaw], axis=-1).astype(np.float32)


def training_batch(config, size, seed=0, navigation=None, speed_mps=None) -> TrainingBatch:
    """Random images, straight histories and arcs as targets."""
    random = np.random.default_rng(seed)
    speed = (
        random.uniform(3, 12, size).astype(np.float32) if speed_mps is None else np.full(size, speed_mps, np.float32)
    )
    curvature = random.uniform(0.005, 0.04, size) * random.choice([-1, 1], size)
    history = np.zeros((size, 16, 4), np.float32)
    history[..., 0] = speed[:, None] * 0.1 * np.arange(-15, 1)
    history[..., 3] = speed[:, None]
    shape = (size, config.num_frames, config.image_height_px, config.image_width_px, 3)
    times_us = NOW_US + 100_000 * np.arange(1 - config.num_frames, 1)
    return TrainingBatch(
        t_us=np.full(size, NOW_US),
        images={camera: random.integers(0, 256, shape, dtype=np.uint8) for camera in config.cameras},
        image_times_us={camera: np.tile(times_us, (size, 1)) for camera in config.cameras},
        ego_history=history,
        navigation=tuple(navigation or [""] * size),
        target=arc_plan(speed, curvature),
        weight=np.ones(size, np.float32),
    )


def rows_of(batch: TrainingBatch, rows: Sequence[int]) -> TrainingBatch:
    """Some rows of a batch."""
    rows = list(rows)
    return TrainingBatch(
        t_us=batch.t_us[rows],
        images={camera: images[rows] for camera, images in batch.images.items()},
        image_times_us={camera: times[rows] for camera, times in batch.image_times_us.items()},
        ego_history=batch.ego_history[rows],
        navigation=tuple(batch.navigation[row] for row in rows),
        target=batch.target[rows],
        weight=batch.weight[rows],
    )


def seeded(*seeds: int) -> list[torch.Generator]:
    """One CPU generator per seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
