"""Cutting scenes and rollouts into units of work."""

from collections.abc import Sequence
from pathlib import Path

from neural_sim.errors import InputError
from neural_sim.scenes.storage import read_scene_id


def chunks(count: int, size: int) -> list[tuple[int, ...]]:
    """The numbers 0..count-1 in runs of `size`, the last one shorter."""
    return [tuple(range(start, min(start + size, count))) for start in range(0, count, size)]


def read_scene_ids(scenes: Sequence[Path]) -> list[str]:
    """Names of the scenes in these files. Raises `InputError` when there are none, or two share a name."""
    if not scenes:
        raise InputError("no scenes given; pass at least one .usdz after --scenes")
    names = [read_scene_id(path) for path in scenes]
    _refuse_repeated(names)
    return names


def readable_scenes(scenes: Sequence[Path]) -> tuple[list[tuple[Path, str]], list[tuple[str, str]]]:
    """Scene files with the names of their scenes, and (file name without suffix, reason) of those that cannot be read.

    Raises `InputError` when none can be read, or two share a name.
    """
    if not scenes:
        raise InputError("no scenes given; pass at least one .usdz after --scenes")
    places: list[tuple[Path, str]] = []
    unreadable: list[tuple[str, str]] = []
    for path in scenes:
        try:
            places.append((path, read_scene_id(path)))
        except InputError as error:
            if len(scenes) == 1:
                raise
            unreadable.append((path.stem, str(error)))
    if not places:
        raise InputError(f"none of the {len(scenes)} scenes can be read; the first: {unreadable[0][1]}")
    _refuse_repeated([name for _, name in places])
    return places, unreadable


def _refuse_repeated(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two scene files hold a scene named {name!r}; give each scene once")
