"""What a reader of a report has to know beside the numbers: baselines out of place, open loop against closed loop."""

import itertools
from collections import Counter

from eval.results import Statistic, Summary, open_loop_name

EXPERT, CONSTANT_VELOCITY = "expert", "constant_velocity"
_INCIDENT_TEXTS = {
    "offroad": "off-road",
    "collision_front": "front collision",
    "collision_lateral": "side collision",
    "collision_rear": "rear collision",
}


def incident_text(incident: str) -> str:
    """A kind of incident for a person."""
    return _INCIDENT_TEXTS[incident]


def baseline_notes(summary: Summary) -> list[str]:
    """One sentence for each way in which a baseline is not where it belongs: expert best, constant velocity worst."""
    notes = []
    if EXPERT in summary.baselines:
        notes += _expert_notes(summary)
    if CONSTANT_VELOCITY in summary.baselines:
        notes += _floor_notes(summary)
    return notes


def open_loop_notes(summary: Summary) -> list[str]:
    """Whether open loop and closed loop put checkpoints in opposite order: one example, the verdict's pair if it does.

    The others are counted.
    """
    name = open_loop_headline(summary)
    if name is None:
        return []
    names = summary.checkpoints
    pairs = [(names[0], names[-1]), *itertools.combinations(names, 2)] if len(names) > 1 else []
    found = [text for pair in dict.fromkeys(pairs) if (text := _disagreement(summary, pair, name))]
    if len(found) < 2:
        return [f"{text}." for text in found]
    return [f"{found[0]}; {len(found) - 1} more of {len(names) * (len(names) - 1) // 2} pairs of checkpoints do too."]


def _disagreement(summary: Summary, pair: tuple[str, str], name: str) -> str | None:
    ade, rate = _means(summary, pair, name), _means(summary, pair, "incidents_per_km")
    if ade is None or rate is None or not _opposed(ade, rate):
        return None
    near, far = (0, 1) if ade[0] < ade[1] else (1, 0)
    return (
        f"Open loop and closed loop disagree: {pair[near]} is closer to the recorded drive than {pair[far]} "
        f"(ADE {ade[near]:.2f} m against {ade[far]:.2f} m) but has more incidents when it drives itself "
        f"({rate[near]:.2f} against {rate[far]:.2f} per km)"
    )


def open_loop_headline(summary: Summary) -> str | None:
    """The open-loop metric to show beside the driving score: mean displacement over the longest horizon there is."""
    named = {name: open_loop_name(name) for metrics in summary.policies.values() for name in metrics}
    horizons_s = {name: parts.horizon_s for name, parts in named.items() if parts is not None and parts.kind == "ade"}
    return max(horizons_s, key=lambda name: horizons_s[name], default=None)


_NOTHING = Statistic(None, None, None, None)
_WORTH_SAYING = 0.05


def _means(summary: Summary, policies: tuple[str, ...], name: str) -> list[float] | None:
    means = [summary.policies[policy].get(name, _NOTHING).mean for policy in policies]
    return None if None in means else [mean for mean in means if mean is not None]


def _opposed(ade: list[float], rate: list[float]) -> bool:
    """Whether two policies are in opposite order, each time by more than a twentieth."""
    gaps = [(pair[0] - pair[1]) / max(max(pair), 1e-9) for pair in (ade, rate)]
    return gaps[0] * gaps[1] < 0 and min(map(abs, gaps)) > _WORTH_SAYING


def _expert_notes(summary: Summary) -> list[str]:
    bad = [item for item in summary.rollouts if item.policy == EXPERT and item.incident]
    if not bad:
        return []
    kinds = Counter((item.scene_id, item.incident) for item in bad)
    places = ", ".join(f"{incident_text(kind)} in {scene_id}" for scene_id, kind in kinds)
    return [
        f"The recorded drive itself is not free of incidents when it is replayed ({places}). It then counts as one "
        "whatever a policy does: look at the map and the recorded boxes there before you trust these scenes."
    ]


def _floor_notes(summary: Summary) -> list[str]:
    floor = summary.policies[CONSTANT_VELOCITY]["incidents_per_km"].mean
    if floor is None:
        return []
    if floor == 0:
        head = f"Driving straight on at constant speed has no incident here{_far(summary)}"
        return [f"{head}: a score on these scenes says little."]
    notes = []
    for name in (*summary.checkpoints, EXPERT):
        rate = summary.policies.get(name, {}).get("incidents_per_km", _NOTHING).mean
        if rate is not None and rate > floor:
            notes.append(
                f"{name} has more incidents per km than driving straight on at constant speed ({rate:.2f} against "
                f"{floor:.2f}{_far(summary)}): it goes wrong before a straight line does."
            )
    return notes


def _far(summary: Summary) -> str:
    """How often the floor left the log before anything could count, for use inside a sentence."""
    own = [item for item in summary.rollouts if item.policy == CONSTANT_VELOCITY]
    far = sum(item.ended == "far from log" for item in own)
    limit_m = summary.protocol.max_distance_to_log_m
    return f"; {far} of its {len(own)} rollouts stop counting {limit_m:g} m from the log" if far and limit_m else ""
