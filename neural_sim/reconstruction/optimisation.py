"""The optimisation loop: one training image per iteration."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_sim.progress import Progress
from neural_sim.reconstruction.actor_motion import ActorKnots, SweptSpace
from neural_sim.reconstruction.checkpoint import load_checkpoint, save_checkpoint
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.densification import constrain, densify
from neural_sim.reconstruction.drawing import Target, draw, make_target
from neural_sim.reconstruction.ground import GroundSurface
from neural_sim.reconstruction.loss import mean_over, sky_opacity, ssim
from neural_sim.reconstruction.model import ROAD, SceneModel
from neural_sim.reconstruction.placement import placed_actors
from neural_sim.reconstruction.views import View
from neural_sim.rendering.rasterize import RasterizedViews
from neural_sim.rendering.renderer import RenderRequest
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
# Step size of the actors' corrections, as a share of a metre or radian, and weight of their penalty in the loss.
_ACTOR_RATE, _ACTOR_PENALTY = 5e-3, 1e-3
_MEANS_REFERENCE_M = 10.0


@dataclass(frozen=True)
class Surroundings:
    """What stays fixed while a scene is optimised.

    Attributes:
        views: training views.
        requests: what to draw for each of them.
        tracks: moving road users, in the order of the model's owners.
        knots: when their poses can be corrected.
        swept: space that they drove through.
        surface: where the road Gaussians belong.
    """

    views: Sequence[View]
    requests: Sequence[RenderRequest]
    tracks: tuple[Track, ...]
    knots: ActorKnots
    swept: SweptSpace
    surface: GroundSurface


@dataclass(frozen=True)
class Running:
    """How one optimisation is run; none of it but a time budget shapes the result.

    Attributes:
        work_dir: where checkpoints go, or None.
        fingerprint: of everything that shapes the result; a checkpoint of another is ignored with a warning.
        spent_s: time that the reconstruction has taken before, which counts in a time budget, s.
        watch: called after every iteration with the number of iterations done.
    """

    work_dir: Path | None = None
    fingerprint: str = ""
    spent_s: float = 0.0
    watch: Callable[[int], None] | None = None


def optimise(model: SceneModel, world: Surroundings, config: ReconstructionConfig, seed: int, running: Running) -> int:
    """Fit `model` to the training views, in place, and return the number of iterations done.

    These are `config.iterations`, or fewer when `config.time_budget_s` is spent before: then every schedule (step
    sizes, image size, growth) follows the share of the time that is gone. Every random choice of iteration i comes
    from (seed, i), so without a time budget a run that continues from a checkpoint ends bit-identical to one that
    never stopped.
    """
    start, before_s = load_checkpoint(running.work_dir, model, running.fingerprint)
    clock = Clock(config.iterations, config.time_budget_s, before_s or running.spent_s)
    device = str(model.device)
    pairs = list(zip(world.views, world.requests, strict=True))
    whole = [make_target(view, request).to(device) for view, request in pairs]
    small = [make_target(view, request, reduction=2).to(device) for view, request in pairs]
    centers = np.stack([view.T_world_camera[:3, 3] for view in world.views])
    if start == 0:
        model.measure_distances(centers)
        constrain(model, world.surface, world.tracks)
    done = start
    with Progress("reconstruct", config.iterations, "it") as progress:
        progress.advance(start)
        while (share := clock.share(done)) < 1:
            index = view_at(done, len(world.views), seed)
            target = small[index] if share < config.half_resolution_share else whole[index]
            psnr = _step(model, world, config, share, index, target)
            done += 1
            _maintain(model, world, config, done, clock.share(done), seed, centers)
            if running.work_dir is not None and done % config.checkpoint_every == 0:
                save_checkpoint(running.work_dir, model, running.fingerprint, done, clock.spent_s)
            progress.advance(psnr_db=psnr, gaussians=str(len(model)))
            if running.watch is not None:
                running.watch(done)
    return done


class Clock:
    """How much of an optimisation is done: by iterations, or by time where a budget is tighter."""

    def __init__(self, iterations: int, budget_s: float, spent_s: float) -> None:
        self._iterations, self._budget_s = iterations, budget_s
        self._started_s = time.monotonic() - spent_s

    @property
    def spent_s(self) -> float:
        """Time taken so far, s."""
        return time.monotonic() - self._started_s

    def share(self, done: int) -> float:
        """Share of the work that is done after `done` iterations; 1 and more when it is over."""
        by_iterations = done / self._iterations
        return by_iterations if self._budget_s == 0 else max(by_iterations, self.spent_s / self._budget_s)


def view_at(iteration: int, view_count: int, seed: int) -> int:
    """The training view of `iteration`: every epoch shows each view once, in an order drawn from (seed, epoch)."""
    epoch, place = divmod(iteration, view_count)
    return int(np.random.default_rng([seed, epoch]).permutation(view_count)[place])


def _maintain(
    model: SceneModel,
    world: Surroundings,
    config: ReconstructionConfig,
    done: int,
    share: float,
    seed: int,
    centers: np.ndarray,
) -> None:
    if done % CONSTRAIN_EVERY == 0:
        constrain(model, world.surface, world.tracks)
    if done % config.densify_every == 0 and share <= config.densify_until_share:
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, done]).generate_state(1)[0]))
        densify(model, world.surface, world.swept, config.max_gaussians, config.growth, generator)
        model.group_owners()
        model.measure_distances(centers)


def _step(
    model: SceneModel,
    world: Surroundings,
    config: ReconstructionConfig,
    share: float,
    index: int,
    target: Target,
) -> float:
    """One gradient step on one view, with `share` of all the steps done; returns its PSNR before the step, dB."""
    actors = placed_actors(model, world.tracks, target.request, world.knots if config.refine_actors else None)
    offset_px = torch.zeros(1, len(model), 2, device=model.device, requires_grad=True)
    drawn, views = draw(model.gaussians(), model.sky, target, config.backend, actors, offset_px)
    image = _exposed(drawn, model.exposure[index]) if config.fit_exposure else drawn
    wanted = target.pixels()
    visible = views.visible[0]
    loss = (1 - config.ssim_weight) * mean_over(torch.abs(image - wanted), target.usable)
    loss = loss + config.ssim_weight * (1 - ssim(image, wanted, target.usable))
    loss = loss + _penalties(model, config, visible, views, target)
    if config.fit_exposure:
        loss = loss + _EXPOSURE_PENALTY * (model.exposure[index] ** 2).mean()
    if len(model.actor_offsets):
        loss = loss + _ACTOR_PENALTY * world.knots.penalty(model.actor_offsets)
    loss.backward()
    assert offset_px.grad is not None
    model.score += visible * offset_px.grad[0].norm(dim=1) * target.image.shape[1]
    _update(model, config, share, index, visible)
    with torch.no_grad():
        return float(-10 * torch.log10(mean_over((image - wanted) ** 2, target.usable).clamp_min(1e-10)))


def _exposed(image: Tensor, exposure: Float[Tensor, "2 3"]) -> Tensor:
    return image * torch.exp(exposure[0]) + exposure[1]


def _penalties(
    model: SceneModel, config: ReconstructionConfig, visible: Tensor, views: RasterizedViews, target: Target
) -> Tensor:
    """Opacity and relative size of what is seen, opacity in the sky, and missing opacity below the horizon."""
    seen = visible.float() / visible.sum().clamp_min(1)
    off_road = seen * (model.owner != ROAD)
    opacity = (torch.sigmoid(model.tensors["opacity_logits"]) * off_road).sum()
    relative = torch.exp(model.tensors["log_scales"]).mean(dim=1) / model.distance_m
    below = (target.directions()[..., 2] < -0.02).float()
    if target.usable is not None:
        below = below * target.usable
    hollow = ((1 - views.opacity[0]) * below).mean()
    penalty = config.opacity_penalty * opacity + config.scale_penalty * (relative * seen).sum()
    if target.sky is not None:
        penalty = penalty + config.sky_opacity_weight * sky_opacity(views.opacity[0], target.sky)
    return penalty + config.ground_opacity_weight * hollow


def _update(model: SceneModel, config: ReconstructionConfig, share: float, index: int, visible: Tensor) -> None:
    model.adam["gaussians"].step(model.tensors, visible, _rates(model, config, share))
    _update_sky(model)
    if config.fit_exposure:
        one = torch.zeros(len(model.exposure), dtype=torch.bool, device=model.device)
        one[index] = True
        rate = torch.full((1, 1), _EXPOSURE_RATE, device=model.device)
        model.adam["exposure"].step({"exposure": model.exposure}, one, {"exposure": rate})
    if config.refine_actors and len(model.actor_offsets):
        _update_actors(model, share)
    for leaf in (*model.tensors.values(), model.sky, model.exposure, model.actor_offsets):
        leaf.grad = None


def _update_actors(model: SceneModel, share: float) -> None:
    every = torch.ones(len(model.actor_offsets), dtype=torch.bool, device=model.device)
    # A turn moves the ends of a car by about two metres a radian.
    rate = _FINAL_SHARE**share * _ACTOR_RATE * torch.tensor([[0.5, 0.5, 0.5, 1.0, 1.0, 1.0]], device=model.device)
    model.adam["actor_offsets"].step({"actor_offsets": model.actor_offsets}, every, {"actor_offsets": rate})


def _update_sky(model: SceneModel) -> None:
    """Step the texels above the horizon that the view showed; below it a sky would hide holes in the ground."""
    sky = model.sky.detach().flatten(0, 2)
    assert model.sky.grad is not None
    sky.grad = model.sky.grad.flatten(0, 2)
    above = (texel_directions(model.sky.shape[1])[..., 2] > 0).flatten().to(model.device)
    seen = sky.grad.abs().sum(dim=1) > 0
    model.adam["sky"].step({"sky": sky}, above & seen, {"sky": torch.full((1, 1), _SKY_RATE, device=model.device)})


def _rates(model: SceneModel, config: ReconstructionConfig, share: float) -> dict[str, Tensor]:
    """Step sizes by tensor: centres move in proportion to their distance, road discs keep their orientation."""
    decay = _FINAL_SHARE**share
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
