"""Draws whole images with a NeRF."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_sim.cameras import Camera
from neural_sim.errors import InputError
from neural_sim.nerf.model import Nerfacto
from neural_sim.nerf.world import NerfWorld


def model_of(world: NerfWorld, device: torch.device | str) -> Nerfacto:
    """The networks of `world` on `device`, ready to draw.

    Raises `InputError` when the weights do not fit the settings, or when nerfstudio is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        model = Nerfacto(world.config, world.num_images)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in world.weights.items()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:300]
        raise InputError(
            f"NeRF of {world.clip_id}: weights do not fit its settings ({problem}); train it again"
        ) from error
    return model.to(device).eval()


def camera_rays(camera: Camera, T_world_camera: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "n 3"]:
    """World directions of the pixel centres, row by row, scaled so that their depth along the optical axis is 1."""
    x = (np.arange(camera.width_px) + 0.5 - camera.cx_px) / camera.fx_px
    y = (np.arange(camera.height_px) + 0.5 - camera.cy_px) / camera.fy_px
    local = np.stack([*np.meshgrid(x, y), np.ones((camera.height_px, camera.width_px))], axis=-1).reshape(-1, 3)
    return local @ T_world_camera[:3, :3].T


@torch.no_grad()
def draw(
    model: Nerfacto, world: NerfWorld, camera: Camera, T_world_camera: Float[np.ndarray, "4 4"]
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """RGB 0..1, depth along the optical axis (m) and opacity 0..1 of a pinhole view, float32."""
    rays = camera_rays(camera, T_world_camera)
    lengths = np.linalg.norm(rays, axis=1)
    device = next(model.parameters()).device
    directions = torch.from_numpy(rays / lengths[:, None]).float().to(device)
    origin = torch.from_numpy((T_world_camera[:3, 3] - world.center_m) / world.unit_m).float().to(device)
    parts = [_draw_chunk(model, world, origin, chunk) for chunk in directions.split(world.config.chunk_rays)]
    rgb, distance, opacity = (torch.cat(values).cpu().numpy() for values in zip(*parts, strict=True))
    shape = (camera.height_px, camera.width_px)
    depth_m = (distance * world.unit_m / lengths).astype(np.float32)
    return np.clip(rgb, 0, 1).reshape(*shape, 3), depth_m.reshape(shape), np.clip(opacity, 0, 1).reshape(shape)


def _draw_chunk(
    model: Nerfacto, world: NerfWorld, origin: Float[Tensor, "3"], directions: Float[Tensor, "n 3"]
) -> tuple[Tensor, Tensor, Tensor]:
    indices = torch.zeros(len(directions), dtype=torch.long, device=directions.device)
    near, far = world.config.near_m / world.unit_m, world.config.far_m / world.unit_m
    found = model(origin.expand_as(directions), directions, near, far, indices)
    return found.rgb, found.distance, found.opacity
