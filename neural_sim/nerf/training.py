"""From a clip to a NeRF."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from neural_sim.cameras import require_pinhole
from neural_sim.clips.clip import Clip
from neural_sim.nerf.config import NerfConfig
from neural_sim.nerf.drawing import camera_rays, draw, model_of
from neural_sim.nerf.model import Nerfacto, losses
from neural_sim.nerf.world import NerfWorld
from neural_sim.progress import Progress
from neural_sim.reconstruction.actors import moving_tracks, pixels_on_boxes
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.loss import psnr_db, ssim
from neural_sim.reconstruction.views import View, check_clip, load_views
from neural_sim.road_users import Track

logger = logging.getLogger("roadloop")

# The cameras' positions span this share of the model's cube, so that what stands beside the road is inside it too.
_DRIVEN_SHARE = 0.8
_MIN_UNIT_M = 10.0
_ADAM_EPSILON = 1e-15


@dataclass(frozen=True)
class TrainingPixels:
    """Every pixel that may be trained on.

    Attributes:
        rgb: uint8 [P, 3].
        view: int32 [P], index of the view that shows it.
        local: float32 [P, 3], ray in the camera frame, depth 1 along the optical axis.
        R_world_camera: float32 [V, 3, 3] of each view.
        position_m: float64 [V, 3], world position of each view's camera, m.
    """

    rgb: UInt8[np.ndarray, "p 3"]
    view: Int[np.ndarray, "p"]
    local: Float[np.ndarray, "p 3"]
    R_world_camera: Float[np.ndarray, "v 3 3"]
    position_m: Float[np.ndarray, "v 3"]


def train_nerf(clip: Clip, config: NerfConfig, *, seed: int, device: str = "cpu") -> NerfWorld:
    """Reconstruct the static world of a clip as a NeRF.

    Pixels in the boxes of moving road users are left out of the training: the NeRF shows what is behind them, as far as
    other frames do. Deterministic for a seed and a number of threads. Held-out quality is in
    `NerfWorld.metadata["quality"]`, with those pixels left out there too. Raises `InputError` on a clip that cannot be
    reconstructed (see `reconstruction.views.check_clip`), on a lens that is not a pinhole, and when nerfstudio is not
    installed. Rolling shutters are taken as global.
    """
    started_s = time.monotonic()
    for frames in clip.cameras.values():
        require_pinhole(frames.camera, "the NeRF")
    check_clip(clip)
    views = _views(clip, config)
    moving = moving_tracks(clip.tracks)
    training = [view for view in views if not view.held_out]
    pixels = training_pixels(training, moving)
    center_m, unit_m = _cube(pixels.position_m)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Nerfacto(config, len(training)).to(device).train()
        _optimise(model, pixels, config, center_m, unit_m, seed)
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    world = NerfWorld(clip.clip_id, config, len(training), center_m, unit_m, weights, {})
    seconds = time.monotonic() - started_s
    quality = measure_nerf(world, [view for view in views if view.held_out], moving, device)
    logger.info(
        "nerf %s: held-out %.2f dB, SSIM %.3f, trained in %.1f s",
        clip.clip_id,
        quality["psnr_db"],
        quality["ssim"],
        seconds,
    )
    return _described(world, clip, seed, quality, training[0])


def training_pixels(views: Sequence[View], moving: Sequence[Track]) -> TrainingPixels:
    """All pixels of `views` but those that `covered_by` leaves out."""
    kept = [~covered_by(view, moving) for view in views]
    rays = [camera_rays(view.camera, np.eye(4)) for view in views]
    return TrainingPixels(
        rgb=np.concatenate([view.image.reshape(-1, 3)[keep] for view, keep in zip(views, kept, strict=True)]),
        view=np.concatenate([np.full(keep.sum(), index, np.int32) for index, keep in enumerate(kept)]),
        local=np.concatenate([ray[keep].astype(np.float32) for ray, keep in zip(rays, kept, strict=True)]),
        R_world_camera=np.stack([view.T_world_camera[:3, :3] for view in views]).astype(np.float32),
        position_m=np.stack([view.T_world_camera[:3, 3] for view in views]),
    )


def covered_by(view: View, moving: Sequence[Track]) -> Bool[np.ndarray, "n"]:
    """Which pixels of a view, row by row, lie on the boxes of moving road users or show the recording car itself."""
    height, width = view.image.shape[:2]
    rows, columns = np.divmod(np.arange(height * width), width)
    pixels = np.stack([columns + 0.5, rows + 0.5], axis=-1)
    return pixels_on_boxes(view, pixels, moving) | ~view.is_usable(pixels)


def measure_nerf(
    world: NerfWorld, views: Sequence[View], moving: Sequence[Track], device: str = "cpu"
) -> dict[str, Any]:
    """Mean PSNR (dB) and SSIM over `views` with the figures of each, as plain JSON values.

    Pixels in the boxes of moving road users count as equal: the NeRF alone has no road users.
    """
    model = model_of(world, device)
    frames = []
    for view in views:
        rgb, _, _ = draw(model, world, view.camera, view.T_world_camera)
        wanted = (view.image / 255.0).astype(np.float32)
        rgb = np.where(covered_by(view, moving).reshape(*rgb.shape[:2], 1), wanted, rgb)
        image, target = torch.from_numpy(np.ascontiguousarray(rgb)), torch.from_numpy(wanted)
        figures = {"psnr_db": psnr_db(image, target), "ssim": float(ssim(image, target))}
        frames.append({"camera": view.camera.name, "index": view.frame_index, **figures})
    means = {name: float(np.mean([frame[name] for frame in frames])) for name in ("psnr_db", "ssim")}
    return {**means, "frames": frames}


def _views(clip: Clip, config: NerfConfig) -> list[View]:
    loading = ReconstructionConfig(image_width_px=config.image_width_px, holdout_every=config.holdout_every)
    return [view for frames in clip.cameras.values() for view in load_views(clip, frames, loading)[0]]


def _cube(position_m: Float[np.ndarray, "v 3"]) -> tuple[Float[np.ndarray, "3"], float]:
    """Middle of the driven area and the length of the model's unit, m."""
    low, high = position_m.min(axis=0), position_m.max(axis=0)
    return (low + high) / 2, max(float((high - low).max()) / 2 / _DRIVEN_SHARE, _MIN_UNIT_M)


