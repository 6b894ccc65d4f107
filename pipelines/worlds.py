"""Loading a policy and a scene into a worker process, and putting a simulator around them."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from neural_sim.errors import InputError
from neural_sim.nerf.installation import require_nerfstudio
from neural_sim.nerf.storage import nerf_path, read_nerf
from neural_sim.nerf.world import NerfWorld
from neural_sim.rendering.renderer import Renderer
from neural_sim.rendering.splat_renderer import SplatRenderer
from neural_sim.scenes.scene import Scene
from neural_sim.scenes.storage import read_scene, read_scene_id
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.observation import ImageFormat
from neural_sim.simulation.simulator import Simulator
from pipelines.config import RendererKind
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


@lru_cache(maxsize=2)
def cached_nerf(path: Path) -> NerfWorld:
    """The NeRF at `path`, read once per process."""
    return read_nerf(path)


def make_renderer(kind: RendererKind, path: Path, device: str) -> Renderer:
    """What draws the scene in the file `path`: its Gaussians, its NeRF, or the true world it was recorded in.

    Raises `InputError` when the NeRF or nerfstudio is missing, or when the true world is asked for and the scene is not
    of the synthetic town.
    """
    scene = cached_scene(path)
    if kind == "splat":
        return SplatRenderer(scene, device)
    if kind == "nerf":
        from neural_sim.nerf.renderer import NerfRenderer  # loads its numba kernels

        return NerfRenderer(scene, cached_nerf(nerf_path(path)), device)
    from neural_sim.town.town import true_world  # loads the ray caster

    return true_world(scene)


def require_renderable(kind: RendererKind, scenes: Sequence[Path]) -> None:
    """Raise `InputError` for the first scene file that `make_renderer` would refuse."""
    if kind == "nerf":
        require_nerfstudio()
        for path in scenes:
            _require_nerf_of(path)
    if kind == "town":
        from neural_sim.town.town import require_town

        for path in scenes:
            require_town(cached_scene(path))


def _require_nerf_of(scene: Path) -> None:
    nerf, name = cached_nerf(nerf_path(scene)), read_scene_id(scene)
    if nerf.clip_id != name:
        raise InputError(f"{nerf_path(scene)}: a NeRF of the clip {nerf.clip_id!r}, expected one of {name!r}")


def make_simulator(scene: Scene, images: ImageFormat, config: SimulationConfig, device: str) -> Simulator:
    """A simulator of `scene`, drawn by splats, that shows `images`."""
    return Simulator(scene, SplatRenderer(scene, device), config, images)


def image_format(config: PolicyConfig) -> ImageFormat:
    """The images that a policy of this configuration sees."""
    return ImageFormat(
        config.cameras, config.num_frames, config.frame_interval_us, config.image_width_px, config.image_height_px
    )
