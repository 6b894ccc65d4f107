"""Where the rasterizer finds the moving road users while an image is exposed."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_sim.reconstruction.actor_motion import ActorKnots
from neural_sim.reconstruction.model import FIRST_ACTOR, SceneModel
from neural_sim.rendering.rasterize import Actors
from neural_sim.rendering.renderer import RenderRequest
from neural_sim.road_users import Track
from neural_sim.scenes.recorded_views import exposure_us


def placed_actors(
    model: SceneModel, tracks: Sequence[Track], request: RenderRequest, knots: ActorKnots | None
) -> Actors | None:
    """The actors of `model` where `request` has them, moved by its corrections at `knots`; None without any.

    `tracks` are the moving road users in the order of the model's owners; those that the request does not place are
    hidden. Under a rolling shutter they move from its opening to its closing. Differentiable in the corrections.
    """
    if not tracks:
        return None
    names = [track.track_id for track in tracks]
    owner = (model.owner - (FIRST_ACTOR - 1)).clamp_min(0)
    if request.T_world_actors_open is None or request.T_world_actors_close is None:
        return Actors(owner, _moved(model, names, request.T_world_actors, request.t_us, knots))
    ends = (request.T_world_actors_open, request.T_world_actors_close)
    times_us = exposure_us(request.camera, request.t_us)
    opened, closed = (_moved(model, names, *moment, knots) for moment in zip(ends, times_us, strict=True))
    return Actors(owner, opened, closed)


def _moved(
    model: SceneModel,
    names: Sequence[str],
    placed: Mapping[str, Float[np.ndarray, "4 4"]],
    t_us: int,
    knots: ActorKnots | None,
) -> Float[Tensor, "1 a 4 4"]:
    """World poses float64 of the boxes at `t_us`, with their corrections; NaN for those that are not there."""
    poses = torch.from_numpy(np.stack([placed.get(name, np.eye(4)) for name in names])).to(model.device)
    if knots is not None:
        poses = poses @ rigid_from_twist(knots.at(model.actor_offsets, t_us).double())
    hidden = torch.tensor([name not in placed for name in names], device=model.device)
    # Put in last, because a NaN would pass through the product into the gradient.
    return torch.where(hidden[:, None, None], torch.nan, poses)[None]


def rigid_from_twist(twists: Float[Tensor, "a 6"]) -> Float[Tensor, "a 4 4"]:
    """Rigid transforms of rotation vectors (rad) and translations (m). Differentiable, also at zero."""
    x, y, z = twists[:, :3].unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(-1, 3, 3)
    upper = torch.cat([torch.linalg.matrix_exp(cross), twists[:, 3:, None]], dim=-1)
    bottom = twists.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(twists), 1, 4)
    return torch.cat([upper, bottom], dim=-2)
