"""The report of an evaluation: one HTML file that needs nothing else, and its tables."""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from eval.aggregate import summarise
from eval.learning import Learning, learning_of, overfitting_notes
from eval.notes import baseline_notes, open_loop_headline, open_loop_notes
from eval.plots import (
    checkpoint_curve_svg,
    distance_svg,
    learning_curve_svg,
    paths_svg,
    plan_distance_svg,
    policy_colors,
    speed_svg,
)
from eval.report_tables import (
    comparison_tables,
    format_number,
    format_signed,
    metric_rows,
    metric_text,
    open_loop_table,
    rollout_row,
    scene_rows,
    worst_first,
)
from eval.results import EvaluationResult, ReducedRollout, RolloutKey, Summary
from eval.tables import write_metrics, write_summary
from eval.verdict import comparison_line, verdict
from neural_sim.artifacts import atomic_file, write_json
from neural_sim.errors import InputError

LEARNING_NAME = "learning_curves.json"
_HEADLINE_METRICS = 6
_CURVES = ("driving_score", "collision_at_fault")


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

    Checkpoints of one training run also give `learning_curves.json`.
    `provenance`: shown as given (commit, versions, checkpoints, seed). The same arguments give the same bytes; no
    clock is read. Raises `InputError` when there is nothing to report.
    """
    options = options or ReportOptions()
    summary = summarise(evaluation)
    page = render_html(out, evaluation, summary, options, provenance or {}, config_yaml)
    write_metrics(evaluation.scores, out / "metrics.parquet")
    learning = learning_of(evaluation)
    if learning is not None:
        write_json(out / LEARNING_NAME, learning.to_json(_curve_names(summary)))
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
    environment.filters |= {"number": format_number, "signed": format_signed}
    colors = policy_colors(list(summary.policies))
    rows = metric_rows(summary)
    learning = learning_of(evaluation)
    embedding = _Embedding(out, options.max_embedded_mb * 1e6)
    return environment.get_template("report.html.j2").render(
        title=options.title,
        verdict=verdict(summary),
        notes=[*baseline_notes(summary), *open_loop_notes(summary), *_learning_notes(learning), *evaluation.notes],
        summary=summary,
        policies=list(summary.policies),
        colors=colors,
        headline_rows=rows[:_HEADLINE_METRICS],
        further_rows=rows[_HEADLINE_METRICS:],
        comparisons=_comparison_lines(summary),
        comparison_tables=comparison_tables(summary),
        clips=embedding.cards(evaluation.clips, evaluation, summary),
        curves=_curves(summary, colors) if learning is None else _learning_curves(learning, summary),
        plan_distances=plan_distance_svg(_distances_by_policy(evaluation), colors),
        open_loop=open_loop_table(summary),
        scenes=scene_rows(summary),
        rollouts=[rollout_row(item, evaluation) for item in worst_first(summary)],
        failures=evaluation.failures,
        derived_scenes=_derived_scenes(evaluation),
        plots=_scene_plots(evaluation, summary, colors, options),
        videos=embedding.cards(evaluation.videos, evaluation, summary),
        provenance=provenance,
        config_yaml=config_yaml,
        protocol=_protocol_lines(summary),
        events=_event_rows(evaluation),
    )


def _comparison_lines(summary: Summary) -> list[str]:
    """The comparison that the verdict rests on; the others stand in the tables."""
    shown = [item for item in summary.comparisons if item.candidate == summary.checkpoints[-1]]
    return [comparison_line(item, summary.protocol.confidence) for item in shown]


def _curves(summary: Summary, colors: Mapping[str, str]) -> list[dict[str, str]]:
    """Curves over the checkpoints in the order given; none below two."""
    if len(summary.checkpoints) < 2:
        return []
    return [
        {
            "svg": checkpoint_curve_svg(summary, name, colors),
            "caption": f"{metric_text(name).label} over the checkpoints; dashed: baselines",
        }
        for name in _curve_names(summary)
    ]


def _curve_names(summary: Summary) -> list[str]:
    open_loop = open_loop_headline(summary)
    return [*_CURVES, *([open_loop] if open_loop else [])]


def _learning_curves(learning: Learning, summary: Summary) -> list[dict[str, str]]:
    """The same metrics over the steps of the training run."""
    ringed = "" if learning.best is None else f"; ringed: {learning.best.policy}"
    return [
        {"svg": learning_curve_svg(learning, name), "caption": f"{metric_text(name).label} over the training{ringed}"}
        for name in _curve_names(summary)
    ]


def _learning_notes(learning: Learning | None) -> list[str]:
    if learning is None:
        return []
    best = learning.best
    found = [] if best is None else [
        f"The best checkpoint is {best.policy}, by {metric_text(best.metric).label.lower()} ({best.value:.3f})."
    ]  # fmt: skip
    return [*found, *overfitting_notes(learning)]


def _distances_by_policy(evaluation: EvaluationResult) -> dict[str, list[float]]:
    """d^g of all counted plans, m, by policy; not of the expert, whose plans are the recording."""
    found: dict[str, list[float]] = {}
    for (policy, _, _), distances_m in evaluation.plan_distances_m.items():
        if policy != "expert":
            found.setdefault(policy, []).extend(distances_m.tolist())
    return {policy: values for policy, values in found.items() if values}


@dataclass
class _Embedding:
    """Puts videos into the page until it holds `left_bytes` more of them; further ones are linked."""

    out: Path
    left_bytes: float

    def cards(
        self, paths: Mapping[RolloutKey, Path], evaluation: EvaluationResult, summary: Summary
    ) -> list[dict[str, Any]]:
        """One card a video, the worst rollouts first."""
        return [
            rollout_row(item, evaluation) | self._source(paths[item.key])
            for item in worst_first(summary)
            if item.key in paths
        ]

    def _source(self, path: Path) -> dict[str, Any]:
        size_bytes = path.stat().st_size
        is_embedded = size_bytes <= self.left_bytes
        self.left_bytes -= size_bytes if is_embedded else 0
        source = _data_uri(path) if is_embedded else _relative_link(path, self.out)
        return {"source": source, "is_embedded": is_embedded}


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
    cuts: dict[RolloutKey, ReducedRollout] = {item.key: item for item in summary.rollouts}
    scene_ids = list(dict.fromkeys(item.scene_id for item in worst_first(summary)))[: options.max_plotted_scenes]
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


def _data_uri(path: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _relative_link(path: Path, out: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), out.resolve())).as_posix())


def _protocol_lines(summary: Summary) -> list[str]:
    protocol = summary.protocol
    counted = "off-road and at-fault collisions" if protocol.at_fault_only else "off-road and every collision"
    lines = [f"Preset {protocol.preset}. Warm-up is dropped."]
    if protocol.stop_at_first_incident:
        lines.append("Counting stops at the first off-road or collision of any kind; that step still counts.")
    if protocol.max_distance_to_log_m is not None:
        limit_m = format_number(protocol.max_distance_to_log_m, 1)
        lines.append(f"Counting stops at {limit_m} m from the expert path; later events are ignored.")
    driving = " while driving" if protocol.standing_speed_mps > 0 else ""
    lines.append(f"Counted incidents: {counted}. At fault: front contact, or side contact{driving}.")
    in_log = "count too" if protocol.count_contacts_in_log else "are left out"
    lines.append(f"Boxes are shrunk by {protocol.box_shrink:.0%} and rounded; overlaps already in the log {in_log}.")
    lines.append(
        f"± is the standard deviation over rollout indices; brackets are {protocol.confidence:.0%} bootstrap "
        f"intervals over scenes ({protocol.bootstrap_resamples} resamples), absent below two scenes."
    )
    lines.append(
        "Differences are taken over rollouts that both policies finished; p is that of swapping the two policies at "
        f"random scene by scene, and the scenes needed are those that show a difference as large with "
        f"{protocol.power:.0%} chance."
    )
    lines.append("A failed rollout enters the failure rate and no other metric, and no difference.")
    return lines
