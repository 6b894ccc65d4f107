"""Draws a view of Gaussians over the sky, with gradients."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neural_sim.frames import invert_pose
from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction.views import View
from neural_sim.rendering.rasterize import Actors, RasterizedViews, Shutter, rasterize
from neural_sim.rendering.renderer import RenderRequest
from neural_sim.rendering.sky import view_directions
from neural_sim.rendering.splat_renderer import compose


@dataclass(frozen=True)
class Target:
    """A view at one resolution, as tensors, and what to draw for it.

    Attributes:
        request: with the camera at the size of the image.
        image: uint8 [H, W, 3] RGB.
        usable: bool [H, W], which pixels show the world, or None for all.
        sky: bool [H, W], which pixels surely show sky, or None where that is not known.
        T_camera_world, T_world_camera: float32 [1, 4, 4], when the first line is read.
        K: float32 [1, 3, 3], px.
        T_world_camera_close: float32 [1, 4, 4], when the last line is read; None with a global shutter.
    """

    request: RenderRequest
    image: Tensor
    usable: Bool[Tensor, "h w"] | None
    sky: Bool[Tensor, "h w"] | None
    T_camera_world: Float[Tensor, "1 4 4"]
    T_world_camera: Float[Tensor, "1 4 4"]
    K: Float[Tensor, "1 3 3"]
    T_world_camera_close: Float[Tensor, "1 4 4"] | None

    def pixels(self) -> Float[Tensor, "h w 3"]:
        """The image as float32 0..1."""
        return self.image.float() / 255.0

    def directions(self) -> Float[Tensor, "h w 3"]:
        """Unit world directions of the pixel centres; not kept, because a drive of them fills the memory."""
        camera, close = self.request.camera, self.T_world_camera_close
        ends = None if close is None else (close, camera.shutter_direction)
        size = (camera.width_px, camera.height_px)
        return view_directions(self.K, self.T_world_camera, *size, lens=camera.distortion, close=ends)[0]

    def shutter(self) -> Shutter | None:
        """The rolling shutter, if the camera has one."""
        if self.T_world_camera_close is None:
            return None
        close = _batched(invert_pose(self.request.T_world_camera_close)).to(self.T_world_camera_close.device)
        return Shutter(close, self.request.camera.shutter_direction)

    def to(self, device: str) -> "Target":
        """The same target on `device`."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


def make_target(view: View, request: RenderRequest, reduction: int = 1) -> Target:
    """The view, taken as `request` says, with its image reduced `reduction` times by area averaging."""
    camera, image, usable, sky = view.camera, view.image, view.usable, view.sky
    if reduction > 1:
        size = (max(1, camera.width_px // reduction), max(1, camera.height_px // reduction))
        camera, image = camera.resized(*size), np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        usable, sky = (None if mask is None else _wholly(mask, size) for mask in (usable, sky))
    opened, closed = request.T_world_camera_open, request.T_world_camera_close
    return Target(
        request=replace(request, camera=camera),
        image=torch.from_numpy(image),
        usable=None if usable is None else torch.from_numpy(usable),
        sky=None if sky is None else torch.from_numpy(sky),
        T_camera_world=_batched(invert_pose(opened)),
        T_world_camera=_batched(opened),
        K=_batched(camera.K),
        T_world_camera_close=_batched(closed) if camera.shutter_us else None,
    )


def draw(
    gaussians: Gaussians,
    sky: Tensor,
    target: Target,
    backend: str,
    actors: Actors | None = None,
    means_px_offset: Tensor | None = None,
) -> tuple[Float[Tensor, "h w 3"], RasterizedViews]:
    """Gaussians, each in the frame of its owner, composited over the sky, and the rasterizer's result. Differentiable.

    Without `actors` all are in the world frame.
    """
    camera = target.request.camera
    views = rasterize(
        gaussians,
        target.T_camera_world,
        target.K,
        camera.width_px,
        camera.height_px,
        backend=backend,
        means_px_offset=means_px_offset,
        lens=camera.distortion,
        shutter=target.shutter(),
        actors=actors,
    )
    return compose(views, sky, target.directions()[None])[0], views


def _batched(matrix: np.ndarray) -> Tensor:
    return torch.from_numpy(matrix.astype(np.float32))[None]


def _wholly(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Which pixels of a smaller image have pixels of the mask only."""
    return np.asarray(cv2.resize((~mask).astype(np.float32), size, interpolation=cv2.INTER_AREA)) == 0
