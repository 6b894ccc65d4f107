"""The renderer of reconstructed scenes: background, road and moved actors as splats before a cubemap sky."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_sim.frames import interpolate_poses, invert_pose
from neural_sim.gaussians import Gaussians
from neural_sim.rendering.lenses import view_rays
from neural_sim.rendering.motion import is_read_by_rows, line_poses
from neural_sim.rendering.rasterize import Actors, Shutter, choose_backend, rasterize
from neural_sim.rendering.renderer import RenderedImage, RenderRequest
from neural_sim.rendering.sky import sample_sky, view_directions
from neural_sim.rendering.views import RasterizedViews
from neural_sim.scenes.scene import Scene

Poses = Mapping[str, Float[np.ndarray, "4 4"]]


def compose(
    views: RasterizedViews, sky: Float[Tensor, "6 s s 3"], directions: Float[Tensor, "v h w 3"]
) -> Float[Tensor, "v h w 3"]:
    """Put the sky behind views: rgb + (1 - opacity) sky. Not clipped, differentiable in views and sky."""
    return views.rgb + (1 - views.opacity[..., None]) * sample_sky(sky, directions)


class SplatRenderer:
    """Draws one scene by rasterizing its Gaussians; implements `neural_sim.rendering.renderer.Renderer`.

    All lenses of `neural_sim.distortion` are drawn. Under a rolling shutter the camera and the road users move while
    lines are read; gsplat draws the road users where they are half-way. Outside what a lens covers pixels are black,
    and the colour of a camera's ego mask lies over everything.

    Attributes:
        name: "splat".
        backend, backend_reason: which rasterizer draws, and why; for the start-up banner.
    """

    name = "splat"

    def __init__(self, scene: Scene, device: torch.device | str = "cpu") -> None:
        self.backend, self.backend_reason = choose_backend(device)
        self.device = torch.device(device if self.backend == "gsplat" else "cpu")
        self._names = tuple(sorted(scene.actors))
        parts = [scene.background, scene.road, *(scene.actors[name] for name in self._names)]
        degree = max(part.sh_degree for part in parts)
        self._gaussians = Gaussians.concatenate([_raised_to(part, degree) for part in parts]).to(self.device)
        frames = [0, 0, *range(1, len(self._names) + 1)]
        owner = [torch.full((len(part),), frame) for part, frame in zip(parts, frames, strict=True)]
        self._owner, self._sky = torch.cat(owner).to(self.device), scene.sky.float().to(self.device)

    @torch.no_grad()
    def render(self, requests: Sequence[RenderRequest]) -> list[RenderedImage]:
        """Draw every request; images come in the order of the requests.

        Road users without Gaussians are not drawn, nor are actors of the scene that a request does not place. Raises
        `ValueError` naming what the rasterizer cannot draw.
        """
        images: list[RenderedImage | None] = [None] * len(requests)
        for indices in _batches(requests):
            batch = [requests[i] for i in indices]
            for i, image in zip(indices, self._render_batch(batch), strict=True):
                images[i] = image
        return [image for image in images if image is not None]

    def _render_batch(self, requests: list[RenderRequest]) -> list[RenderedImage]:
        """Draw requests that share image size, lens and shutter in one call."""
        camera, rolling = requests[0].camera, _is_rolling(requests[0])
        T_world_camera = np.stack([request.T_world_camera_open for request in requests])
        close = np.stack([request.T_world_camera_close for request in requests]) if rolling else None
        views = rasterize(
            self._gaussians,
            torch.from_numpy(invert_pose(T_world_camera)).to(self.device),
            torch.from_numpy(np.stack([request.camera.K for request in requests])).to(self.device),
            camera.width_px,
            camera.height_px,
            backend=self.backend,
            lens=camera.distortion,
            shutter=None if close is None else self._shutter(close, camera.shutter_direction),
            actors=self._placed(requests, rolling),
        )
        rgb = self._with_sky(views, requests, T_world_camera, close)
        for image, request in zip(rgb, requests, strict=True):
            if request.camera.ego_mask is not None:
                request.camera.ego_mask.paint(image)
        depth_m, opacity = views.depth_m.cpu().numpy(), views.opacity.cpu().numpy()
        return [RenderedImage(rgb[v], depth_m[v], opacity[v]) for v in range(len(requests))]

    def _shutter(self, T_world_camera_close: Float[np.ndarray, "v 4 4"], direction: str) -> Shutter:
        return Shutter(torch.from_numpy(invert_pose(T_world_camera_close)).to(self.device), direction)

    def _placed(self, requests: list[RenderRequest], rolling: bool) -> Actors | None:
        """The scene's actors at the poses of each request; those that it does not place are hidden."""
        if not self._names:
            return None
        if not rolling:
            return Actors(self._owner, self._stacked([request.T_world_actors for request in requests]))
        ends = [_actors_at_ends(request) for request in requests]
        if self.backend == "gsplat":
            return Actors(self._owner, self._stacked([_half_way(*pair) for pair in ends]))
        opened, closed = (self._stacked([pair[k] for pair in ends]) for k in (0, 1))
        return Actors(self._owner, opened, closed)

    def _stacked(self, placed: list[Poses]) -> Float[Tensor, "v a 4 4"]:
        hidden = np.full((4, 4), np.nan)
        poses = np.stack([np.stack([poses.get(name, hidden) for name in self._names]) for poses in placed])
        return torch.from_numpy(poses).to(self.device)

    def _with_sky(
        self,
        views: RasterizedViews,
        requests: list[RenderRequest],
        T_world_camera: Float[np.ndarray, "v 4 4"],
        close: Float[np.ndarray, "v 4 4"] | None,
    ) -> list[Float[np.ndarray, "h w 3"]]:
        """RGB images in 0..1 with the sky behind."""
        camera, K = requests[0].camera, np.stack([request.camera.K for request in requests])
        if self.backend == "cpu":
            return [
                self._cpu_sky(views, v, requests[v], None if close is None else close[v]) for v in range(len(requests))
            ]
        poses, intrinsics = (torch.from_numpy(a).float().to(self.device) for a in (T_world_camera, K))
        ends = None if close is None else (torch.from_numpy(close).to(self.device), camera.shutter_direction)
        directions = view_directions(
            intrinsics, poses, camera.width_px, camera.height_px, lens=camera.distortion, close=ends
        )
        return list(compose(views, self._sky, directions).clamp(0.0, 1.0).cpu().numpy())

    def _cpu_sky(
        self, views: RasterizedViews, v: int, request: RenderRequest, close: Float[np.ndarray, "4 4"] | None
    ) -> Float[np.ndarray, "h w 3"]:
        from neural_sim.rendering.cpu.sky import add_sky, add_sky_along

        camera, pose = request.camera, request.T_world_camera_open
        size, by_rows = (camera.width_px, camera.height_px), is_read_by_rows(camera.shutter_direction)
        rgb, opacity, sky = views.rgb[v].numpy(), views.opacity[v].numpy(), self._sky.contiguous().numpy()
        if camera.distortion is None and close is None:
            return add_sky(rgb, opacity, sky, camera.K, np.ascontiguousarray(pose[:3, :3]))
        poses = pose[None]
        if close is not None:
            ends = torch.from_numpy(pose)[None], torch.from_numpy(close)[None]
            poses = line_poses(*ends, camera.shutter_direction, *size)[0].numpy()
        rays = view_rays(camera.K, *size, camera.distortion)
        return add_sky_along(rgb, opacity, sky, rays, np.ascontiguousarray(poses), by_rows)


