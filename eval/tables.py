"""The machine-readable files of a report: `metrics.parquet` and `summary.json`."""

import dataclasses
import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.results import RolloutScore, Statistic, Summary
from neural_sim.artifacts import atomic_file, write_json

SUMMARY_FORMAT_VERSION = 1

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
    }


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
