"""The report of an evaluation: one HTML file that needs nothing else, and its tables."""

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from eval.aggregate import aggregate
from eval.metric_names import METRIC_TEXTS, MetricText
from eval.plots import distance_svg, paths_svg, policy_colors, speed_svg
from eval.results import EvaluationResult, ReducedRollout, RolloutKey, Statistic, Summary
from eval.tables import write_metrics, write_summary
from eval.verdict import comparison_line, verdict
from neural_sim.artifacts import atomic_file
from neural_sim.errors import InputError

_HEADLINE_METRICS = 6
_NO_NUMBER, _MINUS = "\u2013", "\u2212"
_INCIDENT_TEXT = {
    "offroad": "off-road",
    "collision_front": "front collision",
    "collision_lateral": "side collision",
    "collision_rear": "rear collision",
}


@dataclass(frozen=True)
class ReportOptions:
    """What goes into the HTML file."""

    title: str = "Closed-loop evaluation"
    """Heading of the page."""
    max_embedded_mb: float = 80.0
    """Videos are embedded, those with incidents first, up to this many megabytes; further ones are linked."""
    max_plotted_scenes: int = 12
    """Scenes with plots, those with incidents first."""

    def __post_init__(self) -> None:
        for name in ("max_embedded_mb", "max_plotted_scenes"):
            if getattr(self, name) < 0:
                raise InputError(f"report: {name} is {getattr(self, name)}, expected a number >= 0")


