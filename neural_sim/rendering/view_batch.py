"""What to draw: V views of one set of Gaussians through one lens, with what moves among them and meanwhile."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_sim.cameras import SHUTTER_DIRECTIONS
from neural_sim.distortion import Distortion
from neural_sim.gaussians import Gaussians


@dataclass(frozen=True)
class Shutter:
    """A rolling shutter: lines are read one after another, at equal steps, while the camera moves.

    Attributes:
        T_camera_world_close: [V, 4, 4], world to camera when the last line is read; the pose of the batch is that of
            the first line. In between the camera's place moves linearly and its rotation by slerp.
        direction: in which order lines are read, one of `neural_sim.cameras.SHUTTER_DIRECTIONS`.
    """

    T_camera_world_close: Float[Tensor, "v 4 4"]
    direction: str = SHUTTER_DIRECTIONS[0]


@dataclass(frozen=True)
class Actors:
    """Rigid bodies whose Gaussians are given in their own frames; spherical harmonics turn with them.

    Attributes:
        owner: int64 [N], 0 for a Gaussian in the world frame, 1 + a for one in the frame of actor a. Equal owners
            should lie together: runs of one owner are drawn in blocks.
        T_world_actor: [V, A, 4, 4], when the shutter opens; a pose that is not finite hides the actor.
        T_world_actor_close: [V, A, 4, 4], when a rolling shutter closes; None for actors that stand still meanwhile.
    """

    owner: Int[Tensor, "n"]
    T_world_actor: Float[Tensor, "v a 4 4"]
    T_world_actor_close: Float[Tensor, "v a 4 4"] | None = None


@dataclass(frozen=True)
class ViewBatch:
    """V views to draw in one call; see `neural_sim.rendering.rasterize.rasterize` for the attributes."""

    T_camera_world: Float[Tensor, "v 4 4"]
    K: Float[Tensor, "v 3 3"]
    width_px: int
    height_px: int
    means_px_offset: Float[Tensor, "v n 2"] | None = None
    lens: Distortion | None = None
    shutter: Shutter | None = None
    actors: Actors | None = None
    antialias: bool = False

    def __len__(self) -> int:
        return len(self.T_camera_world)


def check_batch(gaussians: Gaussians, batch: ViewBatch) -> None:
    """Raise `ValueError` naming shapes or values that do not agree."""
    views, count, offset = len(batch), len(gaussians), batch.means_px_offset
    if batch.T_camera_world.shape != (views, 4, 4) or batch.K.shape != (views, 3, 3) or views == 0:
        raise ValueError(
            f"rasterize: T_camera_world {tuple(batch.T_camera_world.shape)} and K {tuple(batch.K.shape)}; "
            "expected [V, 4, 4] and [V, 3, 3] with V > 0"
        )
    if batch.width_px <= 0 or batch.height_px <= 0:
        raise ValueError(f"rasterize: image of {batch.width_px}x{batch.height_px} px; expected positive sizes")
    if gaussians.sh.shape[1:] not in ((1, 3), (4, 3), (9, 3), (16, 3)):
        raise ValueError(f"rasterize: sh {tuple(gaussians.sh.shape)}; expected [N, 1|4|9|16, 3]")
    if offset is not None and offset.shape != (views, count, 2):
        raise ValueError(f"rasterize: means_px_offset {tuple(offset.shape)}; expected {(views, count, 2)}")
    _check_shutter(batch)
    _check_actors(count, batch)


def _check_shutter(batch: ViewBatch) -> None:
    if batch.shutter is None:
        return
    close = batch.shutter.T_camera_world_close
    if close.shape != batch.T_camera_world.shape:
        raise ValueError(f"rasterize: T_camera_world_close {tuple(close.shape)}; expected {(len(batch), 4, 4)}")
    if batch.shutter.direction not in SHUTTER_DIRECTIONS:
        raise ValueError(
            f"rasterize: shutter direction {batch.shutter.direction!r}; expected one of {', '.join(SHUTTER_DIRECTIONS)}"
        )


def _check_actors(count: int, batch: ViewBatch) -> None:
    if batch.actors is None:
        return
    owner, poses, close = batch.actors.owner, batch.actors.T_world_actor, batch.actors.T_world_actor_close
    if poses.ndim != 4 or poses.shape[0] != len(batch) or poses.shape[2:] != (4, 4):
        raise ValueError(f"rasterize: T_world_actor {tuple(poses.shape)}; expected [{len(batch)}, A, 4, 4]")
    if close is not None and (close.shape != poses.shape or batch.shutter is None):
        raise ValueError(
            f"rasterize: T_world_actor_close {tuple(close.shape)}; expected {tuple(poses.shape)} and a rolling shutter"
        )
    if owner.shape != (count,) or owner.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"rasterize: owner {owner.dtype} {tuple(owner.shape)}; expected int64 [{count}]")
    if count and not 0 <= int(owner.min()) <= int(owner.max()) <= poses.shape[1]:
        raise ValueError(
            f"rasterize: owner spans {int(owner.min())} to {int(owner.max())}; expected 0 to {poses.shape[1]}"
        )
