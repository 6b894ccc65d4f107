"""Small shards, a tiny policy and a straight clip for the tests of shards and training."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip, NavigationStep
from neural_sim.frames import pose_from_planar
from neural_sim.road_users import EgoVehicle
from neural_sim.trajectory import Trajectory
from pipelines.shards.example import ShardExample
from pipelines.shards.writer import ShardWriter, finalize

CAMERA = "camera_front_wide_120fov"
WIDTH_PX, HEIGHT_PX = 64, 32


def make_example(number: int, speed_mps: float = 5.0, cameras: tuple[str, ...] = (CAMERA,)) -> ShardExample:
    """A car at constant speed on a bend; the images are smooth, so that JPEG keeps them."""
    rng = np.random.default_rng(number)
    curvature = float(rng.uniform(-0.03, 0.03))
    ahead_m = speed_mps * 0.1 * np.arange(1, 65)
    behind_m = speed_mps * 0.1 * np.arange(-15, 1)
    ramp = np.linspace(0, 255, WIDTH_PX)[None, :, None] * np.linspace(0.2, 1, HEIGHT_PX)[:, None, None]
    frame = np.broadcast_to(ramp * (0.5 + 10 * curvature), (HEIGHT_PX, WIDTH_PX, 3)).clip(0, 255).astype(np.uint8)
    t_us = 1_000_000 + 100_000 * number
    history = np.concatenate([_bend(behind_m, curvature), np.full((16, 1), speed_mps)], axis=1)
    plan = _bend(ahead_m, curvature).astype(np.float32)
    return ShardExample(
        key=f"scene-r000-s{number:04d}",
        t_us=t_us,
        images={name: np.stack([frame, frame]) for name in cameras},
        image_times_us={name: np.array([t_us - 100_000, t_us]) for name in cameras},
        ego_history=history.astype(np.float32),
        navigation="turn left" if curvature > 0 else "",
        target=plan,
        plan=plan,
        candidate_distances=rng.uniform(0, 3, 4).astype(np.float32),
        recovered=number % 3 == 0,
        meta={"source": "rollout", "scene_id": "scene", "rollout_index": 0, "step": number, "seed": 7, "round": 1},
    )


def write_shards(folder: Path, count: int, units: int = 2, max_shard_bytes: int = 20_000) -> Path:
    """`count` examples in `units` units of one or more small shards."""
    for unit, numbers in enumerate(np.array_split(np.arange(count), units)):
        with ShardWriter(folder, f"unit_{unit}", max_shard_bytes) as writer:
            for number in numbers:
                writer.write(make_example(int(number), speed_mps=3.0 + 0.5 * int(number)))
    finalize(folder, [f"unit_{unit}" for unit in range(units)], {"rollouts": units})
    return folder


def make_policy(folder: Path) -> Path:
    """A saved tiny policy for the examples above."""
    from vla.checkpoint import save_pretrained
    from vla.config import PolicyConfig
    from vla.model import build_policy

    config = PolicyConfig(
        cameras=(CAMERA,), num_frames=2, image_width_px=WIDTH_PX, image_height_px=HEIGHT_PX, history_tokens=2,
        expert_hidden=64, expert_ffn=64, training_draws=2,
    )  # fmt: skip
    save_pretrained(build_policy(config, seed=0), folder)
    return folder


def make_clip(folder: Path, duration_s: float = 12.0, speed_mps: float = 8.0, frame_us: int = 100_000) -> Clip:
    """A straight drive along +y of the world; frame i has gray value i."""
    folder.mkdir(parents=True, exist_ok=True)
    t_us = np.arange(0, int(duration_s * 1e6) + 1, frame_us, dtype=np.int64)
    paths = []
    for i in range(len(t_us)):
        paths.append(folder / f"{i:04d}.png")
        Image.new("RGB", (2 * WIDTH_PX, 2 * HEIGHT_PX), (i, i, i)).save(paths[-1])
    planar = np.stack([np.full(len(t_us), 3.0), speed_mps * t_us * 1e-6, np.full(len(t_us), np.pi / 2)], axis=-1)
    camera = Camera(CAMERA, 2 * WIDTH_PX, 2 * HEIGHT_PX, 60.0, 60.0, 64.0, 32.0, np.eye(4))
    return Clip(
        clip_id="straight.clip",
        source={},
        cameras={CAMERA: CameraFrames(camera, t_us, tuple(paths))},
        ego=Trajectory(t_us, pose_from_planar(planar)),
        ego_vehicle=EgoVehicle(),
        navigation=(NavigationStep(4_000_000, "turn left"),),
    )


def _bend(distance_m: np.ndarray, curvature: float) -> np.ndarray:
    yaw = distance_m * curvature
    return np.stack([np.sin(yaw) / curvature, (1 - np.cos(yaw)) / curvature, yaw], axis=-1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, without adapters."""
    return load_file(folder / "model.safetensors") | load_file(folder / "policy_head.safetensors")


def alone_under_torchrun(patch: pytest.MonkeyPatch) -> None:
    """Make this process look like the only one that `torchrun` started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    for name, value in {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        patch.setenv(name, str(value))
