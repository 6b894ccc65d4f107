"""NVIDIA's own scene archives in: a `.usdz` of NuRec's layout without roadloop's record.

Two worlds occur in these files: rig poses and tracks in one, Gaussians in another ("NRE"), `world_to_nre` between them.
Readers disagree whether tracks are before or after it, so the choice is an argument. The scene read has the NRE world.
"""

import io
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
import yaml
from jaxtyping import Float

from neural_sim.errors import InputError
from neural_sim.gaussians import Gaussians, transform_gaussians
from neural_sim.maps.moving import moved_map
from neural_sim.road_map import RoadMap, corridor_map
from neural_sim.road_users import Track
from neural_sim.scenes.archive import member_names, read_members
from neural_sim.scenes.joining import joined
from neural_sim.scenes.nurec_json_input import RigFile, read_rig_file, read_tracks_file
from neural_sim.scenes.nurec_map import read_nurec_map
from neural_sim.scenes.nurec_volume import NurecVolume, decode_volume
from neural_sim.scenes.scene import GroundMesh, Scene
from neural_sim.scenes.sky_layouts import sky_from_layout
from neural_sim.trajectory import Trajectory

logger = logging.getLogger("roadloop")

TRACK_FRAMES = ("world", "nre")
CORRIDOR_HALF_WIDTH_M = 4.0
RIG_FILE = "rig_trajectories.json"
_TRACKS, _GROUND, _META = "sequence_tracks.json", "mesh_ground.ply", "metadata.yaml"
_MAKER = "expected a NuRec scene as AlpaSim reads it"
_NUMBER = r"[-+0-9.eE]+"
_TRANSFORM = re.compile(r"matrix4d xformOp:transform = \(([^=]*?)\)\s*\n")
_VOLUME_FILE = re.compile(r"filePath = @(?:\./)?([^@]+\.nurec)@")


def read_nurec_scene(path: Path, *, tracks_frame: str = "world") -> Scene:
    """Read a NuRec `.usdz`; `tracks_frame` says in which world ("world" or "nre") its tracks are.

    What cannot be evaluated is logged once and kept as `metadata["approximations"]`. Without a map in the file it is a
    corridor around the recorded path. Raises `InputError` on `checkpoint.ckpt` archives and naming the member that is
    missing or malformed.
    """
    if tracks_frame not in TRACK_FRAMES:
        raise InputError(f"tracks_frame is {tracks_frame!r}, expected one of {', '.join(TRACK_FRAMES)}")
    names = member_names(path)
    volumes = sorted(name for name in names if name.endswith(".nurec"))
    if not volumes:
        raise InputError(f"{path}: {_why_no_volume(names)}")
    layers = [name for name in names if name.endswith(".usda")]
    members = read_members(path, [*volumes, *layers, RIG_FILE, _TRACKS, _GROUND, _META], _MAKER)
    rig = read_rig_file(members[RIG_FILE], f"{path}: {RIG_FILE}")
    T_nre_world = _rigid(rig.world_to_nre, f"{path}: {RIG_FILE}: world_to_nre")
    tracks = read_tracks_file(members[_TRACKS], f"{path}: {_TRACKS}")
    if tracks_frame == "world":
        tracks = tuple(_moved_track(track, T_nre_world) for track in tracks)
    placed = volume_transforms([members[name].decode("utf-8", "replace") for name in layers])
    parts = [_placed(decode_volume(members[n], f"{path}: {n}"), placed.get(n, np.eye(4))) for n in volumes]
    expert = Trajectory(rig.ego.t_us, T_nre_world @ rig.ego.T_world_rig)
    ground = _ground(members[_GROUND], f"{path}: {_GROUND}")
    road_map = read_nurec_map(path, names, rig.T_ecef_world, ground.vertices_m)
    road_map = moved_map(road_map, T_nre_world) if road_map else None
    scene, notes = _assemble(path, rig, expert, tracks, parts, ground, road_map, members[_META])
    for note in notes:
        logger.warning("%s: %s", path.name, note)
    return scene


def volume_transforms(layers: list[str]) -> dict[str, Float[np.ndarray, "4 4"]]:
    """Transform of each payload named in USD text layers, column-vector, to the volume's world, m.

    3dgrut's exporter writes a column-vector matrix row by row where USD expects a row-vector one; its importer undoes
    that, and so does this reader: these files mean p' = M p with the rows as written.
    """
    transforms = {}
    for layer in layers:
        for block in layer.split("def Volume ")[1:]:
            file, matrix = _VOLUME_FILE.search(block), _TRANSFORM.search(block)
            numbers = re.findall(_NUMBER, matrix.group(1)) if matrix else []
            if file and len(numbers) == 16:
                transforms[file.group(1)] = np.array([float(number) for number in numbers]).reshape(4, 4)
    return transforms


