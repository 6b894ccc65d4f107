"""Which examples count how much: by age, by distance to the expert, by recovery.

An objective that judges examples otherwise (a reward, a preference) implements `SampleWeighting` on the same facts.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from neural_sim.errors import InputError


@dataclass(frozen=True)
class ExampleFacts:
    """What is known of N examples without decoding their images.

    Attributes:
        round: int64 [N], round of rollouts that an example comes from; 0 for a recorded drive.
        distance_m: float64 [N], least d^g of the sampled plans, RoaD equation 6, m; 0 where none were sampled.
        recovered: bool [N], whether the plan was blended towards the expert.
        meta: the `meta` of each example.
    """

    round: Int[np.ndarray, "n"]
    distance_m: Float[np.ndarray, "n"]
    recovered: Bool[np.ndarray, "n"]
    meta: tuple[dict[str, Any], ...]

    @property
    def given(self) -> Float[np.ndarray, "n"]:
        """Weight that the rollouts gave each example, 1 where they gave none."""
        return np.array([float(each.get("weight", 1.0)) for each in self.meta])


class SampleWeighting(Protocol):
    """Judges examples before training."""

    def weights(self, facts: ExampleFacts) -> Float[np.ndarray, "n"]:
        """Weight of each example in the loss, 0 or more; an example of weight 0 is never drawn."""
        ...


@dataclass(frozen=True)
class WeightingConfig:
    """Weights of examples in the loss: what the rollouts gave them (`rollout.quality.full_weight_s`), times the factors
    below; all off by default."""

    round_decay: float = 1.0
    """Factor for every round that an example is older than the newest of its kind; 0 keeps the newest round only.
    Recorded drives are of no round and keep their weight."""

    max_age_rounds: int | None = None
    """Examples more than so many rounds older than the newest are dropped; 0 keeps the newest round only. Recorded
    drives are of no round and stay."""

    max_distance_m: float = 0.0
    """Examples whose best sampled plan was farther than this from the expert (d^g) are dropped, m; 0 keeps all."""

    distance_scale_m: float = 0.0
    """Factor exp(-d^g / scale), m; 0 is off."""

    recovery_weight: float = 1.0
    """Factor for examples whose plan was blended towards the expert; 0 drops them."""

    def __post_init__(self) -> None:
        for name in ("max_distance_m", "distance_scale_m", "recovery_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"training weighting.{name}: found {getattr(self, name)!r}, expected 0 or more")
        if not 0 <= self.round_decay <= 1:
            raise InputError(f"training weighting.round_decay: found {self.round_decay!r}, expected 0 to 1")
        if self.max_age_rounds is not None and self.max_age_rounds < 0:
            raise InputError(f"training weighting.max_age_rounds: found {self.max_age_rounds}, expected 0 or more")

    @property
    def is_off(self) -> bool:
        """Whether every example counts the same."""
        return self == WeightingConfig()

    def weights(self, facts: ExampleFacts) -> Float[np.ndarray, "n"]:
        """See `SampleWeighting.weights`."""
        age = np.where(facts.round > 0, facts.round.max(initial=0) - facts.round, 0)
        weights = facts.given * np.power(self.round_decay, age) * np.where(facts.recovered, self.recovery_weight, 1.0)
        if self.max_age_rounds is not None:
            weights = np.where(age > self.max_age_rounds, 0.0, weights)
        if self.distance_scale_m:
            weights = weights * np.exp(-facts.distance_m / self.distance_scale_m)
        if self.max_distance_m:
            weights = np.where(facts.distance_m > self.max_distance_m, 0.0, weights)
        return weights
