"""Loading a policy and a scene into a worker process, and putting a simulator around them."""

from functools import lru_cache
from pathlib import Path

from neural_sim.rendering.splat_renderer import SplatRenderer
from neural_sim.scenes.scene import Scene
from neural_sim.scenes.storage import read_scene
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.observation import ImageFormat
from neural_sim.simulation.simulator import Simulator
from vla.checkpoint import from_pretrained
from vla.config import PolicyConfig
from vla.driving_policy import DrivingPolicy


@lru_cache(maxsize=2)
def cached_scene(path: Path) -> Scene:
    """The scene at `path`, read once per process."""
    return read_scene(path)


@lru_cache(maxsize=1)
def cached_policy(folder: Path, device: str) -> DrivingPolicy:
    """The policy in `folder`, ready to drive, loaded once per process."""
    return from_pretrained(folder, device).eval()


def make_simulator(scene: Scene, policy: DrivingPolicy, config: SimulationConfig, device: str) -> Simulator:
    """A simulator of `scene`, drawn by splats, that shows what `policy` was built to see."""
    return Simulator(scene, SplatRenderer(scene, device), config, image_format(policy.config))


def image_format(config: PolicyConfig) -> ImageFormat:
    """The images that a policy of this configuration sees."""
    return ImageFormat(
        config.cameras, config.num_frames, config.frame_interval_us, config.image_width_px, config.image_height_px
    )