def _batches(requests: Sequence[RenderRequest]) -> list[list[int]]:
    """Indices of requests that one rasterizer call can draw: same image size, lens and shutter."""
    groups: dict[tuple, list[int]] = {}
    for i, request in enumerate(requests):
        camera, rolling = request.camera, _is_rolling(request)
        key = (camera.width_px, camera.height_px, camera.distortion, camera.shutter_direction if rolling else None)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _is_rolling(request: RenderRequest) -> bool:
    """Whether anything moves while the shutter is open."""
    if request.camera.shutter_us == 0:
        return False
    stands = np.array_equal(request.T_world_camera_open, request.T_world_camera_close)
    return not stands or request.T_world_actors_open is not None or request.T_world_actors_close is not None


def _actors_at_ends(request: RenderRequest) -> tuple[Poses, Poses]:
    """Poses of the road users when the shutter opens and when it closes."""
    opened, closed = request.T_world_actors_open, request.T_world_actors_close
    still = request.T_world_actors
    return (still if opened is None else opened), (still if closed is None else closed)


def _half_way(first: Poses, last: Poses) -> Poses:
    return {name: half_way_pose(pose, last[name]) for name, pose in first.items() if name in last}


def half_way_pose(first: Float[np.ndarray, "4 4"], last: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """The rigid transform in the middle between two."""
    return interpolate_poses(np.array([0, 2]), np.stack([first, last]), np.array([1]))[0]


def pose_at_mid_shutter(request: RenderRequest) -> Float[np.ndarray, "4 4"]:
    """The open pose of a global shutter, else the pose half-way to the close pose; for renderers of one pose."""
    if request.camera.shutter_us == 0:
        return request.T_world_camera_open
    return half_way_pose(request.T_world_camera_open, request.T_world_camera_close)


def _raised_to(gaussians: Gaussians, degree: int) -> Gaussians:
    """The same Gaussians with zero SH bands up to `degree`."""
    missing = (degree + 1) ** 2 - gaussians.sh.shape[1]
    if missing == 0:
        return gaussians
    padding = gaussians.sh.new_zeros(len(gaussians), missing, 3)
    tensors = {**gaussians.tensors(), "sh": torch.cat([gaussians.sh, padding], dim=1)}
    return Gaussians(**tensors)
