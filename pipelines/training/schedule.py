"""The learning rate as a function of the step."""

import math

from pipelines.training.config import TrainingConfig


def lr_factor(step: int, config: TrainingConfig) -> float:
    """Learning rate at `step` (from 0) relative to the peak: linear warm-up, then a cosine to `final_lr_scale`.

    Step 0 already moves (1 / warm-up steps), the last step stands at the end of the cosine.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    span = max(config.steps - 1 - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final_lr_scale + (1.0 - config.final_lr_scale) * cosine
