"""What the simulator shows to a policy."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from neural_sim.errors import InputError

HISTORY_STEPS = 16
HISTORY_STEP_US = 100_000
PLAN_STEPS = 64
PLAN_STEP_US = 100_000


@dataclass(frozen=True)
class ImageFormat:
    """Which images a policy sees; the policy's configuration fixes it, for training as for the closed loop.

    Attributes:
        cameras: names, in the order of the policy.
        num_frames: frames per camera in an observation, the last at the present time.
        frame_interval_us: time between these frames, us.
        width_px, height_px: size of every image.
    """

    cameras: tuple[str, ...]
    num_frames: int
    frame_interval_us: int
    width_px: int
    height_px: int

    def __post_init__(self) -> None:
        for name in ("num_frames", "frame_interval_us", "width_px", "height_px"):
            if getattr(self, name) < 1:
                raise InputError(f"image format: {name} is {getattr(self, name)}, expected 1 or more")
        if not self.cameras:
            raise InputError("image format: no camera, expected at least one name")

    @property
    def span_us(self) -> int:
        """Time from the oldest to the newest frame of an observation, us."""
        return (self.num_frames - 1) * self.frame_interval_us


@dataclass(frozen=True)
class Observation:
    """The input of a policy for B rollouts at one time.

    Attributes:
        t_us: int64 [B], now, us; the same for all rollouts of a batch.
        images: uint8 [B, F, H, W, 3] by camera name, oldest first.
        image_times_us: int64 [B, F] by camera name.
        ego_history: float32 [B, 16, 4], (x, y, yaw, speed) every 0.1 s, the last at `t_us`; rig frame at `t_us` as the
            noisy ego-motion estimate has it, m, rad, m/s.
        navigation: one instruction per rollout, empty where there is none.
        route: float32 [B, 20, 2], points of the route over 80 m ahead, rig frame at `t_us`, m; NaN after its end. None
            where nobody knows the route.
    """

    t_us: Int[np.ndarray, "b"]
    images: Mapping[str, UInt8[np.ndarray, "b f h w 3"]]
    image_times_us: Mapping[str, Int[np.ndarray, "b f"]]
    ego_history: Float[np.ndarray, "b 16 4"]
    navigation: tuple[str, ...]
    route: Float[np.ndarray, "b 20 2"] | None = None
