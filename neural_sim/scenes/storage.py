"""The scene file: one `.usdz` in the NuRec layout.

| member | for | content |
|---|---|---|
| `default.usda`, `gauss.usda`, `volume.nurec` | USD and NuRec viewers | Gaussians and sky in half precision |
| `metadata.yaml`, `*_trajectories.json`, `sequence_tracks.json`, `clipgt/`, `map.xodr`, `mesh*.ply` | AlpaSim | rest |
| `roadloop.json`, `roadloop/*.safetensors` | `read_scene` | the whole scene in full precision |

Members for others are in a local world, shifted by `-world_origin_m`; the record of our own is not shifted.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped

from neural_sim.cameras import Camera
from neural_sim.clips.json_input import check_format_version, field, parse_json_object
from neural_sim.clips.map_json import road_map_from_json, road_map_to_json
from neural_sim.clips.storage import (
    camera_from_json,
    ego_vehicle_from_json,
    ego_vehicle_to_json,
    navigation_from_json,
    navigation_to_json,
)
from neural_sim.errors import InputError
from neural_sim.gaussians import Gaussians
from neural_sim.maps.nurec_tables_writer import encode_lane_tables
from neural_sim.maps.opendrive_writer import encode_opendrive
from neural_sim.road_map import RoadMap
from neural_sim.road_users import CATEGORIES, Track
from neural_sim.scenes.archive import member_names, read_members, write_archive
from neural_sim.scenes.ground_ply import encode_ply
from neural_sim.scenes.nurec_json import metadata_yaml, rig_trajectories_json, sequence_tracks_json
from neural_sim.scenes.nurec_map import OPENDRIVE_FILE
from neural_sim.scenes.nurec_payload import encode_volume
from neural_sim.scenes.nurec_scene import RIG_FILE, read_nurec_scene
from neural_sim.scenes.scene import GroundMesh, Scene
from neural_sim.scenes.tensor_members import (
    decode_arrays,
    encode_arrays,
    gaussian_arrays,
    take_array,
    take_gaussians,
)
from neural_sim.scenes.usd_layers import default_layer, gauss_layer
from neural_sim.trajectory import Trajectory

SCENE_FORMAT_VERSION = 1
READABLE_VERSIONS = (SCENE_FORMAT_VERSION,)
VOLUME = "volume.nurec"
RECORD = "roadloop.json"
LANE_TABLES = "clipgt"
ARRAYS, GAUSSIANS = "roadloop/arrays.safetensors", "roadloop/gaussians.safetensors"
_MAKER = "read_scene needs the members that `roadloop reconstruct` writes"


def write_scene(scene: Scene, path: Path) -> None:
    """Write `scene` to `path` (`.usdz`), atomically; two writes of one scene are byte-identical.

    Raises `InputError` when the name does not end in `.usdz`, when an actor has no track, or when it passes 4 GiB.
    """
    if path.suffix != ".usdz":
        raise InputError(f"{path}: a scene file must end in .usdz; rename the output")
    _check_actor_ids(list(scene.actors), scene.tracks, str(path))
    origin_m = world_origin(scene.expert)
    record = json.dumps(_record(scene, origin_m), allow_nan=False).encode()
    mesh = encode_ply(scene.ground, origin_m)
    members = [
        ("default.usda", default_layer()),
        (VOLUME, encode_volume(scene, origin_m)),
        ("gauss.usda", gauss_layer(*_bounds(scene, origin_m), VOLUME)),
        ("metadata.yaml", metadata_yaml(scene, f"roadloop-{SCENE_FORMAT_VERSION}", record)),
        ("rig_trajectories.json", rig_trajectories_json(scene, origin_m)),
        ("sequence_tracks.json", sequence_tracks_json(scene, origin_m)),
        *_map_members(scene.road_map, origin_m, scene.scene_id),
        ("mesh.ply", mesh),
        ("mesh_ground.ply", mesh),
        (RECORD, record),
        (ARRAYS, encode_arrays(_scene_arrays(scene))),
        (GAUSSIANS, encode_arrays(_scene_gaussians(scene))),
    ]
    write_archive(path, members)


def read_scene(path: Path) -> Scene:
    """Read a scene file that `write_scene` wrote, exactly as it was, or one of NVIDIA's by `read_nurec_scene`.

    Raises `InputError` naming file and member when the archive is damaged or unsafe, when a member is missing or not
    whole, when the format version is not known, or when values are malformed.
    """
    names = member_names(path)
    if RIG_FILE in names and not {RECORD, ARRAYS, GAUSSIANS} & set(names):
        return read_nurec_scene(path)
    members = read_members(path, (RECORD, ARRAYS, GAUSSIANS), _MAKER)
    where = f"{path}: {RECORD}"
    record = parse_json_object(members[RECORD], where)
    check_format_version(record, READABLE_VERSIONS, where)
    arrays = decode_arrays(members[ARRAYS], f"{path}: {ARRAYS}")
    gaussians = decode_arrays(members[GAUSSIANS], f"{path}: {GAUSSIANS}")
    cameras = _cameras_from_json(field(record, "cameras", list, where), where)
    tracks = _tracks(field(record, "tracks", list, where), arrays, str(path))
    actor_ids = [str(actor_id) for actor_id in field(record, "actors", list, where)]
    _check_actor_ids(actor_ids, tracks, where)
    return Scene(
        scene_id=field(record, "scene_id", str, where),
        background=_node(gaussians, "background", path),
        road=_node(gaussians, "road", path),
        actors={actor_id: _node(gaussians, f"actors.{i}", path) for i, actor_id in enumerate(actor_ids)},
        sky=_sky(arrays, path),
        expert=_trajectory(arrays, "expert", str(path)),
        tracks=tracks,
        road_map=road_map_from_json(field(record, "road_map", dict, where), where),
        ground=_ground(arrays, path),
        cameras=cameras,
        camera_times_us={
            name: take_array(arrays, f"camera_times_us.{i}", np.int64, (-1,), f"{path}: {ARRAYS}")
            for i, name in enumerate(cameras)
        },
        ego_vehicle=ego_vehicle_from_json(field(record, "ego_vehicle", dict, where), where),
        navigation=navigation_from_json(field(record, "navigation", list, where), where),
        metadata=field(record, "metadata", dict, where),
    )


def read_scene_id(path: Path) -> str:
    """Name of the scene in a scene file; raises as `read_scene`, but for one of our own reads no more than the name."""
    names = member_names(path)
    if RIG_FILE in names and not {RECORD, ARRAYS, GAUSSIANS} & set(names):
        return read_nurec_scene(path).scene_id
    where = f"{path}: {RECORD}"
    record = parse_json_object(read_members(path, (RECORD,), _MAKER)[RECORD], where)
    check_format_version(record, READABLE_VERSIONS, where)
    return field(record, "scene_id", str, where)


def world_origin(expert: Trajectory) -> Float[np.ndarray, "3"]:
    """Middle of the driven area rounded to whole metres: the origin of the local world that other tools see."""
    position_m = expert.T_world_rig[:, :3, 3]
    return np.round((position_m.min(axis=0) + position_m.max(axis=0)) / 2)


def _record(scene: Scene, origin_m: Float[np.ndarray, "3"]) -> dict[str, Any]:
    return {
        "format_version": SCENE_FORMAT_VERSION,
        "scene_id": scene.scene_id,
        "world_origin_m": origin_m.tolist(),
        "cameras": [camera.to_json() for camera in scene.cameras.values()],
        "ego_vehicle": ego_vehicle_to_json(scene.ego_vehicle),
        "tracks": [
            {"track_id": track.track_id, "category": track.category, "size_m": [float(size) for size in track.size_m]}
            for track in scene.tracks
        ],
        "actors": list(scene.actors),
        "navigation": navigation_to_json(scene.navigation),
        "road_map": road_map_to_json(scene.road_map),
        "metadata": dict(scene.metadata),
    }


def _scene_arrays(scene: Scene) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every array of the scene but its Gaussians; cameras and tracks by their place in the record."""
    arrays = {
        "sky": scene.sky.detach().to("cpu", torch.float32).numpy(),
        "ground.vertices_m": scene.ground.vertices_m.astype(np.float32),
        "ground.faces": scene.ground.faces.astype(np.int32),
        **_trajectory_arrays("expert", scene.expert),
    }
    for i, name in enumerate(scene.cameras):
        arrays[f"camera_times_us.{i}"] = np.asarray(scene.camera_times_us[name], np.int64)
    for i, track in enumerate(scene.tracks):
        arrays |= _trajectory_arrays(f"tracks.{i}", track.trajectory)
    return arrays