def transform_similar(gaussians: Gaussians, T_target_source: Float[np.ndarray, "4 4"], where: str) -> Gaussians:
    """Move Gaussians by rotation, translation and uniform scale; the scale is added to the log scales."""
    scale = float(np.cbrt(np.linalg.det(T_target_source[:3, :3])))
    if not scale > 1e-9:
        raise InputError(f"{where}: the volume's transform mirrors or flattens; get the file again")
    rigid = T_target_source.copy()
    rigid[:3, :3] /= scale
    scaled = Gaussians(**gaussians.tensors() | {"means_m": gaussians.means_m * scale})
    moved = transform_gaussians(scaled, torch.from_numpy(_rigid(rigid, where)).to(gaussians.means_m))
    return Gaussians(**moved.tensors() | {"log_scales": gaussians.log_scales + float(np.log(scale))})


def _placed(volume: NurecVolume, T_nre_volume: Float[np.ndarray, "4 4"]) -> NurecVolume:
    if np.allclose(T_nre_volume, np.eye(4)):
        return volume
    where = "gauss.usda: transform"
    static = {name: transform_similar(node, T_nre_volume, where) for name, node in volume.static.items()}
    bent = not np.allclose(T_nre_volume[:3, :3], T_nre_volume[0, 0] * np.eye(3))
    note = ("the volume is rotated; view-dependent colours keep their directions",) if bent else ()
    return NurecVolume(static, volume.actors, volume.sky, (*volume.approximations, *note))


def _assemble(
    path: Path,
    rig: RigFile,
    expert: Trajectory,
    tracks: tuple[Track, ...],
    parts: list[NurecVolume],
    ground: GroundMesh,
    road_map: RoadMap | None,
    metadata: bytes,
) -> tuple[Scene, list[str]]:
    static = {name: node for part in parts for name, node in part.static.items() if name == "road"}
    others = [node for part in parts for name, node in part.static.items() if name != "road"]
    actors = {name: node for part in parts for name, node in part.actors.items()}
    known = {track.track_id for track in tracks}
    notes = sorted({note for part in parts for note in part.approximations})
    lost = sorted(set(actors) - known)
    if lost:
        notes.append(f"{len(lost)} actors without a track are not drawn: {', '.join(lost[:5])}")
    if road_map is None:
        notes.append(f"the map is a corridor of {CORRIDOR_HALF_WIDTH_M} m to each side of the recorded path")
    skies = [part.sky for part in parts if part.sky is not None]
    if not skies:
        notes.append("no sky in the file; gray instead")
    meta = _metadata(metadata, f"{path}: {_META}")
    scene = Scene(
        scene_id=str(meta.get("scene_id", path.stem)),
        background=joined(others),
        road=joined([static["road"]] if "road" in static else []),
        actors={name: node for name, node in actors.items() if name in known},
        sky=sky_from_layout(skies[0].clamp(0, 1), "nurec") if skies else torch.full((6, 4, 4, 3), 0.5),
        expert=expert,
        tracks=tracks,
        road_map=road_map or corridor_map(expert, CORRIDOR_HALF_WIDTH_M),
        ground=ground,
        cameras=rig.cameras,
        camera_times_us=rig.camera_times_us,
        ego_vehicle=rig.ego_vehicle,
        navigation=(),
        metadata={"source": "nurec", "version": str(meta.get("version_string", "")), "approximations": notes},
    )
    return scene, notes


def _moved_track(track: Track, T_nre_world: Float[np.ndarray, "4 4"]) -> Track:
    poses = T_nre_world @ track.trajectory.T_world_rig
    return Track(track.track_id, track.category, track.size_m, Trajectory(track.trajectory.t_us, poses))


def _rigid(matrix: Float[np.ndarray, "4 4"], where: str) -> Float[np.ndarray, "4 4"]:
    rotation = matrix[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise InputError(f"{where}: not a rotation and translation; scaled or mirrored worlds are not supported")
    return matrix


def _ground(content: bytes, where: str) -> GroundMesh:
    try:
        mesh: Any = trimesh.load(io.BytesIO(content), file_type="ply", process=False)
        vertices, faces = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32)
    except (ValueError, IndexError, KeyError, AttributeError, TypeError, OSError) as error:
        raise InputError(f"{where}: not a mesh ({error}); get the file again") from error
    if not np.isfinite(vertices).all() or (faces.size and not 0 <= faces.min() <= faces.max() < len(vertices)):
        raise InputError(f"{where}: vertices are not finite or faces point beyond them; get the file again")
    return GroundMesh(vertices, faces)


def _metadata(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not valid YAML; get the file again") from error
    return value if isinstance(value, dict) else {}


def _why_no_volume(names: list[str]) -> str:
    if any(name.endswith(".ckpt") for name in names):
        return (
            "the Gaussians are in checkpoint.ckpt, a Python pickle that could run anything when read, so it is "
            "refused; export the scene with volume.nurec"
        )
    return "no member ends in .nurec, so there are no Gaussians; get the scene again with its volume"
