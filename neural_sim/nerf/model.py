"""nerfacto, put together from nerfstudio's own parts.

`nerfstudio.models.nerfacto` adds a camera optimiser, torchmetrics, and LPIPS, which wants a download and a torchvision
that fits the build of torch; none of them is needed to draw.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_sim.nerf.config import NerfConfig
from neural_sim.nerf.hash_grid import use_fast_hash_grids
from neural_sim.nerf.installation import require_nerfstudio

# As nerfacto has them: levels, rows and finest cells of the two proposal grids.
_PROPOSAL_LEVELS, _PROPOSAL_LOG2_SIZE, _PROPOSAL_CELLS, _PROPOSAL_WIDTH = 5, 17, (256, 512), 16
# The proposals start smooth and reach their own weights after this share of the training.
_ANNEAL_SHARE, _ANNEAL_SLOPE = 0.1, 10.0
# The proposal networks learn at every step at first, at every fifth from this share on.
_WARM_UP_SHARE, _UPDATE_EVERY = 0.3, 5


@dataclass(frozen=True)
class RayColours:
    """What N rays show.

    Attributes:
        rgb: float32 [N, 3], 0..1.
        distance: float32 [N], where half of the ray's weight is behind it, in the model's own unit of length. Its mean
            would be drawn far away by a share of a thousandth of the sky.
        opacity: float32 [N], 0..1.
        weights, samples: of every sampling stage, for the losses; nerfstudio's own types.
    """

    rgb: Float[Tensor, "n 3"]
    distance: Float[Tensor, "n"]
    opacity: Float[Tensor, "n"]
    weights: list[Tensor]
    samples: list[Any]


class CubeContraction(torch.nn.Module):
    """nerfstudio's `SceneContraction` with the maximum norm, without its slow norm: all of space fits into -2..2."""

    def forward(self, positions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Positions in -1..1 stay, farther ones move to (2 - 1 / |x|) x / |x|, |x| being the largest coordinate."""
        norm = positions.abs().amax(dim=-1, keepdim=True)
        inverse = 1.0 / norm.clamp(min=1.0)
        return positions * ((2.0 - inverse) * inverse)


class Nerfacto(torch.nn.Module):
    """A nerfacto in its own cube: the driven area lies in -1..1, everything beyond is contracted into -2..2.

    Rays outside training are sampled without randomness. Raises `InputError` when nerfstudio is not installed.
    """

    def __init__(self, config: NerfConfig, num_images: int) -> None:
        require_nerfstudio()
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # nerfstudio's decorators have newer names
            self.field, self.proposals, self.sampler = _parts(config, num_images)
        self._iterations = config.iterations
        use_fast_hash_grids(self)

    def before_step(self, step: int) -> None:
        """Set the schedules of proposal sampling for optimisation step `step`."""
        done = min(step / max(1.0, _ANNEAL_SHARE * self._iterations), 1.0)
        self.sampler.set_anneal(_ANNEAL_SLOPE * done / ((_ANNEAL_SLOPE - 1) * done + 1))
        if step > 0:
            self.sampler.step_cb(step)

    def forward(
        self,
        origins: Float[Tensor, "n 3"],
        directions: Float[Tensor, "n 3"],
        near: float,
        far: float,
        image_indices: Int[Tensor, "n"],
    ) -> RayColours:
        """Draw rays from `origins` along unit `directions` between the distances `near` and `far`."""
        from nerfstudio.cameras.rays import RayBundle  # pyright: ignore[reportMissingImports]
        from nerfstudio.field_components.field_heads import FieldHeadNames  # pyright: ignore[reportMissingImports]

        ones = torch.ones_like(origins[:, :1])
        bundle = RayBundle(
            origins,
            directions,
            pixel_area=ones,
            camera_indices=image_indices[:, None],
            nears=near * ones,
            fars=far * ones,
        )
        densities = [proposal.density_fn for proposal in self.proposals]
        samples, weights_list, samples_list = self.sampler(bundle, density_fns=densities)
        found = self.field(samples)
        weights, colours = samples.get_weights(found[FieldHeadNames.DENSITY]), found[FieldHeadNames.RGB]
        opacity = weights.sum(dim=-2)
        # What the ray does not meet has the colour of its last sample, nerfacto's background.
        rgb = (weights * colours).sum(dim=-2) + (1 - opacity) * colours[:, -1]
        middle = (samples.frustums.starts + samples.frustums.ends) / 2
        return RayColours(
            rgb,
            _median(middle[..., 0], weights[..., 0].detach()),
            opacity[:, 0],
            [*weights_list, weights],
            [*samples_list, samples],
        )


def _median(distances: Float[Tensor, "n s"], weights: Float[Tensor, "n s"]) -> Float[Tensor, "n"]:
    """Distance of the sample at which the weight before it reaches a half; of the last one where it never does."""
    reached = weights.cumsum(dim=-1) >= 0.5
    index = torch.where(reached.any(dim=-1), reached.float().argmax(dim=-1), distances.shape[-1] - 1)
    return distances.gather(-1, index[:, None])[:, 0]


def _parts(config: NerfConfig, num_images: int) -> tuple[Any, torch.nn.ModuleList, Any]:
    """Field, proposal networks and the sampler that uses them, as `NerfactoModel.populate_modules` makes them."""
    from nerfstudio.fields.density_fields import HashMLPDensityField  # pyright: ignore[reportMissingImports]
    from nerfstudio.fields.nerfacto_field import NerfactoField  # pyright: ignore[reportMissingImports]
    from nerfstudio.model_components.ray_samplers import ProposalNetworkSampler  # pyright: ignore[reportMissingImports]

    cube = torch.tensor([[-1.0] * 3, [1.0] * 3])
    contraction: Any = CubeContraction()
    field = NerfactoField(
        cube, num_images=num_images, hidden_dim=config.hidden_width, hidden_dim_color=config.hidden_width,
        num_levels=config.hash_levels, max_res=config.finest_cells, log2_hashmap_size=config.log2_hash_size,
        appearance_embedding_dim=config.appearance_size, use_average_appearance_embedding=True,
        spatial_distortion=contraction, average_init_density=0.01, implementation="torch",
    )  # fmt: skip
    proposals = [
        HashMLPDensityField(
            cube, hidden_dim=_PROPOSAL_WIDTH, num_levels=_PROPOSAL_LEVELS, max_res=cells,
            log2_hashmap_size=_PROPOSAL_LOG2_SIZE, spatial_distortion=contraction, average_init_density=0.01,
            implementation="torch",
        )
        for cells in _PROPOSAL_CELLS
    ]  # fmt: skip
    warm_up = max(1.0, _WARM_UP_SHARE * config.iterations)
    sampler = ProposalNetworkSampler(
        config.proposal_samples, config.nerf_samples, num_proposal_network_iterations=len(proposals),
        single_jitter=True,
        update_sched=lambda step: np.clip(np.interp(step, [0, warm_up], [0, _UPDATE_EVERY]), 1, _UPDATE_EVERY),
    )  # fmt: skip
    return field, torch.nn.ModuleList(proposals), sampler


def losses(found: RayColours, wanted: Float[Tensor, "n 3"], distortion_weight: float) -> Float[Tensor, ""]:
    """nerfacto's loss: squared error of the colour, proposals that bound the field, density gathered along the ray."""
    from nerfstudio.model_components.losses import distortion_loss, interlevel_loss  # pyright: ignore[reportMissingImports]

    colour = torch.nn.functional.mse_loss(found.rgb, wanted)
    gathered = distortion_loss(found.weights, found.samples)
    return colour + interlevel_loss(found.weights, found.samples) + distortion_weight * gathered