def _trajectory_arrays(name: str, trajectory: Trajectory) -> dict[str, Shaped[np.ndarray, "..."]]:
    return {
        f"{name}.t_us": np.asarray(trajectory.t_us, np.int64),
        f"{name}.T_world_rig": np.asarray(trajectory.T_world_rig, np.float64),
    }


def _scene_gaussians(scene: Scene) -> dict[str, Shaped[np.ndarray, "..."]]:
    arrays = gaussian_arrays(scene.background, "background.") | gaussian_arrays(scene.road, "road.")
    for i, actor in enumerate(scene.actors.values()):
        arrays |= gaussian_arrays(actor, f"actors.{i}.")
    return arrays


def _map_members(road_map: RoadMap, origin_m: Float[np.ndarray, "3"], scene_id: str) -> list[tuple[str, bytes]]:
    """A recorded map as lane tables and as OpenDRIVE; a corridor made from the drive would tell others of roads that
    are not there."""
    if road_map.source != "recorded" or not road_map.lanes:
        return []
    tables = encode_lane_tables(road_map, origin_m, scene_id)
    return [
        *((f"{LANE_TABLES}/{table}.parquet", content) for table, content in tables.items()),
        (OPENDRIVE_FILE, encode_opendrive(road_map, origin_m, scene_id)),
    ]