def write_report(
    out: Path,
    evaluation: EvaluationResult,
    *,
    options: ReportOptions | None = None,
    provenance: Mapping[str, str] | None = None,
    config_yaml: str = "",
) -> Summary:
    """Write `metrics.parquet`, `summary.json` and `report.html` into the folder `out`; returns the summary.

    `provenance`: shown as given (commit, versions, checkpoints, seed). The same arguments give the same bytes; no
    clock is read. Raises `InputError` when there is nothing to report.
    """
    options = options or ReportOptions()
    summary = aggregate(evaluation.scores, evaluation.protocol, evaluation.failures)
    page = render_html(out, evaluation, summary, options, provenance or {}, config_yaml)
    write_metrics(evaluation.scores, out / "metrics.parquet")
    write_summary(summary, out / "summary.json")
    with atomic_file(out / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return summary


def render_html(
    out: Path,
    evaluation: EvaluationResult,
    summary: Summary,
    options: ReportOptions,
    provenance: Mapping[str, str],
    config_yaml: str,
) -> str:
    """The text of `report.html`; videos that are not embedded are linked relative to `out`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eval"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = format_number
    policies = list(summary.policies)
    colors = policy_colors(policies)
    rows = _metric_rows(summary)
    return environment.get_template("report.html.j2").render(
        title=options.title,
        verdict=verdict(summary),
        summary=summary,
        policies=policies,
        colors=colors,
        headline_rows=rows[:_HEADLINE_METRICS],
        further_rows=rows[_HEADLINE_METRICS:],
        comparisons=[comparison_line(item, summary.protocol.confidence) for item in summary.comparisons],
        rollouts=[_rollout_row(item, evaluation) for item in _worst_first(summary)],
        failures=evaluation.failures,
        derived_scenes=_derived_scenes(evaluation),
        plots=_scene_plots(evaluation, summary, colors, options),
        videos=_gallery(out, evaluation, summary, options),
        provenance=provenance,
        config_yaml=config_yaml,
        protocol=_protocol_lines(summary),
        events=_event_rows(evaluation),
    )


def format_number(value: float | None, decimals: int = 3) -> str:
    """A number for a table; a dash where there is none, and a true minus sign."""
    if value is None or not math.isfinite(value):
        return _NO_NUMBER
    return f"{value:.{decimals}f}".replace("-", _MINUS)


def _metric_rows(summary: Summary) -> list[dict[str, Any]]:
    """One row a metric that some policy has, with the best mean marked."""
    rows = []
    for text in METRIC_TEXTS:
        cells = [summary.policies[policy].get(text.name) for policy in summary.policies]
        if any(cell is not None for cell in cells):
            rows.append({"text": text, "cells": cells, "best": _best(text, cells)})
    return rows


def _best(text: MetricText, cells: Sequence[Statistic | None]) -> set[int]:
    """Columns with the best mean; none when all are equal, one is missing, or neither direction is better."""
    means = [_rank_value(cell) for cell in cells]
    shown = {round(mean, text.decimals) for mean in means if mean is not None}
    if not text.better or None in means or len(shown) < 2:
        return set()
    best = max(shown) if text.better == "more" else min(shown)
    return {i for i, mean in enumerate(means) if mean is not None and round(mean, text.decimals) == best}


def _rank_value(cell: Statistic | None) -> float | None:
    """Mean of a cell; a score without a single incident ranks above every number."""
    if cell is None:
        return None
    return math.inf if cell.mean is None and cell.note.startswith("no incident") else cell.mean


def _worst_first(summary: Summary) -> list[ReducedRollout]:
    """Rollouts with incidents first, then those that ended far from the log; otherwise in the order given."""
    rank = {"incident": 0, "far from log": 1, "end": 2}
    return sorted(summary.rollouts, key=lambda item: (not item.incident, rank[item.ended]))


def _rollout_row(item: ReducedRollout, evaluation: EvaluationResult) -> dict[str, Any]:
    return {
        "key": video_anchor((item.policy, item.scene_id, item.rollout_index)),
        "has_video": (item.policy, item.scene_id, item.rollout_index) in evaluation.videos,
        "policy": item.policy,
        "scene": item.scene_id,
        "index": item.rollout_index,
        "is_incident": bool(item.incident),
        "ended": _ended_text(item),
        "seconds": item.evaluated_s,
        "metrics": item.metrics,
    }


def _ended_text(item: ReducedRollout) -> str:
    if not item.incident:
        return "far from the log" if item.ended == "far from log" else "end"
    is_at_fault = item.metrics["offroad_or_collision_at_fault"] > 0
    return _INCIDENT_TEXT[item.incident] + ("" if is_at_fault else ", not at fault")


def video_anchor(key: RolloutKey) -> str:
    """Fragment id of the video of a rollout."""
    return "video-" + "-".join("".join(c if c.isalnum() else "_" for c in str(part)) for part in key)


def _derived_scenes(evaluation: EvaluationResult) -> list[str]:
    return sorted({score.scene_id for score in evaluation.scores if score.map_source == "derived"})


def _event_rows(evaluation: EvaluationResult) -> list[tuple[str, str, int]]:
    """(policy, kind, count) of simulation events, in the order of the policies."""
    counts: dict[tuple[str, str], int] = {}
    for score in evaluation.scores:
        for kind, count in score.event_counts.items():
            counts[score.policy, kind] = counts.get((score.policy, kind), 0) + count
    return [(policy, kind, count) for (policy, kind), count in counts.items()]


def _scene_plots(
    evaluation: EvaluationResult, summary: Summary, colors: Mapping[str, str], options: ReportOptions
) -> list[dict[str, str]]:
    cuts = {(item.policy, item.scene_id, item.rollout_index): item for item in summary.rollouts}
    scene_ids = list(dict.fromkeys(item.scene_id for item in _worst_first(summary)))[: options.max_plotted_scenes]
    plots = []
    for scene_id in scene_ids:
        scores = [score for score in evaluation.scores if score.scene_id == scene_id]
        limit_m = summary.protocol.max_distance_to_log_m
        plots.append(
            {
                "scene": scene_id,
                "distance": distance_svg(scores, cuts, colors, limit_m),
                "speed": speed_svg(scores, cuts, colors),
                "paths": paths_svg(scores, cuts, colors, evaluation.road_maps.get(scene_id)),
            }
        )
    return plots


def _gallery(out: Path, evaluation: EvaluationResult, summary: Summary, options: ReportOptions) -> list[dict[str, Any]]:
    left_bytes = options.max_embedded_mb * 1e6
    cards = []
    for item in _worst_first(summary):
        key = (item.policy, item.scene_id, item.rollout_index)
        path = evaluation.videos.get(key)
        if path is None:
            continue
        size_bytes = path.stat().st_size
        is_embedded = size_bytes <= left_bytes
        left_bytes -= size_bytes if is_embedded else 0
        cards.append(
            _rollout_row(item, evaluation)
            | {"source": _data_uri(path) if is_embedded else _relative_link(path, out), "is_embedded": is_embedded}
        )
    return cards


def _data_uri(path: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _relative_link(path: Path, out: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), out.resolve())).as_posix())


def _protocol_lines(summary: Summary) -> list[str]:
    protocol = summary.protocol
    counted = "off-road and at-fault collisions" if protocol.at_fault_only else "off-road and every collision"
    lines = ["Warm-up is dropped."]
    if protocol.stop_at_first_incident:
        lines.append("Counting stops at the first off-road or collision of any kind; that step still counts.")
    if protocol.max_distance_to_log_m is not None:
        limit_m = format_number(protocol.max_distance_to_log_m, 1)
        lines.append(f"Counting stops at {limit_m} m from the expert path; later events are ignored.")
    lines.append(f"Counted incidents: {counted}. At fault: front contact, or side contact while driving.")
    lines.append(
        f"Boxes are shrunk by {protocol.box_shrink:.0%} and rounded; overlaps already in the log are left out."
    )
    lines.append(
        f"± is the standard deviation over rollout indices; brackets are {protocol.confidence:.0%} bootstrap "
        f"intervals over scenes ({protocol.bootstrap_resamples} resamples), absent below two scenes."
    )
    return lines
