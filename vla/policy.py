"""The policy protocol: observation in, K sampled plans out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

PLAN_STEPS = 64
PLAN_STEP_S = 0.1
ROUTE_POINTS = 20


class Observation(Protocol):
    """What a policy reads; the simulator's observation and a decoded shard both have this shape.

    t_us: int64 [B], now; images: uint8 [B, F, H, W, 3] by camera name, oldest first; image_times_us: int64 [B, F] by
    camera name; ego_history: float32 [B, 16, 4] (x, y, yaw, speed) every 0.1 s up to `t_us`, rig frame at `t_us`,
    m, rad, m/s; navigation: one instruction per rollout, may be empty; route: float32 [B, 20, 2], points (x, y) of the
    route over 80 m ahead, rig frame at `t_us`, m, NaN after its end, or None.
    """

    @property
    def t_us(self) -> Int[np.ndarray, "b"]:
        """Time of each observation, us."""
        ...

    @property
    def images(self) -> Mapping[str, UInt8[np.ndarray, "b f h w 3"]]:
        """Frames by camera name, oldest first."""
        ...

    @property
    def image_times_us(self) -> Mapping[str, Int[np.ndarray, "b f"]]:
        """Exposure time of each frame, us."""
        ...

    @property
    def ego_history(self) -> Float[np.ndarray, "b 16 4"]:
        """(x, y, yaw, speed) every 0.1 s up to now."""
        ...

    @property
    def navigation(self) -> tuple[str, ...]:
        """One instruction per rollout."""
        ...

    @property
    def route(self) -> Float[np.ndarray, "b 20 2"] | None:
        """Points of the route ahead, NaN after its end; None where it is not known."""
        ...


@dataclass(frozen=True)
class TrainingBatch:
    """B observations with the plans to imitate. Has the shape of `Observation`.

    Attributes:
        t_us, images, image_times_us, ego_history, navigation, route: see `Observation`.
        target: float32 [B, 64, 3], (x, y, yaw) at 0.1 s to 6.4 s, rig frame at `t_us`, m and rad.
        weight: float32 [B], weight of each example in the loss, 1 by default.
        reasoning: chain-of-causation text of each example, empty where there is none; None where no example has any.
    """

    t_us: Int[np.ndarray, "b"]
    images: Mapping[str, UInt8[np.ndarray, "b f h w 3"]]
    image_times_us: Mapping[str, Int[np.ndarray, "b f"]]
    ego_history: Float[np.ndarray, "b 16 4"]
    navigation: tuple[str, ...]
    target: Float[np.ndarray, "b 64 3"]
    weight: Float[np.ndarray, "b"]
    reasoning: tuple[str, ...] | None = None
    route: Float[np.ndarray, "b 20 2"] | None = None


@dataclass(frozen=True)
class PlanSamples:
    """K sampled plans for each of B rollouts.

    Attributes:
        poses: float32 [B, K, 64, 3], (x, y, yaw) at 0.1 s to 6.4 s after the observation, rig frame at the
            observation, m and rad.
        score: float32 [B, K] log-likelihood, or None for a head that has none.
        safety_monitor: bool [B], where the policy's own monitor objects to the situation, or None without a monitor.
    """

    poses: Float[Tensor, "b k 64 3"]
    score: Float[Tensor, "b k"] | None = None
    safety_monitor: Bool[Tensor, "b"] | None = None


class Policy(Protocol):
    """Anything that drives: a VLA, a baseline, a user's own model."""

    def sample(
        self,
        observation: Observation,
        num_samples: int,
        temperature: float,
        generators: Sequence[torch.Generator],
    ) -> PlanSamples:
        """Draw `num_samples` plans per rollout; `generators`: one CPU generator per rollout, the only randomness."""
        ...
