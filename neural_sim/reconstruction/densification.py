"""Where Gaussians die, move and multiply.

The idea of 3DGS-MCMC (Kheradmand et al. 2024): the set only grows by copying, dead Gaussians are moved onto live ones,
and the number is capped. Sources are drawn by how strongly the images pull on their projected centres.
"""

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from neural_sim.reconstruction.actor_motion import SweptSpace
from neural_sim.reconstruction.actors import BOX_MARGIN
from neural_sim.reconstruction.ground import GroundSurface
from neural_sim.reconstruction.model import FIRST_ACTOR, ROAD, ROAD_THICKNESS_M, SceneModel, rotate
from neural_sim.road_users import Track

DEAD_OPACITY = 0.005
MAX_AXIS_RATIO = 10.0
# Largest standard deviation as a share of the distance from the nearest camera.
_MAX_RELATIVE_SCALE = 0.15
# The recording car drove through this space, so nothing static can be in it.
_DRIVEN_HALF_WIDTH_M = 1.1
_DRIVEN_HEIGHT_M = (0.3, 2.0)
_ROAD_HEIGHT_TOLERANCE_M = 0.1
_SPLIT_SHRINK = 1.6


@torch.no_grad()
def densify(
    model: SceneModel,
    surface: GroundSurface,
    swept: SweptSpace,
    max_gaussians: int,
    growth: float,
    generator: torch.Generator,
) -> None:
    """Move dead Gaussians onto live ones of the same kind, then add a share `growth` of new ones up to the cap.

    Road Gaussians only multiply among themselves. The scores start anew.
    """
    dead = dead_gaussians(model, surface, swept)
    is_road = model.owner == ROAD
    for kind in (is_road, ~is_road):
        _relocate(model, torch.nonzero(kind & dead)[:, 0], torch.nonzero(kind & ~dead)[:, 0], generator)
    count = min(max_gaussians - len(model), int(growth * len(model)))
    if count > 0:
        alive = torch.nonzero(~dead_gaussians(model, surface, swept))[:, 0]
        _grow(model, alive, count, generator)
    model.score = torch.zeros_like(model.score)


@torch.no_grad()
def dead_gaussians(model: SceneModel, surface: GroundSurface, swept: SweptSpace) -> Bool[Tensor, "n"]:
    """Invisible, non-finite, road Gaussians off the road, and static ones in space that any vehicle drove through."""
    opacity = torch.sigmoid(model.tensors["opacity_logits"])
    means = model.tensors["means_m"]
    dead = ~(opacity > DEAD_OPACITY) | ~means.isfinite().all(dim=1)
    positions = np.nan_to_num(means.detach().cpu().numpy())
    path_distance = surface.distance_at(positions[:, :2])
    height = positions[:, 2] - surface.height_at(positions[:, :2])
    driven = (path_distance < _DRIVEN_HALF_WIDTH_M) & (height > _DRIVEN_HEIGHT_M[0]) & (height < _DRIVEN_HEIGHT_M[1])
    driven |= swept.contains(positions)
    off_road = path_distance > surface.half_width_m
    driven, off_road = (torch.from_numpy(mask).to(model.device) for mask in (driven, off_road))
    is_road = model.owner == ROAD
    return dead | (driven & (model.owner < FIRST_ACTOR) & ~is_road) | (off_road & is_road)


@torch.no_grad()
def constrain(model: SceneModel, surface: GroundSurface, tracks: tuple[Track, ...]) -> None:
    """Keep road Gaussians flat on the road, actors in their boxes, and all of them bounded in size and elongation."""
    scales = model.tensors["log_scales"]
    scales.clamp_(max=torch.log(_MAX_RELATIVE_SCALE * model.distance_m)[:, None])
    is_road = model.owner == ROAD
    longest = scales.amax(dim=1, keepdim=True)
    floor = torch.where(is_road[:, None], -torch.inf, longest - float(np.log(MAX_AXIS_RATIO)))
    scales.copy_(torch.maximum(scales, floor))
    scales[is_road, 2] = float(np.log(ROAD_THICKNESS_M))
    _flatten_road(model, surface, torch.nonzero(is_road)[:, 0])
    for index, track in enumerate(tracks):
        rows = torch.nonzero(model.owner == FIRST_ACTOR + index)[:, 0]
        half = 0.5 * BOX_MARGIN * torch.tensor(track.size_m, device=model.device)
        model.tensors["means_m"][rows] = model.tensors["means_m"][rows].clamp(-half, half)
        scales[rows] = scales[rows].clamp(max=float(np.log(0.25 * min(track.size_m))))


def _flatten_road(model: SceneModel, surface: GroundSurface, rows: Int[Tensor, "r"]) -> None:
    means = model.tensors["means_m"]
    height = surface.height_at(means[rows, :2].detach().cpu().numpy())
    height = torch.from_numpy(height.astype(np.float32)).to(model.device)
    low, high = height - _ROAD_HEIGHT_TOLERANCE_M, height + _ROAD_HEIGHT_TOLERANCE_M
    means[rows, 2] = torch.minimum(torch.maximum(means[rows, 2], low), high)


def _draw(model: SceneModel, candidates: Int[Tensor, "c"], count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` of `candidates` without replacement (as far as they last) by score."""
    weight = model.score[candidates].cpu().double() + 1e-12
    drawn = torch.multinomial(weight, min(count, len(candidates)), replacement=False, generator=generator)
    return candidates[drawn.to(model.device)]


def _split(model: SceneModel, sources: Int[Tensor, "s"], generator: torch.Generator) -> dict[str, Tensor]:
    """Shrink `sources` to one half of themselves and return the other half: mirrored places drawn from the Gaussian."""
    tensors = model.tensors
    noise = torch.randn(len(sources), 3, generator=generator).to(model.device)
    offset = rotate(tensors["quaternions_xyzw"][sources], noise * torch.exp(tensors["log_scales"][sources]))
    other = {name: tensor.detach()[sources].clone() for name, tensor in tensors.items()}
    other["means_m"] += offset
    other["log_scales"] -= float(np.log(_SPLIT_SHRINK))
    tensors["means_m"][sources] -= offset
    tensors["log_scales"][sources] = other["log_scales"]
    model.adam["gaussians"].forget(sources)
    return other


def _relocate(model: SceneModel, dead: Int[Tensor, "d"], alive: Int[Tensor, "a"], generator: torch.Generator) -> None:
    if len(dead) == 0 or len(alive) == 0:
        return
    sources = _draw(model, alive, len(dead), generator)
    dead = dead[: len(sources)]
    for name, values in _split(model, sources, generator).items():
        model.tensors[name][dead] = values
    model.owner[dead], model.distance_m[dead] = model.owner[sources], model.distance_m[sources]
    model.adam["gaussians"].forget(dead)


def _grow(model: SceneModel, alive: Int[Tensor, "a"], count: int, generator: torch.Generator) -> None:
    sources = _draw(model, alive, count, generator)
    other = _split(model, sources, generator)
    model.append(other, model.owner[sources], model.distance_m[sources])
