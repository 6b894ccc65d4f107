"""What `roadloop inspect` says about a report folder."""

import re
from pathlib import Path
from typing import Any

import av
import av.error
import pyarrow as pa
import pyarrow.parquet as pq

from eval.tables import METRICS_SCHEMA, read_summary
from neural_sim.errors import InputError

_CELL_KEYS = {"mean", "std", "low", "high"}
_EXTERNAL = re.compile(r"""(?:src|href)\s*=\s*["'](?:https?:)?//""", re.IGNORECASE)


def describe_report(folder: Path) -> tuple[list[str], list[str]]:
    """Facts about a report folder and what is wrong with it; no problem means it is sound."""
    facts: list[str] = []
    problems: list[str] = []
    _describe_summary(folder / "summary.json", facts, problems)
    _describe_metrics(folder / "metrics.parquet", facts, problems)
    _describe_page(folder / "report.html", facts, problems)
    _describe_videos(folder, facts, problems)
    return facts, problems


def _describe_summary(path: Path, facts: list[str], problems: list[str]) -> None:
    try:
        summary = read_summary(path)
    except InputError as error:
        problems.append(str(error))
        return
    facts.append(f"{len(summary['scenes'])} scenes x {summary['rollouts']} rollouts")
    for policy, metrics in summary["policies"].items():
        if not isinstance(metrics, dict):
            problems.append(f"{path}: {policy} is not an object of metrics; evaluate again")
            continue
        bad = [name for name, cell in metrics.items() if not isinstance(cell, dict) or not cell.keys() >= _CELL_KEYS]
        if bad:
            problems.append(f"{path}: {policy}: {bad[0]} is not an object with mean, std, low and high")
        else:
            facts.append(f"{policy}: {_score_text(metrics)}")
    failures = summary.get("failures", [])
    if failures:
        named = ", ".join("{policy} in {scene_id} rollout {rollout_index}".format(**item) for item in failures[:3])
        facts.append(f"{len(failures)} rollouts failed ({named}{', ...' if len(failures) > 3 else ''})")


def _score_text(metrics: dict[str, Any]) -> str:
    parts = []
    for name in ("driving_score", "collision_at_fault", "offroad", "dist_to_gt_trajectory"):
        cell = metrics.get(name)
        if cell is not None:
            mean = f"- ({cell.get('note', '')})" if cell["mean"] is None else f"{cell['mean']:.4g}"
            parts.append(f"{name} {mean}")
    return ", ".join(parts)


def _describe_metrics(path: Path, facts: list[str], problems: list[str]) -> None:
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        problems.append(f"{path}: not readable as parquet ({error}); evaluate again")
        return
    missing = [field.name for field in METRICS_SCHEMA if field.name not in schema.names]
    if missing:
        problems.append(f"{path}: misses the columns {', '.join(missing)}")
        return
    facts.append(f"metrics.parquet: {file.metadata.num_rows} rows")
    if file.metadata.num_rows == 0:
        problems.append(f"{path}: holds no row; no rollout was scored")


def _describe_page(path: Path, facts: list[str], problems: list[str]) -> None:
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: not readable ({error}); evaluate again")
        return
    facts.append(f"report.html: {len(page) / 1e6:.1f} MB")
    if "</html>" not in page:
        problems.append(f"{path}: the page is cut short; evaluate again")
    if _EXTERNAL.search(page):
        problems.append(f"{path}: refers to another site, but a report must be self-contained")


def _describe_videos(folder: Path, facts: list[str], problems: list[str]) -> None:
    paths = sorted(path for path in folder.rglob("*.mp4") if not path.name.startswith("."))
    facts.append(f"{len(paths)} video{'s' if len(paths) != 1 else ''}")
    for path in paths:
        try:
            with av.open(str(path)) as container:
                next(container.decode(video=0))
        except (av.error.FFmpegError, OSError, StopIteration, IndexError) as error:
            problems.append(f"{path}: the video does not decode ({error}); evaluate again")
