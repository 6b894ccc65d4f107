"""What every trainable policy offers, whatever is inside it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor, nn

from vla.action_space import ActionStatistics, plan_to_actions, projection_error_m
from vla.config import PolicyConfig
from vla.errors import PolicyError
from vla.open_loop import open_loop_errors
from vla.policy import Observation, PlanSamples, TrainingBatch
from vla.policy_input import check_training_batch

# Plans inverted at a time when statistics are fitted: 64 x 64 systems of 1024 plans take about 100 MB.
FIT_CHUNK = 1024


class DrivingPolicy(nn.Module, ABC):
    """A policy that can be trained, saved and asked for plans; a `Policy` by its `sample`.

    Attributes:
        config: what it was built from; stored in its checkpoint.
        statistics: normalisation of the actions.
        lora_config: adapters on its language model, where there are any.
    """

    def __init__(self, config: PolicyConfig, statistics: ActionStatistics) -> None:
        super().__init__()
        self.config = config
        self.statistics = statistics
        self.lora_config: LoraConfig | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    @abstractmethod
    def tokens_per_example(self) -> int:
        """Tokens that one training example puts through, prompt and plans."""

    @abstractmethod
    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them, where the policy can."""

    @abstractmethod
    def loss(self, batch: TrainingBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Loss of a batch under `loss`, to minimise, and scalars to log; `generator`: CPU, the only randomness.

        Raises `PolicyError` on unusable input.
        """

    @abstractmethod
    def sample(
        self,
        observation: Observation,
        num_samples: int,
        temperature: float,
        generators: Sequence[torch.Generator],
    ) -> PlanSamples:
        """Draw `num_samples` plans per rollout, float32 on the CPU; see `Policy.sample`.

        Raises `PolicyError` on unusable input and when a plan is not finite.
        """

    def forward(self, batch: TrainingBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Same as `loss`, so that wrappers that call the module train it."""
        return self.loss(batch, generator)

    def fit_action_statistics(self, targets: Float[Tensor, "n 64 3"], v0_mps: Float[Tensor, "n"]) -> ActionStatistics:
        """Set and return the normalisation from training plans (x, y, yaw) and the speeds they start with."""
        parts = zip(targets.double().split(FIT_CHUNK), v0_mps.double().split(FIT_CHUNK), strict=True)
        self.statistics = ActionStatistics.fit(torch.cat([plan_to_actions(plan, v0) for plan, v0 in parts]))
        return self.statistics

    def open_loop_metrics(
        self,
        batch: TrainingBatch,
        generators: Sequence[torch.Generator],
        num_samples: int = 6,
        temperature: float = 1.0,
    ) -> dict[str, float]:
        """Distances of sampled plans from the targets of a batch, m; see `open_loop_errors`."""
        samples = self.sample(batch, num_samples, temperature, generators)
        return open_loop_errors(samples.poses, torch.from_numpy(np.asarray(batch.target)).float())

    def target_actions(self, batch: TrainingBatch) -> tuple[Float[Tensor, "b 64 2"], Float[Tensor, "b"]]:
        """Normalised actions of the targets, CPU, and how far each target lies off the unicycle, m.

        Raises `PolicyError` on unusable input.
        """
        check_training_batch(batch, self.config)
        target, v0_mps = torch.from_numpy(np.asarray(batch.target)).float(), speed_now_mps(batch)
        actions = plan_to_actions(target, v0_mps)
        return self.statistics.normalise(actions), projection_error_m(target, actions, v0_mps)


def speed_now_mps(observation: Observation) -> Float[Tensor, "b"]:
    """Speed at the time of each observation, float32."""
    return torch.from_numpy(np.asarray(observation.ego_history)[:, -1, 3]).float()


def stacked_images(observation: Observation, config: PolicyConfig) -> Tensor:
    """uint8 [B, C, F, H, W, 3] images, cameras in the order of `config`."""
    return torch.from_numpy(np.stack([np.asarray(observation.images[camera]) for camera in config.cameras], axis=1))


def weighted_mean(per_example: Float[Tensor, "b"], batch: TrainingBatch) -> Tensor:
    """Mean over examples by their weights in the loss."""
    weight = torch.from_numpy(np.asarray(batch.weight)).float().to(per_example.device)
    return (per_example * weight).sum() / weight.sum()


def check_plans(poses: Float[Tensor, "b k 64 3"]) -> None:
    """Raise `PolicyError` naming the first plan that is not finite."""
    finite = torch.isfinite(poses).all(dim=-1).all(dim=-1)
    if not bool(finite.all()):
        rollout, sample = (~finite).nonzero()[0].tolist()
        raise PolicyError(
            f"plan: sample {sample} of rollout {rollout} is not finite; the weights are damaged or training diverged"
        )
