"""Small scenes without Gaussians and a policy without a language model, for tests of the rollout stage."""

from dataclasses import replace
from pathlib import Path

from synthetic_scene import CAMERAS, make_scene

from neural_sim.scenes.storage import write_scene
from neural_sim.simulation.config import SimulationConfig
from pipelines.config import RolloutConfig
from pipelines.guidance import GuidanceConfig
from vla.checkpoint import save_pretrained
from vla.config import REGRESSOR, PolicyConfig
from vla.regressor import build_regressor

SIMULATION = SimulationConfig(duration_us=10_000_000)
"""8.3 s after the hand-over: windows begin in the first 1.9 s."""

CONFIG = RolloutConfig(rollouts_per_scene=2, batch_size=1, window_stride_s=0.5, guidance=GuidanceConfig(num_samples=2))


def make_small_policy(folder: Path) -> Path:
    """A saved policy with random weights."""
    config = PolicyConfig(
        backbone=REGRESSOR, cameras=CAMERAS[:1], num_frames=1, image_width_px=32, image_height_px=32
    )  # fmt: skip
    save_pretrained(build_regressor(config, seed=0), folder)
    return folder


def make_scenes(folder: Path, count: int) -> list[Path]:
    """Scene files of gentle bends, 12 s long."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        scene = replace(make_scene(curvature=0.004 * number, duration_s=12.0), scene_id=f"bend_{number}")
        paths.append(folder / f"bend_{number}.usdz")
        write_scene(scene, paths[-1])
    return paths


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file of a finished job, by path; locks left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }
