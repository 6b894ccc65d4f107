"""What a folder of shards is and whether it is sound, for `roadloop inspect`."""

import json
from collections import Counter
from pathlib import Path

from neural_sim.errors import InputError
from pipelines.rollout_table import JobSummary
from pipelines.shards.index import ShardIndex, read_index
from pipelines.shards.reader import check_shard, read_example
from pipelines.shards.writer import UNIT_SUFFIX


def describe_shards(folder: Path) -> tuple[list[str], list[str]]:
    """Facts about a folder of shards, one line each, and the problems found in it.

    Compares every checksum and decodes every example. A sound folder has no problems. Raises `InputError` only when
    there is no readable index.
    """
    index = read_index(folder)
    origins: Counter[str] = Counter()
    problems = _strangers(folder, index)
    for shard in index.shards:
        try:
            check_shard(folder, shard, checksum=True)
            for place in range(shard.examples):
                meta = read_example(folder, shard, place).meta
                origins[f"{meta.get('source', '?')}: {meta.get('scene_id', '?')}"] += 1
        except InputError as error:
            problems.append(str(error))
    if not index.examples:
        problems.append(f"{folder}: holds no examples")
    return _facts(index, origins), problems


def _facts(index: ShardIndex, origins: Counter[str]) -> list[str]:
    statistics = index.statistics
    cameras = ", ".join(f"{name} {f} x {w}x{h} px" for name, (f, h, w) in sorted(index.image_shapes.items()))
    return [
        f"{index.examples} examples in {len(index.shards)} shards, {index.bytes / 1e6:.1f} MB",
        f"images: {cameras or 'none'}",
        f"speed: mean {statistics.speed_mean_mps:.1f}, {statistics.speed_min:.1f} to {statistics.speed_max:.1f} m/s",
        "targets: acceleration {:.2f} ± {:.2f} m/s^2, curvature {:.4f} ± {:.4f} 1/m".format(
            *statistics.acceleration_mps2, *statistics.curvature_per_m
        ),
        f"recovered: {statistics.recovered} of {index.examples}",
        *(f"from {origin}: {count}" for origin, count in sorted(origins.items())),
        *_summary_lines(index),
    ]


def _summary_lines(index: ShardIndex) -> list[str]:
    """The table of the rollouts, or whatever else the writer of the shards wanted to be known."""
    try:
        return JobSummary.from_json(index.summary).table().splitlines()
    except (KeyError, TypeError):
        return [f"{name}: {json.dumps(value)}" for name, value in index.summary.items()]


def _strangers(folder: Path, index: ShardIndex) -> list[str]:
    """Shards and unit records that the index does not know."""
    names = {shard.name for shard in index.shards}
    units = {shard.unit for shard in index.shards}
    problems = [
        f"{path}: a shard that the index does not name; delete it or run the job again"
        for path in sorted(folder.glob("*.tar"))
        if path.name not in names
    ]
    for path in sorted(folder.glob(f"*{UNIT_SUFFIX}")):
        unit = path.name.removesuffix(UNIT_SUFFIX)
        has_tars = any(folder.glob(f"{unit}-[0-9][0-9][0-9][0-9][0-9].tar"))
        if has_tars and unit not in units:
            problems.append(f"{path}: a unit that the index does not name; run the job again")
    return problems
