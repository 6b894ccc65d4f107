"""The optimisation loop: one training image per iteration."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_sim.progress import Progress
from neural_sim.reconstruction.actors import actor_poses
from neural_sim.reconstruction.checkpoint import load_checkpoint, save_checkpoint
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.densification import constrain, densify
from neural_sim.reconstruction.drawing import Target, draw, make_target
from neural_sim.reconstruction.ground import GroundSurface
from neural_sim.reconstruction.loss import ssim
from neural_sim.reconstruction.model import ROAD, SceneModel
from neural_sim.reconstruction.views import View
from neural_sim.rendering.rasterize import RasterizedViews
from neural_sim.rendering.sky import texel_directions
from neural_sim.road_users import Track

logger = logging.getLogger("roadloop")

CONSTRAIN_EVERY = 10
# Runs here are ten times shorter than the usual 30k iterations: rates start high and all decay to a tenth.
_QUATERNION_RATE, _SCALE_RATE, _OPACITY_RATE, _SH_RATE = 4e-3, 4.5e-2, 5e-2, 7.5e-3
_FINAL_SHARE = 0.1
_SH_DETAIL_SHARE = 0.05
_SKY_RATE, _EXPOSURE_RATE = 1e-2, 1e-3
_EXPOSURE_PENALTY = 0.1
_MEANS_REFERENCE_M = 10.0


@dataclass(frozen=True)
class Surroundings:
    """What stays fixed while a scene is optimised.

    Attributes:
        views: training views.
        tracks: moving road users, in the order of the model's owners.
        surface: where the road Gaussians belong.
    """

    views: Sequence[View]
    tracks: tuple[Track, ...]
    surface: GroundSurface


def optimise(
    model: SceneModel,
    world: Surroundings,
    config: ReconstructionConfig,
    seed: int,
    work_dir: Path | None,
    fingerprint: str,
) -> None:
    """Fit `model` to the training views, in place, for `config.iterations`.

    Every random choice of iteration i comes from (seed, i), so a run that continues from a checkpoint in `work_dir`
    ends bit-identical to one that never stopped. A checkpoint with another `fingerprint` is ignored with a warning.
    """
    start = load_checkpoint(work_dir, model, fingerprint)
    device = str(model.device)
    whole = [make_target(view).to(device) for view in world.views]
    small = [make_target(view, reduction=2).to(device) for view in world.views]
    centers = np.stack([view.T_world_camera[:3, 3] for view in world.views])
    if start == 0:
        model.measure_distances(centers)
        constrain(model, world.surface, world.tracks)
    with Progress("reconstruct", config.iterations, "it") as progress:
        progress.advance(start)
        for iteration in range(start, config.iterations):
            index = view_at(iteration, len(world.views), seed)
            is_small = iteration < config.half_resolution_share * config.iterations
            target = small[index] if is_small else whole[index]
            psnr = _step(model, world, config, iteration, index, target)
            _maintain(model, world, config, iteration + 1, seed, centers)
            if work_dir is not None and (iteration + 1) % config.checkpoint_every == 0:
                save_checkpoint(work_dir, model, fingerprint, iteration + 1)
            progress.advance(psnr_db=psnr, gaussians=str(len(model)))


def view_at(iteration: int, view_count: int, seed: int) -> int:
    """The training view of `iteration`: every epoch shows each view once, in an order drawn from (seed, epoch)."""
    epoch, place = divmod(iteration, view_count)
    return int(np.random.default_rng([seed, epoch]).permutation(view_count)[place])


def _maintain(
    model: SceneModel, world: Surroundings, config: ReconstructionConfig, done: int, seed: int, centers: np.ndarray
) -> None:
    if done % CONSTRAIN_EVERY == 0:
        constrain(model, world.surface, world.tracks)
    if done % config.densify_every == 0 and done <= config.densify_until_share * config.iterations:
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, done]).generate_state(1)[0]))
        densify(model, world.surface, config.max_gaussians, config.growth, generator)
        model.measure_distances(centers)


def _step(
    model: SceneModel,
    world: Surroundings,
    config: ReconstructionConfig,
    iteration: int,
    index: int,
    target: Target,
) -> float:
    """One gradient step on one view; returns its PSNR before the step, dB."""
    posed = model.posed(actor_poses(world.tracks, world.views[index].t_us))
    offset_px = torch.zeros(1, len(model), 2, device=model.device, requires_grad=True)
    drawn, views = draw(posed, model.sky, target, config.backend, offset_px)
    image = _exposed(drawn, model.exposure[index]) if config.fit_exposure else drawn
    wanted = target.pixels()
    visible = views.visible[0]
    loss = (1 - config.ssim_weight) * torch.mean(torch.abs(image - wanted))
    loss = loss + config.ssim_weight * (1 - ssim(image, wanted))
    loss = loss + _penalties(model, config, visible, views, target)
    if config.fit_exposure:
        loss = loss + _EXPOSURE_PENALTY * (model.exposure[index] ** 2).mean()
    loss.backward()
    assert offset_px.grad is not None
    model.score += visible * offset_px.grad[0].norm(dim=1) * target.image.shape[1]
    _update(model, config, iteration, index, visible)
    with torch.no_grad():
        return float(-10 * torch.log10(torch.mean((image - wanted) ** 2).clamp_min(1e-10)))


def _exposed(image: Tensor, exposure: Float[Tensor, "2 3"]) -> Tensor:
    return image * torch.exp(exposure[0]) + exposure[1]


def _penalties(
    model: SceneModel, config: ReconstructionConfig, visible: Tensor, views: RasterizedViews, target: Target
) -> Tensor:
    """Opacity and relative size of what is seen, and missing opacity below the horizon."""
    seen = visible.float() / visible.sum().clamp_min(1)
    off_road = seen * (model.owner != ROAD)
    opacity = (torch.sigmoid(model.tensors["opacity_logits"]) * off_road).sum()
    relative = torch.exp(model.tensors["log_scales"]).mean(dim=1) / model.distance_m
    below = (target.directions()[..., 2] < -0.02).float()
    hollow = ((1 - views.opacity[0]) * below).mean()
    penalty = config.opacity_penalty * opacity + config.scale_penalty * (relative * seen).sum()
    return penalty + config.ground_opacity_weight * hollow


def _update(model: SceneModel, config: ReconstructionConfig, iteration: int, index: int, visible: Tensor) -> None:
    model.adam["gaussians"].step(model.tensors, visible, _rates(model, config, iteration))
    _update_sky(model)
    if config.fit_exposure:
        one = torch.zeros(len(model.exposure), dtype=torch.bool, device=model.device)
        one[index] = True
        rate = torch.full((1, 1), _EXPOSURE_RATE, device=model.device)
        model.adam["exposure"].step({"exposure": model.exposure}, one, {"exposure": rate})
    for leaf in (*model.tensors.values(), model.sky, model.exposure):
        leaf.grad = None


def _update_sky(model: SceneModel) -> None:
    """Step the texels above the horizon that the view showed; below it a sky would hide holes in the ground."""
    sky = model.sky.detach().flatten(0, 2)
    assert model.sky.grad is not None
    sky.grad = model.sky.grad.flatten(0, 2)
    above = (texel_directions(model.sky.shape[1])[..., 2] > 0).flatten().to(model.device)
    seen = sky.grad.abs().sum(dim=1) > 0
    model.adam["sky"].step({"sky": sky}, above & seen, {"sky": torch.full((1, 1), _SKY_RATE, device=model.device)})


def _rates(model: SceneModel, config: ReconstructionConfig, iteration: int) -> dict[str, Tensor]:
    """Step sizes by tensor: centres move in proportion to their distance, road discs keep their orientation."""
    decay = _FINAL_SHARE ** (iteration / config.iterations)
    colors = torch.full((1, 3 * model.tensors["sh"].shape[1]), _SH_RATE * _SH_DETAIL_SHARE, device=model.device)
    colors[0, :3] = _SH_RATE
    turning = torch.where(model.owner == ROAD, 0.0, _QUATERNION_RATE)[:, None]
    one = torch.ones(1, 1, device=model.device)
    return {
        "means_m": (config.means_learning_rate_m * decay / _MEANS_REFERENCE_M * model.distance_m)[:, None],
        "quaternions_xyzw": decay * turning,
        "log_scales": decay * _SCALE_RATE * one,
        "opacity_logits": decay * _OPACITY_RATE * one,
        "sh": decay * colors,
    }
