"""Open-loop distances of sampled plans from recorded ones, by horizon."""

import torch
from jaxtyping import Float
from torch import Tensor

# Plan steps at which distances are reported. 2 s is the horizon of RoaD's d^g, the others those of Alpamayo's tables.
HORIZONS = {"0.5s": 5, "1s": 10, "2s": 20, "3s": 30, "5s": 50, "6.4s": 64}
# A passenger car, rig frame at the rear axle on the ground, m.
BOX_LENGTH_M, BOX_WIDTH_M, BOX_CENTER_X_M = 4.8, 2.0, 1.4
# A target is missed when no sample ends within this of it, m; the bound of the nuScenes and Argoverse tables.
MISS_DISTANCE_M = 2.0


def open_loop_errors(poses: Float[Tensor, "b k 64 3"], target: Float[Tensor, "b 64 3"]) -> dict[str, float]:
    """Distances in m, averaged over the batch, at each horizon of `HORIZONS`.

    `ade_*`: mean over samples and steps up to the horizon. `fde_*`: mean over samples at the horizon. `min_ade_*`,
    `min_fde_*`: of the best sample for that same horizon. `corner_*`: mean distance of the four corners of the car's
    box up to the horizon, of the sample in which it is least. `miss_rate_*`: share of targets that no sample ends
    within 2 m of.

    The best sample is chosen anew for each horizon; Alpamayo keeps the one that is best at 6.4 s for the shorter ones,
    and takes the least corner distance at each time and corner on its own, so its corner figures come out lower.
    """
    distance = (poses[..., :2] - target[:, None, :, :2]).norm(dim=-1)
    corner = (box_corners(poses) - box_corners(target)[:, None]).norm(dim=-1).mean(-1)
    errors: dict[str, float] = {}
    for name, steps in HORIZONS.items():
        mean, final = distance[..., :steps].mean(-1), distance[..., steps - 1]
        least_final = torch.amin(final, dim=1)
        errors[f"ade_{name}_m"] = float(mean.mean())
        errors[f"fde_{name}_m"] = float(final.mean())
        errors[f"min_ade_{name}_m"] = float(torch.amin(mean, dim=1).mean())
        errors[f"min_fde_{name}_m"] = float(least_final.mean())
        errors[f"corner_{name}_m"] = float(torch.amin(corner[..., :steps].mean(-1), dim=1).mean())
        errors[f"miss_rate_{name}"] = float((least_final > MISS_DISTANCE_M).float().mean())
    return errors


def box_corners(poses: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 4 2"]:
    """Corners of the car's box at poses (x, y, yaw) of its rear axle, m."""
    front, rear = BOX_CENTER_X_M + BOX_LENGTH_M / 2, BOX_CENTER_X_M - BOX_LENGTH_M / 2
    half = BOX_WIDTH_M / 2
    local = poses.new_tensor([[front, half], [front, -half], [rear, -half], [rear, half]])
    cos, sin = poses[..., 2].cos(), poses[..., 2].sin()
    turn = torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)
    return poses[..., None, :2] + local @ turn.mT
