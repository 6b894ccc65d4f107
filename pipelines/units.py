"""Cutting scenes and rollouts into units of work."""

from collections.abc import Sequence
from pathlib import Path

from neural_sim.errors import InputError
from neural_sim.scenes.storage import read_scene


def chunks(count: int, size: int) -> list[tuple[int, ...]]:
    """The numbers 0..count-1 in runs of `size`, the last one shorter."""
    return [tuple(range(start, min(start + size, count))) for start in range(0, count, size)]


def read_scene_ids(scenes: Sequence[Path]) -> list[str]:
    """Names of the scenes in these files. Raises `InputError` when there are none, or two share a name."""
    if not scenes:
        raise InputError("no scenes given; pass at least one .usdz after --scenes")
    names = [read_scene(path).scene_id for path in scenes]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two scene files hold a scene named {name!r}; give each scene once")
    return names
