"""A plain regressor: a small convolutional network and an MLP to one plan. The baseline that a VLA has to beat."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vla.action_space import ActionStatistics, actions_to_plan
from vla.config import PolicyConfig
from vla.driving_policy import DrivingPolicy, check_plans, speed_now_mps, stacked_images, weighted_mean
from vla.errors import PolicyError
from vla.history import HistoryEncoder
from vla.policy import PLAN_STEPS, Observation, PlanSamples, TrainingBatch
from vla.policy_input import check_generators, check_observation
from vla.route import RouteEncoder

CHANNELS = (16, 32, 64, 96)
POOLED = (3, 6)


class ImageEncoder(nn.Module):
    """Strided convolutions over one image, pooled to a grid of 3 x 6 cells."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, *CHANNELS)
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU())
            for a, b in itertools.pairwise(sizes)
        ]
        self.layers = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(POOLED), nn.Flatten())
        self.features = CHANNELS[-1] * POOLED[0] * POOLED[1]

    def forward(self, images: UInt8[Tensor, "m h w 3"]) -> Float[Tensor, "m d"]:
        """Features of uint8 RGB images."""
        weight = next(self.parameters())
        pixels = images.permute(0, 3, 1, 2).to(weight.dtype) * (2.0 / 255.0) - 1.0
        return self.layers(pixels)


class RegressorPolicy(DrivingPolicy):
    """Images, ego history and, with `route_tokens`, the route to one plan, by squared error on normalised actions.

    All K samples are that one plan, whatever the temperature and the generators. Navigation text is not read.
    """

    def __init__(self, config: PolicyConfig, statistics: ActionStatistics) -> None:
        super().__init__(config, statistics)
        self.vision = ImageEncoder()
        self.history_encoder = HistoryEncoder(config.expert_hidden, config.history_tokens, 1.0, config.history)
        self.route_encoder = None
        if config.route_tokens:
            self.route_encoder = RouteEncoder(config.expert_hidden, config.route_tokens, norm_std=1.0)
        tokens = config.history_tokens + config.route_tokens
        features = config.images_per_observation * self.vision.features + tokens * config.expert_hidden
        self.expert = nn.Sequential(
            nn.Linear(features, config.expert_ffn),
            nn.SiLU(),
            nn.Linear(config.expert_ffn, config.expert_ffn),
            nn.SiLU(),
            nn.Linear(config.expert_ffn, 2 * PLAN_STEPS),
        )
        self.to(getattr(torch, config.dtype))

    @property
    def tokens_per_example(self) -> int:
        """Cells of the image grids, tokens of history and route, and the plan."""
        cells = POOLED[0] * POOLED[1] * self.config.images_per_observation
        return cells + self.config.history_tokens + self.config.route_tokens + 1

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Nothing to recompute in a network this small. Raises `PolicyError` when asked to."""
        if enabled:
            raise PolicyError("gradient checkpointing: the regressor has none; switch it off")

    def loss(self, batch: TrainingBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted mean squared error of normalised actions; `generator` is not read."""
        target, error_m = self.target_actions(batch)
        per_example = (self._actions(batch) - target.to(self.device)).square().mean(dim=(1, 2))
        return {"loss": weighted_mean(per_example, batch), "projection_error_m": error_m.mean()}

    @torch.no_grad()
    def sample(
        self,
        observation: Observation,
        num_samples: int,
        temperature: float,
        generators: Sequence[torch.Generator],
    ) -> PlanSamples:
        """The one plan, K times; see `Policy.sample`."""
        batch = check_observation(observation, self.config)
        check_generators(generators, batch, num_samples, temperature)
        actions = self.statistics.denormalise(self._actions(observation).cpu())
        poses = actions_to_plan(actions, speed_now_mps(observation))[:, None].repeat(1, num_samples, 1, 1)
        check_plans(poses)
        return PlanSamples(poses)

    def _actions(self, observation: Observation) -> Float[Tensor, "b 64 2"]:
        """Normalised actions, float32."""
        images = stacked_images(observation, self.config).to(self.device)
        vision = self.vision(images.flatten(0, 2)).view(images.shape[0], -1)
        history = torch.from_numpy(observation.ego_history).float().to(self.device)
        parts = [vision, self.history_encoder(history).view(images.shape[0], -1)]
        if self.route_encoder is not None:
            route = torch.from_numpy(np.asarray(observation.route)).float().to(self.device)
            parts.append(self.route_encoder(route).view(images.shape[0], -1))
        return self.expert(torch.cat(parts, dim=-1)).float().view(-1, PLAN_STEPS, 2)


def build_regressor(config: PolicyConfig, seed: int) -> RegressorPolicy:
    """A new regressor, its weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RegressorPolicy(config, ActionStatistics())
