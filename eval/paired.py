"""Paired comparison of two policies on the same scenes and seeds."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int

from eval.bootstrap import interval
from eval.protocol import EvaluationProtocol
from eval.results import MIN_SCENES_FOR_CLAIM, Comparison, Difference

# Means over rollouts that are compared beside the incidents per km.
COMPARED_MEANS = (
    "offroad_or_collision_at_fault",
    "collision_at_fault",
    "offroad",
    "dist_traveled_m",
    "progress_rel",
    "dist_to_gt_trajectory",
)
# Up to so many scenes all relabellings are tried: 2^12 of them.
_EXACT_SCENES = 12

Tables = Mapping[str, Float[np.ndarray, "s r"]]


@dataclass(frozen=True)
class _Sums:
    """A metric of one policy by scene, as a ratio of sums: a mean has the denominator 1 in every scene."""

    above: Float[np.ndarray, "s"]
    below: Float[np.ndarray, "s"]

    def value(self) -> float:
        """The metric over all scenes."""
        return float(_ratio(self.above.sum(), self.below.sum()))

    def resampled(self, draws: Int[np.ndarray, "b s"]) -> Float[np.ndarray, "b"]:
        """The metric over each resample of the scenes."""
        return _ratio(self.above[draws].sum(axis=1), self.below[draws].sum(axis=1))

    def influence(self) -> Float[np.ndarray, "s"]:
        """What each scene adds to the metric, to first order; for a mean simply its deviation from the mean."""
        return _ratio(self.above - self.value() * self.below, self.below.mean())


def compare(
    baseline: str,
    candidate: str,
    baseline_tables: Tables,
    candidate_tables: Tables,
    counted_incident: str,
    draws: Int[np.ndarray, "b s"],
    protocol: EvaluationProtocol,
) -> Comparison:
    """Compare two policies over the rollouts that both finished; tables hold a metric by scene and rollout index.

    `draws` are the resampled scenes of `draw_scenes`, the same for both, which is what makes the interval paired.
    """
    finished = [np.isfinite(tables["dist_traveled_m"]) for tables in (baseline_tables, candidate_tables)]
    both = finished[0] & finished[1]
    differences = {}
    for name in ("incidents_per_km", *COMPARED_MEANS):
        if name in baseline_tables or name == "incidents_per_km":
            pair = _sums(name, baseline_tables, candidate_tables, both, counted_incident)
            differences[name] = difference_of(name, *pair, draws, protocol)
    num_scenes = int(both.any(axis=1).sum())
    return Comparison(
        baseline=baseline,
        candidate=candidate,
        num_scenes=num_scenes,
        num_pairs=int(both.sum()),
        num_left_out=int((finished[0] ^ finished[1]).sum()),
        differences=differences,
        is_significant=num_scenes >= MIN_SCENES_FOR_CLAIM and _is_clear(differences["incidents_per_km"], protocol),
    )


def difference_of(
    name: str, baseline: _Sums, candidate: _Sums, draws: Int[np.ndarray, "b s"], protocol: EvaluationProtocol
) -> Difference:
    """Difference of one metric with its interval, p-value and the number of scenes it takes to see it."""
    values = baseline.value(), candidate.value()
    of_baseline, of_candidate = (value if math.isfinite(value) else None for value in values)
    observed = values[1] - values[0]
    has_value = (baseline.below > 0) | (candidate.below > 0)
    if not math.isfinite(observed) or has_value.sum() < 2:
        return Difference(name, of_baseline, of_candidate, observed if math.isfinite(observed) else None)
    low, high = interval(candidate.resampled(draws) - baseline.resampled(draws), protocol)
    spread = float(np.std((candidate.influence() - baseline.influence())[has_value], ddof=1))
    return Difference(
        metric=name,
        baseline=of_baseline,
        candidate=of_candidate,
        difference=observed,
        low=low,
        high=high,
        p_value=permutation_p_value(baseline, candidate, protocol),
        scenes_needed=scenes_needed(observed, spread, protocol),
        detectable=detectable_difference(int(has_value.sum()), spread, protocol),
    )


def permutation_p_value(baseline: _Sums, candidate: _Sums, protocol: EvaluationProtocol) -> float:
    """Two-sided p-value of the difference when the two policies swap their scenes at random.

    Scenes are swapped whole, because rollouts of one scene are not independent. With few scenes every relabelling is
    tried and the value is exact; otherwise `EvaluationProtocol.permutations` random ones and the observed one.
    """
    num_scenes = len(baseline.above)
    swaps = _all_swaps(num_scenes) if num_scenes <= _EXACT_SCENES else _random_swaps(num_scenes, protocol)
    sizes = np.abs(_difference_when(swaps, baseline, candidate))
    observed = abs(candidate.value() - baseline.value())
    # Relabellings that give the observed difference again must count as such in spite of rounding.
    return float(np.mean(~(sizes < observed * (1 - 1e-9) - 1e-12)))


def scenes_needed(difference: float, spread: float, protocol: EvaluationProtocol) -> int | None:
    """Scenes with which a difference is seen, given the standard deviation of the difference over scenes.

    Normal approximation of a paired test at level 1 - confidence with the chance `EvaluationProtocol.power`; never
    below `MIN_SCENES_FOR_CLAIM`. None for no difference.
    """
    if difference == 0 or not math.isfinite(spread):
        return None
    return max(math.ceil((_quantiles(protocol) * spread / difference) ** 2), MIN_SCENES_FOR_CLAIM)


def detectable_difference(num_scenes: int, spread: float, protocol: EvaluationProtocol) -> float | None:
    """The smallest difference seen with that chance in so many scenes; inverse of `scenes_needed`."""
    if num_scenes < MIN_SCENES_FOR_CLAIM or not math.isfinite(spread):
        return None
    return _quantiles(protocol) * spread / math.sqrt(num_scenes)


def _sums(
    name: str, baseline: Tables, candidate: Tables, both: Bool[np.ndarray, "s r"], counted_incident: str
) -> tuple[_Sums, _Sums]:
    """Sums of one metric of both policies over the same rollouts: those in `both` where both have a value."""
    if name == "incidents_per_km":
        return _rate_sums(baseline, both, counted_incident), _rate_sums(candidate, both, counted_incident)
    valid = both & np.isfinite(baseline[name]) & np.isfinite(candidate[name])
    return _mean_sums(baseline[name], valid), _mean_sums(candidate[name], valid)


def _rate_sums(tables: Tables, both: Bool[np.ndarray, "s r"], counted_incident: str) -> _Sums:
    incidents = np.where(both, tables[counted_incident], 0.0).sum(axis=1)
    return _Sums(1000 * incidents, np.where(both, tables["dist_traveled_m"], 0.0).sum(axis=1))


def _mean_sums(table: Float[np.ndarray, "s r"], valid: Bool[np.ndarray, "s r"]) -> _Sums:
    count = valid.sum(axis=1)
    return _Sums(np.where(valid, table, 0.0).sum(axis=1) / np.maximum(count, 1), (count > 0).astype(float))


def _is_clear(difference: Difference, protocol: EvaluationProtocol) -> bool:
    if difference.low is None or difference.high is None or difference.p_value is None:
        return False
    return not difference.low <= 0 <= difference.high and difference.p_value < 1 - protocol.confidence


def _difference_when(swaps: Bool[np.ndarray, "p s"], baseline: _Sums, candidate: _Sums) -> Float[np.ndarray, "p"]:
    """The difference under each relabelling: where `swaps` is set the two policies trade places."""

    def swapped(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return one.sum() + swaps @ (other - one)

    of_candidate = _ratio(swapped(candidate.above, baseline.above), swapped(candidate.below, baseline.below))
    of_baseline = _ratio(swapped(baseline.above, candidate.above), swapped(baseline.below, candidate.below))
    return of_candidate - of_baseline


def _all_swaps(num_scenes: int) -> Bool[np.ndarray, "p s"]:
    return np.array(list(itertools.product((False, True), repeat=num_scenes)))


def _random_swaps(num_scenes: int, protocol: EvaluationProtocol) -> Bool[np.ndarray, "p s"]:
    """Random relabellings, and first the one that was observed: without it a p-value could be zero."""
    drawn = np.random.default_rng(protocol.bootstrap_seed).integers(2, size=(protocol.permutations, num_scenes))
    return np.concatenate([np.zeros((1, num_scenes), bool), drawn.astype(bool)])


def _quantiles(protocol: EvaluationProtocol) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1 - (1 - protocol.confidence) / 2) + normal.inv_cdf(protocol.power)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(above) / np.asarray(below)
