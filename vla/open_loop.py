"""Open-loop distances of sampled plans from recorded ones."""

import torch
from jaxtyping import Float
from torch import Tensor

# Plan steps at which distances are reported: 2 s and the full 6.4 s.
HORIZONS = {"2s": 20, "6.4s": 64}


def open_loop_errors(poses: Float[Tensor, "b k 64 3"], target: Float[Tensor, "b 64 3"]) -> dict[str, float]:
    """Distances in m, averaged over the batch, at 2 s and 6.4 s.

    `ade_*`: mean over samples and steps up to the horizon; `fde_*`: mean over samples at the horizon; `min_ade_*`:
    of the sample with the least mean distance up to that same horizon.
    """
    distance = (poses[..., :2] - target[:, None, :, :2]).norm(dim=-1)
    errors: dict[str, float] = {}
    for name, steps in HORIZONS.items():
        mean = distance[..., :steps].mean(-1)
        errors[f"ade_{name}_m"] = float(mean.mean())
        errors[f"min_ade_{name}_m"] = float(torch.amin(mean, dim=1).mean())
        errors[f"fde_{name}_m"] = float(distance[..., steps - 1].mean())
    return errors
