"""A NeRF of the static world as a renderer, with the road users of the splat scene in front of it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from neural_sim.cameras import require_pinhole
from neural_sim.gaussians import Gaussians
from neural_sim.nerf.drawing import draw, model_of
from neural_sim.nerf.world import NerfWorld
from neural_sim.rendering.renderer import RenderedImage, RenderRequest
from neural_sim.rendering.splat_renderer import SplatRenderer, pose_at_mid_shutter
from neural_sim.scenes.scene import Scene

# The depth of a NeRF is noisy: a road user is hidden only by what is clearly nearer.
_DEPTH_MARGIN_M, _DEPTH_MARGIN_SHARE = 0.5, 0.1


class NerfRenderer:
    """Draws one scene as a NeRF; implements `neural_sim.rendering.renderer.Renderer`.

    The NeRF holds what does not move. Road users are drawn from the Gaussians of the splat scene, pixel by pixel in
    front of what is farther than they are. The sky is part of the NeRF, so opacity is near 1 there too; depth is that
    of the surface that hides half of what is behind. A rolling shutter is drawn from its pose half-way.
    """

    name = "nerf"

    def __init__(self, scene: Scene, world: NerfWorld, device: torch.device | str = "cpu") -> None:
        """Raises `InputError` when nerfstudio is not installed or the weights do not fit the settings of `world`."""
        self._world, self._model = world, model_of(world, device)
        self._actor_ids = frozenset(scene.actors)
        self._actors = SplatRenderer(_actors_alone(scene), device) if scene.actors else None

    def render(self, requests: Sequence[RenderRequest]) -> list[RenderedImage]:
        """Draw every request; images come in the order of the requests.

        Road users without Gaussians are not drawn, nor are actors of the scene that a request does not place.
        """
        return [self._render_one(request) for request in requests]

    def _render_one(self, request: RenderRequest) -> RenderedImage:
        require_pinhole(request.camera, "the NeRF renderer")
        static = RenderedImage(*draw(self._model, self._world, request.camera, pose_at_mid_shutter(request)))
        if self._actors is None or self._actor_ids.isdisjoint(request.T_world_actors):
            return static
        return in_front(self._actors.render([request])[0], static)


def in_front(actors: RenderedImage, static: RenderedImage) -> RenderedImage:
    """Road users drawn over black put before the static world, where they are not hidden by it.

    Depth is that of the road user where it is the more opaque of the two.
    """
    limit_m = (1 + _DEPTH_MARGIN_SHARE) * static.depth_m + _DEPTH_MARGIN_M
    seen = np.where(actors.depth_m < limit_m, actors.opacity, 0).astype(np.float32)
    rgb = np.where(seen[..., None] > 0, actors.rgb, 0) + (1 - seen[..., None]) * static.rgb
    depth_m = np.where(seen > 0.5, actors.depth_m, static.depth_m)
    return RenderedImage(np.clip(rgb, 0, 1).astype(np.float32), depth_m, seen + (1 - seen) * static.opacity)


def _actors_alone(scene: Scene) -> Scene:
    """The scene without background, road and sky: its road users over black."""
    nothing = Gaussians(**{name: tensor[:0] for name, tensor in scene.background.tensors().items()})
    return replace(scene, background=nothing, road=nothing, sky=torch.zeros_like(scene.sky))