def _optimise(
    model: Nerfacto, pixels: TrainingPixels, config: NerfConfig, center_m: np.ndarray, unit_m: float, seed: int
) -> None:
    rng = np.random.default_rng([seed, 1])
    device = next(model.parameters()).device
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate, eps=_ADAM_EPSILON, fused=True)
    decay = (config.final_learning_rate / config.learning_rate) ** (1 / config.iterations)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, decay)
    near, far = config.near_m / unit_m, config.far_m / unit_m
    origins = ((pixels.position_m - center_m) / unit_m).astype(np.float32)
    with Progress(f"nerf {config.image_width_px} px", config.iterations, "step") as progress:
        for step in range(config.iterations):
            chosen = rng.integers(len(pixels.view), size=config.rays_per_step)
            view = pixels.view[chosen]
            rays = np.einsum("nij,nj->ni", pixels.R_world_camera[view], pixels.local[chosen])
            rays /= np.linalg.norm(rays, axis=1, keepdims=True)
            batch = (torch.from_numpy(array).to(device) for array in (origins[view], rays, view.astype(np.int64)))
            start, along, index = batch
            model.before_step(step)
            loss = losses(
                model(start, along, near, far, index),
                torch.from_numpy(pixels.rgb[chosen]).to(device).float() / 255.0,
                config.distortion_weight,
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            progress.advance(loss=float(loss.detach()))


def _described(world: NerfWorld, clip: Clip, seed: int, quality: dict[str, Any], view: View) -> NerfWorld:
    metadata = {
        "source": dict(clip.source),
        "seed": seed,
        "quality": {"held_out": quality, "image_size_px": [view.camera.width_px, view.camera.height_px]},
    }
    fields = {**vars(world), "metadata": metadata}
    return NerfWorld(**fields)
