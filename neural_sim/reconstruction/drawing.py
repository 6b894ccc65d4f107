"""Draws a view of Gaussians over the sky, with gradients."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction.views import View
from neural_sim.rendering.rasterize import RasterizedViews, rasterize
from neural_sim.rendering.sky import view_directions
from neural_sim.rendering.splat_renderer import compose


@dataclass(frozen=True)
class Target:
    """A view at one resolution, as tensors.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        T_camera_world, T_world_camera: float32 [1, 4, 4].
        K: float32 [1, 3, 3], px.
    """

    image: Tensor
    T_camera_world: Float[Tensor, "1 4 4"]
    T_world_camera: Float[Tensor, "1 4 4"]
    K: Float[Tensor, "1 3 3"]

    def pixels(self) -> Float[Tensor, "h w 3"]:
        """The image as float32 0..1."""
        return self.image.float() / 255.0

    def directions(self) -> Float[Tensor, "h w 3"]:
        """Unit world directions of the pixel centres; not kept, because a drive of them fills the memory."""
        height, width = self.image.shape[:2]
        return view_directions(self.K, self.T_world_camera, width, height)[0]

    def to(self, device: str) -> "Target":
        """The same target on `device`."""
        tensors = (self.image, self.T_camera_world, self.T_world_camera, self.K)
        return Target(*(tensor.to(device) for tensor in tensors))


def make_target(view: View, reduction: int = 1) -> Target:
    """The view with its image reduced `reduction` times by area averaging."""
    camera, image = view.camera, view.image
    if reduction > 1:
        size = (max(1, camera.width_px // reduction), max(1, camera.height_px // reduction))
        camera, image = camera.resized(*size), np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    matrices = (view.T_camera_world, view.T_world_camera, camera.K)
    return Target(torch.from_numpy(image), *(torch.from_numpy(m.astype(np.float32))[None] for m in matrices))


def draw(
    gaussians: Gaussians, sky: Tensor, target: Target, backend: str, means_px_offset: Tensor | None = None
) -> tuple[Float[Tensor, "h w 3"], RasterizedViews]:
    """Gaussians (world frame) composited over the sky, and the rasterizer's own result. Differentiable."""
    height, width = target.image.shape[:2]
    views = rasterize(
        gaussians, target.T_camera_world, target.K, width, height, backend=backend, means_px_offset=means_px_offset
    )
    return compose(views, sky, target.directions()[None])[0], views
