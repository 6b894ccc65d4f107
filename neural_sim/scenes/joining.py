"""Sets of Gaussians of different harmonics degree as one."""

from collections.abc import Sequence

import torch

from neural_sim.gaussians import Gaussians


def joined(nodes: Sequence[Gaussians]) -> Gaussians:
    """One set of the nodes of one frame, at the highest degree among them; none of them gives an empty set."""
    if not nodes:
        return Gaussians.empty()
    bands = max(node.sh.shape[1] for node in nodes)
    return Gaussians.concatenate([_raised(node, bands) for node in nodes])


def _raised(node: Gaussians, bands: int) -> Gaussians:
    missing = torch.zeros(len(node), bands - node.sh.shape[1], 3).to(node.sh)
    return Gaussians(**node.tensors() | {"sh": torch.cat([node.sh, missing], dim=1)})
