"""The one sentence that a report opens with."""

import math

from eval.results import MIN_SCENES_FOR_CLAIM, Comparison, Summary


def verdict(summary: Summary) -> str:
    """Say which policy drives better, or why that cannot be said. Compares the last policy with the first.

    "Better" is claimed only when the interval of the paired difference in incidents per km leaves out zero.
    """
    names = list(summary.policies)
    if len(names) == 1:
        return f"{names[0]} {_record_of(summary, names[0])} on {_scenes(summary)}."
    comparison = summary.comparisons[-1]
    first, last = comparison.baseline, comparison.candidate
    if all(summary.policies[name]["incidents_per_km"].mean == 0 for name in (first, last)):
        return (
            f"No incident for either {first} or {last} on {_scenes(summary)} "
            f"({_km(summary, first)} and {_km(summary, last)}), so the driving score cannot separate them; "
            f"{_closeness(summary, first, last)}."
        )
    facts = f"{last} {_record_of(summary, last)}, {first} {_record_of(summary, first)}"
    if not comparison.has_enough_scenes:
        return f"On {_scenes(summary)} {facts}: too few scenes to say whether the difference is real."
    if not comparison.is_significant:
        return f"No significant difference on {_scenes(summary)}: {facts}."
    better, worse = (last, first) if comparison.difference < 0 else (first, last)
    return f"{better} drives better than {worse} on {_scenes(summary)}: {facts}."


def comparison_line(comparison: Comparison, confidence: float) -> str:
    """One line of the paired comparison: difference in incidents per km and its interval."""
    if math.isnan(comparison.difference):
        return f"{comparison.candidate} and {comparison.baseline} cannot be compared: one of them drove no metre"
    head = f"{comparison.candidate} minus {comparison.baseline}: {comparison.difference:+.2f} incidents per km"
    if comparison.low is None or comparison.high is None:
        return f"{head}; no interval (it needs at least two scenes)"
    meaning = "significant" if comparison.is_significant else "not significant"
    if not comparison.has_enough_scenes:
        meaning = f"no claim below {MIN_SCENES_FOR_CLAIM} scenes"
    return f"{head}, {confidence:.0%} interval [{comparison.low:+.2f}, {comparison.high:+.2f}], {meaning}"


def _record_of(summary: Summary, policy: str) -> str:
    score = summary.policies[policy]["driving_score"]
    return f"drove {score.mean:.3f} km per incident" if score.mean is not None else f"had {score.note}"


def _km(summary: Summary, policy: str) -> str:
    return summary.policies[policy]["driving_score"].note.removeprefix("no incident in ")


def _closeness(summary: Summary, first: str, last: str) -> str:
    distances = [summary.policies[name]["dist_to_gt_trajectory"].mean for name in (last, first)]
    if None in distances:
        return "neither was compared with the expert"
    return f"largest distance from the expert path {distances[0]:.2f} m for {last}, {distances[1]:.2f} m for {first}"


def _scenes(summary: Summary) -> str:
    count = len(summary.scene_ids)
    rollouts = summary.rollouts_per_scene
    each = " each" if count != 1 else ""
    return f"{count} scene{'s' if count != 1 else ''} with {rollouts} rollout{'s' if rollouts != 1 else ''}{each}"
