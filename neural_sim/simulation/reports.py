"""Events that do not come from driving: what the cameras and the driver report."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, UInt8

from neural_sim.errors import InputError
from neural_sim.simulation.record import SimulationEvent

IMAGE_IS_BLACK = "image_is_black"
SAFETY_MONITOR = "safety_monitor"
# AlpaSim's bound of a black pixel, of 255.
BLACK_PIXEL = 10


def black_image_events(
    frame: Mapping[str, UInt8[np.ndarray, "b h w 3"]], t_us: int
) -> list[tuple[int, SimulationEvent]]:
    """One event, with its rollout, for each image of the first camera in which no pixel exceeds 10 of 255."""
    if not frame:
        return []
    camera, pixels = next(iter(frame.items()))
    black = pixels.reshape(len(pixels), -1).max(axis=1) <= BLACK_PIXEL
    detail = f"no pixel of {camera} exceeds {BLACK_PIXEL} of 255"
    return [(int(b), SimulationEvent(t_us, IMAGE_IS_BLACK, detail)) for b in np.flatnonzero(black)]


def safety_monitor_events(
    triggered: Bool[np.ndarray, "b"] | None, num_rollouts: int, t_us: int
) -> list[tuple[int, SimulationEvent]]:
    """One event, with its rollout, where the driver's own monitor objects; none for a driver without one (None).

    Raises `InputError` when there is not one flag per rollout.
    """
    if triggered is None:
        return []
    if triggered.shape != (num_rollouts,):
        raise InputError(f"safety monitor: found flags of shape {list(triggered.shape)}, expected [{num_rollouts}]")
    event = SimulationEvent(t_us, SAFETY_MONITOR, "the driver's safety monitor objects")
    return [(int(b), event) for b in np.flatnonzero(triggered)]
