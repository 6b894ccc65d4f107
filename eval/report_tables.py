"""The rows of the tables in a report."""

import math
from collections.abc import Sequence
from typing import Any

from eval.metric_names import METRIC_TEXTS, MetricText
from eval.notes import incident_text
from eval.results import (
    Comparison,
    Difference,
    EvaluationResult,
    ReducedRollout,
    RolloutKey,
    Statistic,
    Summary,
    open_loop_name,
)

_NO_NUMBER, _MINUS = "\u2013", "\u2212"
_TEXTS = {text.name: text for text in METRIC_TEXTS}
_OPEN_LOOP_LABELS = {
    "ade": ("ADE", "m", "Mean displacement up to the horizon, averaged over the sampled plans."),
    "min_ade": ("minADE", "m", "The same of the best of the sampled plans."),
    "fde": ("FDE", "m", "Displacement at the horizon, averaged over the sampled plans."),
    "min_fde": ("minFDE", "m", "The same of the best of the sampled plans."),
    "corner": ("Box corners", "m", "Mean distance of the corners of the car, best of the sampled plans."),
    "miss_rate": ("Miss rate", "", "Share of windows in which every sampled plan misses at the horizon."),
}


def format_number(value: float | None, decimals: int = 3) -> str:
    """A number for a table; a dash where there is none, and a true minus sign."""
    if value is None or not math.isfinite(value):
        return _NO_NUMBER
    return f"{value:.{decimals}f}".replace("-", _MINUS)


def format_signed(value: float | None, decimals: int = 3) -> str:
    """A difference for a table, with its sign."""
    text = format_number(value, decimals)
    return f"+{text}" if value is not None and math.isfinite(value) and value > 0 else text


def metric_text(name: str) -> MetricText:
    """How a metric is shown, open-loop ones and unknown ones included."""
    parts = open_loop_name(name)
    if parts is not None and parts.kind in _OPEN_LOOP_LABELS:
        label, unit, meaning = _OPEN_LOOP_LABELS[parts.kind]
        return MetricText(name, f"Open loop: {label} at {parts.horizon_s:g} s", unit, "less", meaning, 2)
    return _TEXTS.get(name, MetricText(name, name, "", "", ""))


def metric_rows(summary: Summary) -> list[dict[str, Any]]:
    """One row a closed-loop metric that some policy has, with the best mean of the checkpoints marked."""
    return _rows(summary, METRIC_TEXTS)


def open_loop_table(summary: Summary) -> dict[str, Any] | None:
    """Open-loop metrics with horizons as columns and policies as rows, a group a metric; None without any."""
    cells = {
        (parts.kind, policy, parts.horizon_s): statistic
        for policy, metrics in summary.policies.items()
        for name, statistic in metrics.items()
        if (parts := open_loop_name(name)) is not None
    }
    if not cells:
        return None
    horizons_s = sorted({horizon_s for _, _, horizon_s in cells})
    kinds = [kind for kind in _OPEN_LOOP_LABELS if any(kind == key[0] for key in cells)]
    groups = []
    for kind in kinds:
        label, unit, meaning = _OPEN_LOOP_LABELS[kind]
        judged = [policy for policy in summary.policies if any((kind, policy) == key[:2] for key in cells)]
        rows = [{"policy": policy, "cells": [cells.get((kind, policy, at)) for at in horizons_s]} for policy in judged]
        groups.append({"label": label, "unit": unit, "meaning": meaning, "rows": rows})
    return {"horizons": [f"{at:g} s" for at in horizons_s], "groups": groups}


def comparison_tables(summary: Summary) -> list[dict[str, Any]]:
    """One table a comparison with the first policy, the last checkpoint's in front; the others are folded away."""
    last = summary.checkpoints[-1]
    ordered = sorted(summary.comparisons, key=lambda item: item.candidate != last)
    confidence = summary.protocol.confidence
    return [
        {
            "comparison": item,
            "is_folded": item.candidate != last,
            "rows": [difference_row(difference, confidence) for difference in item.differences.values()],
            "pairs": pairs_text(item),
        }
        for item in ordered
    ]


