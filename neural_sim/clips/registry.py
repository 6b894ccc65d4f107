"""The datasets by name."""

import difflib
from collections.abc import Callable
from pathlib import Path

from neural_sim.clips.clip import Clip
from neural_sim.clips.options import IngestOptions
from neural_sim.errors import InputError

Reader = Callable[[IngestOptions, Path], Clip]


def _argoverse2(options: IngestOptions, out: Path) -> Clip:
    from neural_sim.clips.argoverse2 import ingest_argoverse2

    return ingest_argoverse2(options, out)


def _comma2k19(options: IngestOptions, out: Path) -> Clip:
    from neural_sim.clips.comma2k19 import ingest_comma2k19

    return ingest_comma2k19(options, out)


def _nerfstudio(options: IngestOptions, out: Path) -> Clip:
    from neural_sim.clips.nerfstudio import ingest_nerfstudio

    return ingest_nerfstudio(options, out)


def _physical_ai(options: IngestOptions, out: Path) -> Clip:
    from neural_sim.clips.physical_ai import ingest_physical_ai

    return ingest_physical_ai(options, out)


def _kitti_odometry(options: IngestOptions, out: Path) -> Clip:
    from neural_sim.clips.kitti_odometry import ingest_kitti_odometry

    return ingest_kitti_odometry(options, out)


def _kitti_raw(options: IngestOptions, out: Path) -> Clip:
    from neural_sim.clips.kitti_raw import ingest_kitti_raw

    return ingest_kitti_raw(options, out)


def _nuscenes(options: IngestOptions, out: Path) -> Clip:
    from neural_sim.clips.nuscenes import ingest_nuscenes

    return ingest_nuscenes(options, out)


def _nuscenes_scene(options: IngestOptions, out: Path) -> Clip:
    from neural_sim.clips.nuscenes_scene import ingest_nuscenes_scene

    return ingest_nuscenes_scene(options, out)


def _scenarionet(options: IngestOptions, out: Path) -> Clip:
    from neural_sim.clips.scenarionet import ingest_scenarionet

    return ingest_scenarionet(options, out)


def _town(options: IngestOptions, out: Path) -> Clip:
    from neural_sim.town.source import ingest_town  # loads the ray caster

    return ingest_town(options, out)


DATASETS: dict[str, Reader] = {
    "argoverse2": _argoverse2,
    "comma2k19": _comma2k19,
    "kitti-odometry": _kitti_odometry,
    "kitti-raw": _kitti_raw,
    "nerfstudio": _nerfstudio,
    "nuscenes": _nuscenes,
    "nuscenes-scene": _nuscenes_scene,
    "physicalai-av": _physical_ai,
    "scenarionet": _scenarionet,
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
    if dataset == "town" and options.map is not None:
        raise InputError(f"the town has a map of its own, but map is {options.map}; leave it out")
    return DATASETS[dataset](options, out)
