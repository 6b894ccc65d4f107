"""The renderer of reconstructed scenes: background, road and moved actors as splats before a cubemap sky."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_sim.cameras import require_pinhole
from neural_sim.frames import interpolate_poses, invert_pose
from neural_sim.gaussians import Gaussians, transform_gaussians
from neural_sim.rendering.rasterize import choose_backend, rasterize
from neural_sim.rendering.renderer import RenderedImage, RenderRequest
from neural_sim.rendering.sky import sample_sky, view_directions
from neural_sim.rendering.views import RasterizedViews
from neural_sim.scenes.scene import Scene


def compose(
    views: RasterizedViews, sky: Float[Tensor, "6 s s 3"], directions: Float[Tensor, "v h w 3"]
) -> Float[Tensor, "v h w 3"]:
    """Put the sky behind views: rgb + (1 - opacity) sky. Not clipped, differentiable in views and sky."""
    return views.rgb + (1 - views.opacity[..., None]) * sample_sky(sky, directions)


class SplatRenderer:
    """Draws one scene by rasterizing its Gaussians; implements `neural_sim.rendering.renderer.Renderer`.

    A camera with a rolling shutter is drawn from its pose half-way between shutter open and close; a global shutter
    (`shutter_us` 0) from the open pose. Higher SH bands of actors keep the directions of the box frame.

    Attributes:
        name: "splat".
        backend, backend_reason: which rasterizer draws, and why; for the start-up banner.
    """

    name = "splat"

    def __init__(self, scene: Scene, device: torch.device | str = "cpu") -> None:
        self.backend, self.backend_reason = choose_backend(device)
        self.device = torch.device(device if self.backend == "gsplat" else "cpu")
        degree = max(part.sh_degree for part in (scene.background, scene.road, *scene.actors.values()))
        static = [_raised_to(part, degree) for part in (scene.background, scene.road)]
        self._static = Gaussians.concatenate(static).to(self.device)
        self._actors = {name: _raised_to(part, degree).to(self.device) for name, part in scene.actors.items()}
        self._sky = scene.sky.float().to(self.device)

    @torch.no_grad()
    def render(self, requests: Sequence[RenderRequest]) -> list[RenderedImage]:
        """Draw every request; images come in the order of the requests.

        Road users without Gaussians are not drawn, nor are actors of the scene that a request does not place.
        """
        for request in requests:
            require_pinhole(request.camera, "the splat renderer")
        images: list[RenderedImage | None] = [None] * len(requests)
        for indices in _batches(requests):
            batch = [requests[i] for i in indices]
            for i, image in zip(indices, self._render_batch(batch), strict=True):
                images[i] = image
        return [image for image in images if image is not None]

    def _render_batch(self, requests: list[RenderRequest]) -> list[RenderedImage]:
        """Draw requests that share image size and actor poses in one call."""
        camera = requests[0].camera
        T_world_camera = np.stack([_pose_at_mid_shutter(request) for request in requests])
        K = np.stack([request.camera.K for request in requests])
        gaussians = self._placed(requests[0].T_world_actors)
        T_camera_world = torch.from_numpy(invert_pose(T_world_camera)).float().to(self.device)
        K_device = torch.from_numpy(K).float().to(self.device)
        views = rasterize(gaussians, T_camera_world, K_device, camera.width_px, camera.height_px, backend=self.backend)
        rgb = self._with_sky(views, K, T_world_camera)
        depth_m, opacity = views.depth_m.cpu().numpy(), views.opacity.cpu().numpy()
        return [RenderedImage(rgb[v], depth_m[v], opacity[v]) for v in range(len(requests))]

    def _placed(self, T_world_actors: Mapping[str, Float[np.ndarray, "4 4"]]) -> Gaussians:
        """All Gaussians in the world frame, actors at the given box poses."""
        moved = [
            transform_gaussians(self._actors[name], torch.tensor(pose, dtype=torch.float32, device=self.device))
            for name, pose in sorted(T_world_actors.items())
            if name in self._actors
        ]
        return Gaussians.concatenate([self._static, *moved]) if moved else self._static

    def _with_sky(
        self, views: RasterizedViews, K: Float[np.ndarray, "v 3 3"], T_world_camera: Float[np.ndarray, "v 4 4"]
    ) -> list[Float[np.ndarray, "h w 3"]]:
        """RGB images in 0..1 with the sky behind."""
        if self.backend == "cpu":
            from neural_sim.rendering.cpu.sky import add_sky

            sky, rgb, opacity = self._sky.contiguous().numpy(), views.rgb.numpy(), views.opacity.numpy()
            return [
                add_sky(rgb[v], opacity[v], sky, K[v], np.ascontiguousarray(T_world_camera[v, :3, :3]))
                for v in range(len(K))
            ]
        height_px, width_px = views.opacity.shape[1:]
        poses = torch.from_numpy(T_world_camera).float().to(self.device)
        directions = view_directions(torch.from_numpy(K).float().to(self.device), poses, width_px, height_px)
        return list(compose(views, self._sky, directions).clamp(0.0, 1.0).cpu().numpy())


def _batches(requests: Sequence[RenderRequest]) -> list[list[int]]:
    """Indices of requests that one rasterizer call can draw: same image size and same actor poses."""
    groups: dict[tuple, list[int]] = {}
    for i, request in enumerate(requests):
        actors = tuple((name, pose.tobytes()) for name, pose in sorted(request.T_world_actors.items()))
        groups.setdefault((request.camera.width_px, request.camera.height_px, actors), []).append(i)
    return list(groups.values())


def _pose_at_mid_shutter(request: RenderRequest) -> Float[np.ndarray, "4 4"]:
    """The open pose of a global shutter, else the pose half-way to the close pose."""
    if request.camera.shutter_us == 0:
        return request.T_world_camera_open
    ends = np.stack([request.T_world_camera_open, request.T_world_camera_close])
    return interpolate_poses(np.array([0, 2]), ends, np.array([1]))[0]


def _raised_to(gaussians: Gaussians, degree: int) -> Gaussians:
    """The same Gaussians with zero SH bands up to `degree`."""
    missing = (degree + 1) ** 2 - gaussians.sh.shape[1]
    if missing == 0:
        return gaussians
    padding = gaussians.sh.new_zeros(len(gaussians), missing, 3)
    tensors = {**gaussians.tensors(), "sh": torch.cat([gaussians.sh, padding], dim=1)}
    return Gaussians(**tensors)