def difference_row(difference: Difference, confidence: float) -> dict[str, Any]:
    """One metric of a comparison; `verdict` is "better" or "worse" where interval and p-value agree that it is real."""
    text = metric_text(difference.metric)
    low, high = difference.low, difference.high
    is_clear = low is not None and high is not None and not low <= 0 <= high
    is_clear = is_clear and difference.p_value is not None and difference.p_value < 1 - confidence and text.better
    towards_more = (difference.difference or 0.0) > 0
    return {
        "text": text,
        "difference": difference,
        "verdict": ("better" if towards_more == (text.better == "more") else "worse") if is_clear else "",
    }


def pairs_text(comparison: Comparison) -> str:
    """Over what a comparison was made."""
    plural = "" if comparison.num_scenes == 1 else "s"
    text = f"{comparison.num_pairs} rollouts in {comparison.num_scenes} scene{plural} that both finished"
    left_out = f"; {comparison.num_left_out} finished by one of them only are left out"
    return text + (left_out if comparison.num_left_out else "")


def scene_rows(summary: Summary) -> list[dict[str, Any]]:
    """One row a scene: per policy the rollouts with a counted incident, the finished ones, and the distance driven."""
    counted = "offroad_or_collision_at_fault" if summary.protocol.at_fault_only else "offroad_or_collision"
    rows = []
    for scene_id in summary.scene_ids:
        cells = []
        for policy in summary.policies:
            own = [item for item in summary.rollouts if (item.scene_id, item.policy) == (scene_id, policy)]
            failed = sum((item.scene_id, item.policy) == (scene_id, policy) for item in summary.failures)
            cells.append({
                "incidents": sum(item.metrics[counted] > 0 for item in own),
                "finished": len(own),
                "failed": failed,
                "to_path_m": _mean([item.metrics["dist_to_gt_trajectory"] for item in own]),
            })  # fmt: skip
        rows.append({"scene": scene_id, "cells": cells})
    return rows


def worst_first(summary: Summary) -> list[ReducedRollout]:
    """Rollouts with incidents first, then those that ended far from the log; otherwise in the order given."""
    rank = {"incident": 0, "far from log": 1, "end": 2}
    return sorted(summary.rollouts, key=lambda item: (not item.incident, rank[item.ended]))


def rollout_row(item: ReducedRollout, evaluation: EvaluationResult) -> dict[str, Any]:
    """One rollout, for the table and under its video."""
    return {
        "key": video_anchor(item.key),
        "has_video": item.key in evaluation.videos,
        "policy": item.policy,
        "scene": item.scene_id,
        "index": item.rollout_index,
        "is_incident": bool(item.incident),
        "ended": _ended_text(item),
        "seconds": item.evaluated_s,
        "metrics": item.metrics,
    }


def video_anchor(key: RolloutKey) -> str:
    """Fragment id of the video of a rollout."""
    return "video-" + "-".join("".join(c if c.isalnum() else "_" for c in str(part)) for part in key)


def _rows(summary: Summary, texts: Sequence[MetricText]) -> list[dict[str, Any]]:
    compared = [policy in summary.checkpoints for policy in summary.policies]
    rows = []
    for text in texts:
        cells = [metrics.get(text.name) for metrics in summary.policies.values()]
        if any(cell is not None for cell in cells):
            rows.append({"text": text, "cells": cells, "best": _best(text, cells, compared)})
    return rows


def _best(text: MetricText, cells: Sequence[Statistic | None], compared: Sequence[bool]) -> set[int]:
    """Columns with the best mean; none when all are equal, one is missing, or neither direction is better."""
    means = {i: _rank_value(cell) for i, cell in enumerate(cells) if compared[i]}
    shown = {round(mean, text.decimals) for mean in means.values() if mean is not None}
    if not text.better or None in means.values() or len(shown) < 2:
        return set()
    best = max(shown) if text.better == "more" else min(shown)
    return {i for i, mean in means.items() if mean is not None and round(mean, text.decimals) == best}


def _rank_value(cell: Statistic | None) -> float | None:
    """Mean of a cell; a score without a single incident ranks above every number."""
    if cell is None:
        return None
    return math.inf if cell.mean is None and cell.note.startswith("no incident") else cell.mean


def _ended_text(item: ReducedRollout) -> str:
    if not item.incident:
        return "far from the log" if item.ended == "far from log" else "end"
    is_at_fault = item.metrics["offroad_or_collision_at_fault"] > 0
    return incident_text(item.incident) + ("" if is_at_fault else ", not at fault")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
