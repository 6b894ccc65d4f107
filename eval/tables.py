"""The machine-readable files of a report: `metrics.parquet` and `summary.json`."""

import dataclasses
import itertools
import json
import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.results import Comparison, RolloutScore, Series, Statistic, Summary
from neural_sim.artifacts import atomic_file, write_json
from neural_sim.errors import InputError

# 2 added baselines, failures, comparisons and conditions.
SUMMARY_FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)

SUMMARY_KEYS = ("format_version", "protocol", "scenes", "rollouts", "policies")

METRICS_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("timestamps_us", pa.int64()),
        ("values", pa.float64()),
        ("valid", pa.bool_()),
        ("time_aggregation", pa.string()),
        ("clipgt_id", pa.string()),
        ("rollout_id", pa.string()),
        ("run_uuid", pa.string()),
        ("run_name", pa.string()),
    ]
)

_RUN_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "roadloop-evaluation")


def write_metrics(scores: Sequence[RolloutScore], path: Path) -> None:
    """Write every series as AlpaSim's long table, one row a step and metric, uncut and with warm-up.

    `run_name` is the policy, `clipgt_id` the scene, `rollout_id` the rollout index, `run_uuid` a hash of the policy
    name; invalid values are null. Rows come in the order of `scores`, metric, time.
    """
    with atomic_file(path) as partial, pq.ParquetWriter(partial, METRICS_SCHEMA) as writer:
        for score in scores:
            writer.write_table(_rollout_table(score))


def write_summary(summary: Summary, path: Path) -> None:
    """Write `summary.json`: per policy and metric mean, std, low, high, and a note where a number is missing."""
    write_json(path, summary_json(summary))


def summary_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain JSON values: no NaN and no infinity, null instead."""
    return {
        "format_version": SUMMARY_FORMAT_VERSION,
        "protocol": dataclasses.asdict(summary.protocol),
        "scenes": list(summary.scene_ids),
        "rollouts": summary.rollouts_per_scene,
        "policies": {
            policy: {name: _statistic_json(statistic) for name, statistic in sorted(metrics.items())}
            for policy, metrics in summary.policies.items()
        },
        "baselines": list(summary.baselines),
        "failures": [dataclasses.asdict(failure) for failure in summary.failures],
        "comparisons": [comparison_json(comparison) for comparison in summary.comparisons],
        "conditions": dict(summary.conditions),
    }


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """A paired comparison as plain JSON values, differences by metric."""
    values = dataclasses.asdict(comparison)
    for difference in values["differences"].values():
        del difference["metric"]
    return values


def read_summary(path: Path) -> dict[str, Any]:
    """What `summary.json` holds. Raises `InputError` when it is not a summary of a version that can be read."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); pass a report folder, or evaluate again") from error
    missing = [key for key in SUMMARY_KEYS if not isinstance(summary, dict) or key not in summary]
    if missing:
        raise InputError(f"{path}: misses {', '.join(missing)}; evaluate again")
    if summary["format_version"] not in READABLE_VERSIONS:
        raise InputError(
            f"{path}: format version {summary['format_version']}, expected {SUMMARY_FORMAT_VERSION}; evaluate again"
        )
    if not isinstance(summary["scenes"], list) or not isinstance(summary["policies"], dict):
        raise InputError(f"{path}: scenes must be a list and policies an object; evaluate again")
    return summary


def read_scores(path: Path) -> list[RolloutScore]:
    """The rollouts of `metrics.parquet`, in its order, without the paths that are only drawn.

    Raises `InputError` when the file is not such a table.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not readable as parquet ({error}); evaluate again") from error
    missing = [field.name for field in METRICS_SCHEMA if field.name not in table.schema.names]
    if missing:
        raise InputError(f"{path}: misses the columns {', '.join(missing)}; evaluate again")
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in METRICS_SCHEMA.names}
    labels = zip(columns["run_name"], columns["clipgt_id"], columns["rollout_id"], columns["name"], strict=True)
    runs = [(label, sum(1 for _ in rows)) for label, rows in itertools.groupby(labels)]
    series: dict[tuple[str, str, int], dict[str, Series]] = {}
    start = 0
    for (policy, scene_id, index, name), length in runs:
        rows = slice(start, start + length)
        start += length
        series.setdefault((policy, scene_id, int(index)), {})[name] = Series(
            columns["timestamps_us"][rows],
            columns["values"][rows],
            columns["valid"][rows].astype(bool),
            columns["time_aggregation"][rows][0],
        )
    return [_score_of(key, own) for key, own in series.items()]


def _score_of(key: tuple[str, str, int], series: dict[str, Series]) -> RolloutScore:
    relevant = series["eval_relevant"]
    nowhere = np.full((len(relevant.t_us), 3), np.nan)
    return RolloutScore(*key, 0, relevant.t_us, relevant.values == 0, series, nowhere, nowhere, "")


def _statistic_json(statistic: Statistic) -> dict[str, float | str | None]:
    cell: dict[str, float | str | None] = {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in (
            ("mean", statistic.mean),
            ("std", statistic.std),
            ("low", statistic.low),
            ("high", statistic.high),
        )
    }
    return cell | ({"note": statistic.note} if statistic.note else {})


def _rollout_table(score: RolloutScore) -> pa.Table:
    names = list(score.series)
    series = list(score.series.values())
    lengths = [len(item.t_us) for item in series]
    values = np.concatenate([item.values for item in series])
    valid = np.concatenate([item.valid for item in series])
    rows = sum(lengths)
    columns = [
        pa.array(np.repeat(names, lengths)),
        pa.array(np.concatenate([item.t_us for item in series])),
        pa.array(values, mask=~valid),
        pa.array(valid),
        pa.array(np.repeat([item.reducer for item in series], lengths)),
        pa.array([score.scene_id] * rows),
        pa.array([str(score.rollout_index)] * rows),
        pa.array([str(uuid.uuid5(_RUN_NAMESPACE, score.policy))] * rows),
        pa.array([score.policy] * rows),
    ]
    columns = [column.cast(field.type) for column, field in zip(columns, METRICS_SCHEMA, strict=True)]
    return pa.Table.from_arrays(columns, schema=METRICS_SCHEMA)
