"""A trained NeRF with its place in the world."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from neural_sim.nerf.config import NerfConfig


@dataclass(frozen=True)
class NerfWorld:
    """A clip reconstructed as a NeRF, in memory.

    Attributes:
        clip_id: name of the clip, and of the scene that it belongs to.
        config: settings it was made with; the networks' sizes among them.
        num_images: training images, each of which may have an appearance code.
        center_m: float64 [3], world position of the middle of the model's cube, m.
        unit_m: length of the model's unit, half an edge of the cube, m.
        weights: the networks' arrays by name.
        metadata: source, seed and held-out quality; plain JSON values.
    """

    clip_id: str
    config: NerfConfig
    num_images: int
    center_m: Float[np.ndarray, "3"]
    unit_m: float
    weights: Mapping[str, Shaped[np.ndarray, "..."]]
    metadata: Mapping[str, Any]
