"""Policies without a network, behind the same protocol: the floor of every report."""

from collections.abc import Sequence

import numpy as np
import torch

from vla.policy import PLAN_STEP_S, PLAN_STEPS, Observation, PlanSamples


class ConstantVelocityPolicy:
    """Keeps the present speed and heading; images and generators are not read, and all samples are equal."""

    def sample(
        self,
        observation: Observation,
        num_samples: int,
        temperature: float,
        generators: Sequence[torch.Generator],
    ) -> PlanSamples:
        """Straight plans at the speed of the last history entry, float32 [B, K, 64, 3]."""
        speed_mps = torch.from_numpy(np.asarray(observation.ego_history)[:, -1, 3]).float()
        times_s = PLAN_STEP_S * torch.arange(1, PLAN_STEPS + 1)
        poses = torch.zeros(len(speed_mps), num_samples, PLAN_STEPS, 3)
        poses[..., 0] = (speed_mps[:, None] * times_s)[:, None]
        return PlanSamples(poses)
