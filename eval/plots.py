"""Plots of a report as inline SVG: deterministic, coloured to read on light and dark pages."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.learning import Learning
from eval.results import ReducedRollout, RolloutScore, Summary
from neural_sim.road_map import RoadMap

POLICY_COLORS = ("#2f6db5", "#d4711c", "#1f9469", "#9a4fb0", "#c23b4e", "#7a7f2a", "#4a8fa0", "#8a6d5b")
_INK = "#123456"  # stands for the text colour of the page, see `_inline_svg`
_ROAD = "#8a9097"
_GROUP_STYLES = ((POLICY_COLORS[0], "-"), (POLICY_COLORS[4], "--"))  # training scenes, held-out scenes
_WIDTH_IN, _HEIGHT_IN, _LOW_IN = 5.2, 3.1, 2.6
_RC: dict[Any, Any] = {
    "svg.hashsalt": "roadloop",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "grid.color": _ROAD,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}

Colors = Mapping[str, str]


def policy_colors(policies: Sequence[str]) -> dict[str, str]:
    """A colour for each policy, in order; colours repeat after eight."""
    return {policy: POLICY_COLORS[i % len(POLICY_COLORS)] for i, policy in enumerate(policies)}


def distance_svg(
    scores: Sequence[RolloutScore],
    cuts: Mapping[tuple[str, str, int], ReducedRollout],
    colors: Colors,
    limit_m: float | None,
) -> str:
    """Distance to the expert path over time of the rollouts of one scene; what is not counted is faint."""

    def draw(axes: Axes) -> None:
        for score in scores:
            _draw_over_time(axes, score, cuts[score.key], "dist_to_gt_trajectory", colors)
        largest_m = max(float(score.series["dist_to_gt_trajectory"].values.max()) for score in scores)
        if limit_m is not None and largest_m > 0.5 * limit_m:
            axes.axhline(limit_m, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
        top_m = largest_m if limit_m is None else min(largest_m, 1.5 * limit_m)
        axes.set_ylim(0, max(1.05 * top_m, 0.5))
        axes.set(xlabel="time after warm-up (s)", ylabel="distance to expert path (m)")

    return _figure(draw)


def speed_svg(
    scores: Sequence[RolloutScore], cuts: Mapping[tuple[str, str, int], ReducedRollout], colors: Colors
) -> str:
    """Speed over time of the rollouts of one scene, and the expert's (dashed)."""

    def draw(axes: Axes) -> None:
        for score in scores:
            _draw_over_time(axes, score, cuts[score.key], "speed_mps", colors)
        longest = max(scores, key=lambda score: int((~score.is_warmup).sum()))
        keep = ~longest.is_warmup
        expert_mps = longest.series["expert_speed_mps"].values[keep]
        axes.plot(_seconds(longest)[keep], expert_mps, color=_INK, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.set_ylim(bottom=0)
        axes.set(xlabel="time after warm-up (s)", ylabel="speed (m/s)")

    return _figure(draw)


def paths_svg(
    scores: Sequence[RolloutScore],
    cuts: Mapping[tuple[str, str, int], ReducedRollout],
    colors: Colors,
    road_map: RoadMap | None,
) -> str:
    """Driven paths of the rollouts of one scene from above, the expert's dashed, incidents as crosses."""

    everything = np.concatenate([path for score in scores for path in (score.ego_planar, score.expert_planar)])
    low, high = everything[:, :2].min(axis=0) - 8.0, everything[:, :2].max(axis=0) + 8.0

    def draw(axes: Axes) -> None:
        if road_map is not None:
            _draw_road(axes, road_map, low, high)
        expert = scores[0].expert_planar
        for score in scores:
            keep = (~score.is_warmup) & (score.t_us <= cuts[score.key].cut_us)
            xy, color = score.ego_planar[keep, :2], colors[score.policy]
            axes.plot(xy[:, 0], xy[:, 1], color=color, linewidth=1.4, alpha=0.85)
            if cuts[score.key].incident:
                axes.plot(*xy[-1], marker="x", color=color, markersize=7, markeredgewidth=1.8)
        axes.plot(expert[:, 0], expert[:, 1], color=_INK, linewidth=1.0, linestyle=(0, (4, 2)))
        axes.set_aspect("equal", adjustable="box")
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="x (m)", ylabel="y (m)")

    # A straight road is drawn on a lower figure, not on a tall one with empty bands.
    needed_in = 0.8 + (_WIDTH_IN - 0.7) * (high[1] - low[1]) / (high[0] - low[0])
    return _figure(draw, float(np.clip(needed_in, 1.5, _HEIGHT_IN)))


