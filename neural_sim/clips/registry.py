"""The datasets by name."""

import difflib
from collections.abc import Callable
from pathlib import Path

from neural_sim.clips.clip import Clip
from neural_sim.clips.options import IngestOptions
from neural_sim.errors import InputError

Reader = Callable[[IngestOptions, Path], Clip]


def _kitti_odometry(options: IngestOptions, out: Path) -> Clip:
    from neural_sim.clips.kitti_odometry import ingest_kitti_odometry

    return ingest_kitti_odometry(options, out)


def _town(options: IngestOptions, out: Path) -> Clip:
    from neural_sim.town.source import ingest_town  # loads the ray caster

    return ingest_town(options, out)


DATASETS: dict[str, Reader] = {
    "kitti-odometry": _kitti_odometry,
    "town": _town,
}


def ingest(dataset: str, options: IngestOptions, out: Path) -> Clip:
    """Make a clip folder at `out` from `dataset` (a key of `DATASETS`) and return the clip as read back.

    The clip takes the name of its folder.

    Raises `InputError` on an unknown dataset, answered with the closest name, and on whatever the reader finds wrong.
    """
    if dataset not in DATASETS:
        close = difflib.get_close_matches(dataset, DATASETS, n=1, cutoff=0.3)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"dataset {dataset!r} is not known; {hint}available: {', '.join(sorted(DATASETS))}")
    return DATASETS[dataset](options, out)
