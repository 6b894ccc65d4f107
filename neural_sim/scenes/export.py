"""Scenes out to other tools' Gaussian formats."""

from pathlib import Path

from neural_sim.errors import InputError
from neural_sim.scenes.gaussian_ply import write_ply
from neural_sim.scenes.joining import joined
from neural_sim.scenes.particle_field_usd import write_usda
from neural_sim.scenes.storage import read_scene

_WRITERS = {".ply": write_ply, ".usda": write_usda}


def export_gaussians(scene_path: Path, out: Path) -> None:
    """Write background and road of a scene to `out`, world frame, m; its ending (`.ply`, `.usda`) is the format.

    Actors move and the formats do not, so they are left out. Raises `InputError` on another ending.
    """
    if out.suffix not in _WRITERS:
        raise InputError(f"{out}: a Gaussian file ends in {' or '.join(_WRITERS)}; rename the output")
    scene = read_scene(scene_path)
    _WRITERS[out.suffix](joined([scene.background, scene.road]), out)