def checkpoint_curve_svg(summary: Summary, name: str, colors: Colors) -> str:
    """A metric over the checkpoints in the order given, with its intervals; baselines are horizontal lines.

    Where a checkpoint has no finite value (a driving score without incident) the curve has a gap.
    """

    def draw(axes: Axes) -> None:
        cells = [summary.policies[policy].get(name) for policy in summary.checkpoints]
        means = np.array([np.nan if cell is None or cell.mean is None else cell.mean for cell in cells])
        places = np.arange(len(cells))
        axes.plot(places, means, color=_INK, linewidth=1.2, alpha=0.5)
        for place, policy, cell in zip(places, summary.checkpoints, cells, strict=True):
            axes.plot(place, means[place], "o", color=colors[policy], markersize=6)
            if cell is not None and cell.low is not None and cell.high is not None:
                axes.plot([place, place], [cell.low, cell.high], color=colors[policy], linewidth=1.4)
        for policy in summary.baselines:
            cell = summary.policies[policy].get(name)
            if cell is not None and cell.mean is not None:
                axes.axhline(cell.mean, color=colors[policy], linewidth=1.1, linestyle=(0, (4, 2)))
        slant = {"rotation": 25, "ha": "right"} if len(cells) > 4 else {}
        axes.set_xticks(places, summary.checkpoints, **slant)
        axes.set_xlim(-0.5, len(cells) - 0.5)
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        axes.grid(visible=True, axis="y")

    return _figure(draw, _LOW_IN)


def learning_curve_svg(learning: Learning, metric: str) -> str:
    """A metric over the training steps, a line for each group of scenes; the best checkpoint is ringed.

    Where a checkpoint has no finite value (a driving score without incident) the line has a gap.
    """
    steps = np.array([learning.progress.steps[name] for name in learning.checkpoints])

    def draw(axes: Axes) -> None:
        for group, (color, line) in zip(learning.groups, _GROUP_STYLES, strict=False):
            values = np.array([np.nan if value is None else value for value in learning.values(group, metric)])
            axes.plot(steps, values, color=color, linewidth=1.4, linestyle=line, marker="o", markersize=4, label=group)
            if learning.best is not None:
                place = learning.checkpoints.index(learning.best.policy)
                axes.plot(steps[place], values[place], "o", color=color, markersize=10, fillstyle="none")
        axes.set(xlabel="optimiser steps")
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        axes.legend(frameon=False, fontsize=8)
        axes.grid(visible=True, axis="y")

    return _figure(draw, _LOW_IN)


def plan_distance_svg(distances_m: Mapping[str, Sequence[float]], colors: Colors) -> str:
    """Histogram of d^g of the executed plans by policy, as shares of its plans; empty text when there is none.

    The last bin holds everything beyond.
    """
    if not distances_m:
        return ""
    largest_m = max(float(np.quantile(values, 0.99)) for values in distances_m.values())
    edges_m = np.linspace(0.0, max(np.ceil(largest_m), 2.0), 33)

    def draw(axes: Axes) -> None:
        for policy, values in distances_m.items():
            counts, _ = np.histogram(np.minimum(values, edges_m[-1]), edges_m)
            axes.stairs(100 * counts / len(values), edges_m, color=colors[policy], linewidth=1.4)
        axes.set_xlim(0, edges_m[-1])
        axes.set(xlabel="d^g of the executed plan (m)", ylabel="share of plans (%)")
        axes.grid(visible=True, axis="y")

    return _figure(draw, _LOW_IN)


def _draw_over_time(axes: Axes, score: RolloutScore, cut: ReducedRollout, name: str, colors: Colors) -> None:
    seconds, values = _seconds(score), score.series[name].values
    evaluated = ~score.is_warmup
    counted = evaluated & (score.t_us <= cut.cut_us)
    rest = evaluated & (score.t_us >= cut.cut_us)
    color = colors[score.policy]
    axes.plot(seconds[counted], values[counted], color=color, linewidth=1.4, alpha=0.9)
    axes.plot(seconds[rest], values[rest], color=color, linewidth=1.0, alpha=0.25)
    if cut.incident:
        axes.plot(seconds[counted][-1], values[counted][-1], marker="x", color=color, markersize=7, markeredgewidth=1.8)
    axes.grid(visible=True, axis="y")


def _seconds(score: RolloutScore) -> np.ndarray:
    start_us = score.t_us[~score.is_warmup][0]
    return (score.t_us - start_us) * 1e-6


def _draw_road(axes: Axes, road_map: RoadMap, low: np.ndarray, high: np.ndarray) -> None:
    visible = shapely.clip_by_rect(road_map.drivable, low[0], low[1], high[0], high[1])
    for area in shapely.get_parts(visible):
        if isinstance(area, shapely.Polygon):
            ring = shapely.get_coordinates(area.exterior)
            axes.fill(ring[:, 0], ring[:, 1], color=_ROAD, alpha=0.18, linewidth=0)


def _figure(draw: Callable[[Axes], None], height_in: float = _HEIGHT_IN) -> str:
    with rc_context(_RC):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline_svg(buffer.getvalue())


def _inline_svg(svg: str) -> str:
    """Strip what belongs to a file of its own, let the page set size and text colour."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace(_INK, "currentColor")
