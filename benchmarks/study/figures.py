"""Figures of the study, from its rows alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.plots import POLICY_COLORS
from neural_sim.artifacts import atomic_file

from .results import Row

WORLD_NAMES = {"splat": "reconstruction", "nerf": "NeRF", "town": "true world"}


def write_figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write every figure as PNG into `folder`; returns the files, in the order in which the page shows them."""
    if not rows:
        return []
    paths = [folder / "study_incidents.png", folder / "study_open_loop.png"]
    _save(_incidents_figure(rows), paths[0])
    _save(_open_loop_figure(rows), paths[1])
    return paths


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})


def _incidents_figure(rows: Sequence[Row]) -> Figure:
    """Incidents per km of each arm with intervals, a colour for each world."""
    labels = list(dict.fromkeys(row.label for row in rows))
    worlds = list(dict.fromkeys(row.world for row in rows))
    figure = Figure(figsize=(7.5, 0.6 + 0.34 * len(labels) + 0.5))
    axes = figure.add_subplot()
    for place, world in enumerate(worlds):
        own = [row for row in rows if row.world == world and row.incidents_per_km is not None]
        offset = (place - (len(worlds) - 1) / 2) * 0.25
        heights = np.array([labels.index(row.label) for row in own]) + offset
        _points(axes, own, heights, POLICY_COLORS[place], WORLD_NAMES[world])
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("incidents per km (off-road or at-fault collision), interval over scenes")
    _finish(axes)
    return figure


def _points(axes: Axes, rows: Sequence[Row], heights: np.ndarray, colour: str, label: str) -> None:
    values = np.array([row.incidents_per_km for row in rows], float)
    low = np.array([row.incidents_per_km_low for row in rows], float)
    high = np.array([row.incidents_per_km_high for row in rows], float)
    reach = np.nan_to_num(np.stack([values - low, high - values])).clip(min=0.0)
    axes.errorbar(values, heights, xerr=reach, fmt="o", markersize=5, capsize=2, color=colour, label=label)


def _open_loop_figure(rows: Sequence[Row]) -> Figure:
    """Open-loop displacement against incidents per km in the first world: does the one tell the other?"""
    figure = Figure(figsize=(6.0, 3.6))
    axes = figure.add_subplot()
    for place, row in enumerate(row for row in rows if row.world == rows[0].world):
        if row.ade_m is not None and row.incidents_per_km is not None:
            colour = POLICY_COLORS[place % len(POLICY_COLORS)]
            axes.plot([row.ade_m], [row.incidents_per_km], "o", color=colour, label=row.label)
    axes.set_xlabel("open-loop ADE over 6.4 s, m (mean of the sampled plans)")
    axes.set_ylabel("incidents per km")
    axes.set_ylim(bottom=0)
    _finish(axes)
    return figure


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
