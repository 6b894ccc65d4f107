"""The results of a study: a row for each arm and world, read from the reports, and compared scene by scene."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from eval.aggregate import aggregate
from eval.protocol import EvaluationProtocol
from eval.results import Comparison, RolloutFailure
from eval.tables import read_scores, read_summary
from neural_sim.artifacts import atomic_file
from neural_sim.errors import InputError
from pipelines.provenance import provenance_path
from pipelines.shards.index import read_index

from .arms import ARMS, BASE, Arm
from .config import World
from .stages import Study


@dataclass(frozen=True)
class Row:
    """One line of `results.csv`; None where there is no number. Intervals are over scenes.

    Attributes:
        arm, label, group, world: which policy and where it drove.
        scenes, rollouts: held-out scenes, and rollouts in all.
        driving_score, driving_score_low, driving_score_high: km per incident, off-road or at-fault collision.
        driving_score_any: km per incident of any kind.
        incidents_per_km, incidents_per_km_low, incidents_per_km_high: inverse of the score, 1/km.
        collision_at_fault, collision_at_fault_low, collision_at_fault_high: share of rollouts.
        collision_any, offroad: share of rollouts.
        dist_traveled_m: mean distance in the counted part, m.
        ended_far_from_log: share of rollouts that stopped counting at the distance limit.
        min_ade_m, ade_m: open-loop displacement over 6.4 s, m; best and mean of the sampled plans.
        score_gain: driving score over that of the base, minus 1.
        collision_change: at-fault collisions over those of the base, minus 1.
        difference, difference_low, difference_high, p_value: incidents per km minus those of the base, paired, 1/km.
        examples: training windows of its own data.
        wall_s: time for data, training and evaluation, s.
        commit: of the source that evaluated it; empty where it is not known.
    """

    arm: str
    label: str
    group: str
    world: str
    scenes: int
    rollouts: int
    driving_score: float | None = None
    driving_score_low: float | None = None
    driving_score_high: float | None = None
    driving_score_any: float | None = None
    incidents_per_km: float | None = None
    incidents_per_km_low: float | None = None
    incidents_per_km_high: float | None = None
    collision_at_fault: float | None = None
    collision_at_fault_low: float | None = None
    collision_at_fault_high: float | None = None
    collision_any: float | None = None
    offroad: float | None = None
    dist_traveled_m: float | None = None
    ended_far_from_log: float | None = None
    min_ade_m: float | None = None
    ade_m: float | None = None
    score_gain: float | None = None
    collision_change: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    examples: int | None = None
    wall_s: float | None = None
    commit: str = ""


# Columns of a row that are statistics of the report, with the metric's name there.
_METRICS = {
    "driving_score": "driving_score",
    "driving_score_any": "avg_dist_between_incidents",
    "incidents_per_km": "incidents_per_km",
    "collision_at_fault": "collision_at_fault",
    "collision_any": "collision_any",
    "offroad": "offroad",
    "dist_traveled_m": "dist_traveled_m",
    "ended_far_from_log": "ended_far_from_log",
    "min_ade_m": "open_loop_min_ade_6.4s_m",
    "ade_m": "open_loop_ade_6.4s_m",
}
_COLUMNS = {item.name for item in fields(Row)}


def collect(study: Study) -> list[Row]:
    """A row for every finished report of the study, world by world, arms in the order of the tables."""
    rows = []
    for world in study.config.worlds:
        arms = finished_arms(study, world)
        compared = {item.candidate: item for item in compare_arms(study, world, BASE, [arm.name for arm in arms])}
        base = _statistics(study, BASE, world) if any(arm.name == BASE for arm in arms) else None
        rows += [_row(study, arm, world, base, compared.get(arm.name)) for arm in arms]
    return rows


def finished_arms(study: Study, world: World) -> list[Arm]:
    """The arms whose report in `world` is there."""
    return [arm for arm in ARMS if (study.report(arm.name, world) / "summary.json").is_file()]


def compare_arms(study: Study, world: World, reference: str, names: Sequence[str]) -> list[Comparison]:
    """Paired comparisons of arms with a reference arm on the same streets and seeds; empty where it has no report."""
    wanted = [reference, *(name for name in names if name != reference)]
    folders = {name: study.report(name, world) for name in wanted}
    if not all((folder / "summary.json").is_file() for folder in folders.values()):
        return []
    scores, failures, protocols = [], [], []
    for name, folder in folders.items():
        summary = read_summary(folder / "summary.json")
        protocols.append(_protocol(summary))
        scores += [score for score in read_scores(folder / "metrics.parquet") if score.policy == name]
        failures += [RolloutFailure(**item) for item in summary["failures"] if item["policy"] == name]
    return list(aggregate(scores, protocols[0], failures, policies=wanted).comparisons)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write `results.csv`, one line a row, empty cells where there is no number."""
    with atomic_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_csv(path: Path) -> list[Row]:
    """Inverse of `write_csv`. Raises `InputError` when the file has other columns."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != _COLUMNS:
            raise InputError(f"{path}: has columns {reader.fieldnames}, expected those of the study; make it anew")
        return [_parsed(line) for line in reader]


def _row(study: Study, arm: Arm, world: World, base: Mapping[str, Any] | None, comparison: Comparison | None) -> Row:
    statistics = _statistics(study, arm.name, world)
    values: dict[str, Any] = {}
    for column, metric in _METRICS.items():
        found = statistics.get(metric) or {}
        values[column] = found.get("mean")
        values |= {f"{column}_{end}": found.get(end) for end in ("low", "high") if f"{column}_{end}" in _COLUMNS}
    if base is not None and arm.name != BASE:
        values["score_gain"] = _relative(statistics, base, "driving_score")
        values["collision_change"] = _relative(statistics, base, "collision_at_fault")
    if comparison is not None:
        headline = comparison.headline
        values |= {
            "difference": headline.difference, "difference_low": headline.low, "difference_high": headline.high,
            "p_value": headline.p_value,
        }  # fmt: skip
    scenes = len(study.config.driven(world))
    examples = read_index(study.data(arm)).examples if arm.data else None
    return Row(
        arm.name, arm.label, arm.group, world, scenes, scenes * study.config.evaluate.rollouts_per_scene, **values,
        examples=examples, wall_s=round(study.seconds(arm, world), 1), commit=_commit(study.report(arm.name, world)),
    )  # fmt: skip


def _statistics(study: Study, arm: str, world: World) -> Mapping[str, Any]:
    return read_summary(study.report(arm, world) / "summary.json")["policies"][arm]


def _commit(report: Path) -> str:
    return json.loads(provenance_path(report).read_text())["commit"] or ""


def _relative(statistics: Mapping[str, Any], base: Mapping[str, Any], metric: str) -> float | None:
    """Relative change of a metric; None where one is missing or the base's is zero."""
    value, of_base = statistics[metric]["mean"], base[metric]["mean"]
    return None if value is None or not of_base else value / of_base - 1.0


def _protocol(summary: Mapping[str, Any]) -> EvaluationProtocol:
    known = {item.name for item in fields(EvaluationProtocol)}
    return EvaluationProtocol(**{name: value for name, value in summary["protocol"].items() if name in known})


def _parsed(line: Mapping[str, str]) -> Row:
    kinds = {item.name: item.type for item in fields(Row)}
    values: dict[str, Any] = {}
    for name, text in line.items():
        kind = kinds[name]
        if kind is str:
            values[name] = text
        elif text == "":
            values[name] = None
        else:
            values[name] = int(text) if "int" in str(kind) else float(text)
            if not math.isfinite(values[name]):
                raise InputError(f"column {name} is {text}, expected a finite number")
    return Row(**values)
