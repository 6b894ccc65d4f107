"""The one sentence that a report opens with."""

from collections import Counter

from eval.results import MIN_SCENES_FOR_CLAIM, Comparison, Summary


def verdict(summary: Summary) -> str:
    """Say which policy drives better, or why that cannot be said. Compares the last checkpoint with the first.

    "Better" is claimed only when `Comparison.is_significant`. Failed rollouts are never left unsaid.
    """
    return _claim(summary) + _failed(summary)


def comparison_line(comparison: Comparison, confidence: float) -> str:
    """One line of the paired comparison: difference in incidents per km, its interval and p-value."""
    headline = comparison.headline
    if headline.difference is None:
        return f"{comparison.candidate} and {comparison.baseline} cannot be compared: one of them drove no metre"
    head = f"{comparison.candidate} minus {comparison.baseline}: {headline.difference:+.2f} incidents per km"
    if headline.low is None or headline.high is None:
        return f"{head}; no interval (it needs at least two scenes)"
    meaning = "significant" if comparison.is_significant else "not significant"
    if not comparison.has_enough_scenes:
        meaning = f"no claim below {MIN_SCENES_FOR_CLAIM} scenes"
    p_value = "" if headline.p_value is None else f", p = {headline.p_value:.2g}"
    interval = f"{confidence:.0%} interval [{headline.low:+.2f}, {headline.high:+.2f}]"
    return f"{head}, {interval}{p_value}, {meaning}"


def _claim(summary: Summary) -> str:
    names = summary.checkpoints
    first, last = names[0], names[-1]
    comparison = next((item for item in summary.comparisons if (item.baseline, item.candidate) == (first, last)), None)
    if comparison is None:
        return f"{last} {_record_of(summary, last)} on {_scenes(summary)}."
    if all(summary.policies[name]["incidents_per_km"].mean == 0 for name in (first, last)):
        return (
            f"No incident for either {first} or {last} on {_scenes(summary)} "
            f"({_km(summary, first)} and {_km(summary, last)}), so the driving score cannot separate them; "
            f"{_closeness(summary, first, last)}."
        )
    facts = f"{last} {_record_of(summary, last)}, {first} {_record_of(summary, first)}"
    difference = comparison.headline.difference
    if not comparison.has_enough_scenes:
        return f"On {_scenes(summary)} {facts}: too few scenes to say whether the difference is real."
    if not comparison.is_significant or difference is None:
        return f"No significant difference on {_scenes(summary)}: {facts}."
    better, worse = (last, first) if difference < 0 else (first, last)
    return f"{better} drives better than {worse} on {_scenes(summary)}: {facts}."


def _failed(summary: Summary) -> str:
    counts = Counter(failure.policy for failure in summary.failures)
    each = len(summary.scene_ids) * summary.rollouts_per_scene
    return "".join(f" {name} failed in {count} of its {each} rollouts." for name, count in counts.items())


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
