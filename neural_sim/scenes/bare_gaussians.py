"""Scenes from Gaussians without anything around them, completed with a clip of the same drive.

A `.nurec` is what 3dgrut trains and NuRec keeps inside its archives; a `.ply`, with a `.sky.npz` beside it, is what
Instant NuRec and most other tools write.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from neural_sim.clips.clip import Clip
from neural_sim.clips.storage import read_clip
from neural_sim.errors import InputError
from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction.ground import ground_from_path
from neural_sim.road_map import corridor_map
from neural_sim.scenes.gaussian_ply import read_ply, read_sky
from neural_sim.scenes.joining import joined
from neural_sim.scenes.nurec_scene import CORRIDOR_HALF_WIDTH_M, transform_similar
from neural_sim.scenes.nurec_volume import NurecVolume, decode_volume
from neural_sim.scenes.scene import Scene
from neural_sim.scenes.sky_layouts import sky_from_layout
from neural_sim.scenes.storage import write_scene

logger = logging.getLogger("roadloop")

FRAMES = ("world", "rig", "camera")
MAX_FILE_BYTES = 2**33
GROUND_HALF_WIDTH_M = 15.0


def import_gaussians(path: Path, clip_folder: Path, out: Path, frame: str = "world") -> Path:
    """Make the scene file `out` from the Gaussians at `path` and the clip at `clip_folder`, and return `out`.

    Raises `InputError` as `scene_from_gaussians`, `read_clip` and `write_scene` do.
    """
    write_scene(scene_from_gaussians(path, read_clip(clip_folder), frame=frame, scene_id=out.stem), out)
    return out


def scene_from_gaussians(path: Path, clip: Clip, *, frame: str = "world", scene_id: str = "") -> Scene:
    """The Gaussians at `path` (`.nurec` or `.ply`) with everything else taken from `clip`.

    Args:
        path: Gaussians, in metres.
        clip: the same drive: rig, cameras, road users, map, navigation. The ground is a surface through its ego poses.
        frame: where the Gaussians' coordinates start: "world" for the clip's world, "rig" for the first ego pose,
            "camera" for the pose of the clip's first camera at its first frame.
        scene_id: name; the clip's when empty.

    Raises:
        InputError: the file is missing, damaged or of another kind, the frame is not known, or the clip has no camera
            to start from. What is left out or assumed is logged and kept as `metadata["approximations"]`.
    """
    volume = _read_volume(path)
    T_world_file = _start_pose(clip, frame)
    moved = {name: _placed(node, T_world_file, str(path)) for name, node in volume.static.items()}
    known = {track.track_id for track in clip.tracks}
    notes = _notes(volume, known, clip)
    for note in notes:
        logger.warning("%s: %s", path.name, note)
    return Scene(
        scene_id=scene_id or clip.clip_id,
        background=joined([node for name, node in moved.items() if name != "road"]),
        road=joined([moved["road"]] if "road" in moved else []),
        actors={name: node for name, node in volume.actors.items() if name in known},
        sky=_sky(volume.sky, "axes" if path.suffix == ".ply" else "nurec", T_world_file),
        expert=clip.ego,
        tracks=clip.tracks,
        road_map=clip.road_map or corridor_map(clip.ego, CORRIDOR_HALF_WIDTH_M),
        ground=ground_from_path(clip.ego, GROUND_HALF_WIDTH_M).mesh(),
        cameras={name: frames.camera for name, frames in clip.cameras.items()},
        camera_times_us={name: frames.t_us for name, frames in clip.cameras.items()},
        ego_vehicle=clip.ego_vehicle,
        navigation=clip.navigation,
        metadata={"source": path.name, "clip": clip.clip_id, "frame": frame, "approximations": notes},
    )


def _notes(volume: NurecVolume, known: set[str], clip: Clip) -> list[str]:
    """What is left out or assumed."""
    notes, lost = list(volume.approximations), sorted(set(volume.actors) - known)
    if lost:
        notes.append(f"{len(lost)} actors without a track in the clip are not drawn: {', '.join(lost[:5])}")
    if volume.sky is None:
        notes.append("no sky beside the Gaussians; gray instead")
    if clip.road_map is None:
        notes.append(f"the map is a corridor of {CORRIDOR_HALF_WIDTH_M} m to each side of the recorded path")
    return notes


def _sky(
    stored: Float[torch.Tensor, "6 s s 3"] | None, layout: str, T_world_file: Float[np.ndarray, "4 4"]
) -> Float[torch.Tensor, "6 s s 3"]:
    if stored is None:
        return torch.full((6, 4, 4, 3), 0.5)
    return sky_from_layout(stored.clamp(0, 1), layout, np.ascontiguousarray(T_world_file[:3, :3]))


def _read_volume(path: Path) -> NurecVolume:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected Gaussians as .nurec or .ply")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes, more than the {MAX_FILE_BYTES} allowed for Gaussians")
    if path.suffix == ".ply":
        return NurecVolume({"gaussians": read_ply(path)}, {}, read_sky(path), ())
    if path.suffix == ".nurec":
        return decode_volume(path.read_bytes(), str(path))
    raise InputError(f"{path}: Gaussians end in .nurec or .ply; a whole scene (.usdz) needs no import")


def _start_pose(clip: Clip, frame: str) -> Float[np.ndarray, "4 4"]:
    if frame == "world":
        return np.eye(4)
    if frame == "rig":
        return clip.ego.T_world_rig[0]
    if frame != "camera":
        raise InputError(f"frame is {frame!r}, expected one of {', '.join(FRAMES)}")
    if not clip.cameras:
        raise InputError(f"clip {clip.clip_id} has no camera, so Gaussians cannot start from its first one")
    first = next(iter(clip.cameras.values()))
    return clip.ego.poses_at(first.t_us[:1])[0] @ first.camera.T_rig_camera


def _placed(node: Gaussians, T_world_file: Float[np.ndarray, "4 4"], where: str) -> Gaussians:
    return node if np.array_equal(T_world_file, np.eye(4)) else transform_similar(node, T_world_file, where)
