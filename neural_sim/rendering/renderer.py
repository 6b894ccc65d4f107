"""The border between the simulator and whatever draws the world."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from neural_sim.cameras import Camera


@dataclass(frozen=True)
class RenderRequest:
    """One image to draw.

    Attributes:
        camera: calibration at the wanted image size.
        T_world_camera_open, T_world_camera_close: float64 [4, 4], camera pose when the shutter opens on the first row
            and closes on the last, m.
        T_world_actors: float64 [4, 4] box pose of each road user to draw at `t_us`, by track id, m.
        t_us: time of the image, us.
        T_world_actors_open, T_world_actors_close: poses of the same road users when the shutter opens and closes; None
            where they stand still meanwhile. A renderer that cannot move them draws them at `t_us`.
    """

    camera: Camera
    T_world_camera_open: Float[np.ndarray, "4 4"]
    T_world_camera_close: Float[np.ndarray, "4 4"]
    T_world_actors: Mapping[str, Float[np.ndarray, "4 4"]]
    t_us: int
    T_world_actors_open: Mapping[str, Float[np.ndarray, "4 4"]] | None = None
    T_world_actors_close: Mapping[str, Float[np.ndarray, "4 4"]] | None = None


@dataclass(frozen=True)
class RenderedImage:
    """One drawn image.

    Attributes:
        rgb: float32 [H, W, 3], 0..1.
        depth_m: float32 [H, W], expected depth where opacity > 0, m: along the optical axis, or the distance from the
            camera for "fisheye" and "ftheta" lenses.
        opacity: float32 [H, W], 0..1; what is left is sky.
    """

    rgb: Float[np.ndarray, "h w 3"]
    depth_m: Float[np.ndarray, "h w"]
    opacity: Float[np.ndarray, "h w"]


class Renderer(Protocol):
    """Draws one world: splats, a NeRF, the synthetic town itself, or a learned world model."""

    name: str

    def render(self, requests: Sequence[RenderRequest]) -> list[RenderedImage]:
        """Draw every request; images come in the order of the requests."""
        ...