def _bounds(scene: Scene, origin_m: Float[np.ndarray, "3"]) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the box of all static centres in the local world, m; a unit box when there are none."""
    means = torch.cat([scene.background.means_m, scene.road.means_m]).detach().cpu().double().numpy() - origin_m
    return (means.min(axis=0), means.max(axis=0)) if len(means) else (np.zeros(3), np.ones(3))


def _check_actor_ids(actor_ids: list[str], tracks: tuple[Track, ...], where: str) -> None:
    known = {track.track_id for track in tracks}
    for actor_id in actor_ids:
        if actor_id not in known:
            raise InputError(f"{where}: actor {actor_id!r} has Gaussians but no track; add its track or drop the actor")


def _node(arrays: dict[str, np.ndarray], name: str, path: Path) -> Gaussians:
    return take_gaussians(arrays, f"{name}.", f"{path}: {GAUSSIANS}")


def _sky(arrays: dict[str, np.ndarray], path: Path) -> Float[torch.Tensor, "6 s s 3"]:
    sky = take_array(arrays, "sky", np.float32, (6, -1, -1, 3), f"{path}: {ARRAYS}")
    if sky.shape[1] != sky.shape[2]:
        raise InputError(f"{path}: {ARRAYS}: sky faces are {sky.shape[2]}x{sky.shape[1]}, expected squares")
    return torch.from_numpy(sky.copy())


def _ground(arrays: dict[str, np.ndarray], path: Path) -> GroundMesh:
    where = f"{path}: {ARRAYS}"
    vertices = take_array(arrays, "ground.vertices_m", np.float32, (-1, 3), where)
    faces = take_array(arrays, "ground.faces", np.int32, (-1, 3), where)
    if faces.size and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise InputError(f"{where}: ground.faces point beyond the {len(vertices)} vertices; write the scene again")
    return GroundMesh(vertices, faces)


def _trajectory(arrays: dict[str, np.ndarray], name: str, where: str) -> Trajectory:
    where = f"{where}: {ARRAYS}, {name}"
    t_us = take_array(arrays, f"{name}.t_us", np.int64, (-1,), where)
    poses = take_array(arrays, f"{name}.T_world_rig", np.float64, (len(t_us), 4, 4), where)
    if len(t_us) == 0:
        raise InputError(f"{where}: no poses, expected at least one; write the scene again")
    try:
        return Trajectory(t_us, poses)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _tracks(values: list[Any], arrays: dict[str, np.ndarray], path: str) -> tuple[Track, ...]:
    return tuple(_track(value, i, arrays, path) for i, value in enumerate(values))


def _track(value: Any, index: int, arrays: dict[str, np.ndarray], path: str) -> Track:
    where = f"{path}: {RECORD}, track {index}"
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {type(value).__name__}; write the scene again")
    category, size = field(value, "category", str, where), field(value, "size_m", list, where)
    if category not in CATEGORIES:
        raise InputError(f"{where}: category is {category!r}, expected one of {', '.join(CATEGORIES)}")
    if len(size) != 3 or not all(isinstance(length, int | float) and length > 0 for length in size):
        raise InputError(f"{where}: size_m is {size}, expected three positive lengths in m")
    length_m, width_m, height_m = map(float, size)
    trajectory = _trajectory(arrays, f"tracks.{index}", path)
    return Track(field(value, "track_id", str, where), category, (length_m, width_m, height_m), trajectory)


def _cameras_from_json(values: list[Any], where: str) -> dict[str, Camera]:
    cameras = [camera_from_json(value, where) for value in values]
    return {camera.name: camera for camera in cameras}
