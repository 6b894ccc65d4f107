"""Reader of ScenarioNet logs: ego, road users and map at 10 Hz, no images.

The files have known faults, each mended here and told in the clip's source: the ego's length and width are swapped, its
track may jump back near the end, heights are not comparable, and the last velocity of every track is zero (velocities
are not read; they follow from the poses).
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from neural_sim.clips.clip import Clip
from neural_sim.clips.ego_smoothing import uneven_steps
from neural_sim.clips.finishing import crop_tracks, finish_clip, refuse_camera_options, select_poses, with_local_world
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.recording_cars import RENAULT_ZOE
from neural_sim.clips.restricted_pickle import as_array, load_restricted
from neural_sim.clips.scenarionet_map import road_map
from neural_sim.clips.track_building import build_tracks
from neural_sim.errors import InputError
from neural_sim.frames import pose_from_planar
from neural_sim.road_users import EgoVehicle, Track
from neural_sim.trajectory import Trajectory

logger = logging.getLogger("roadloop")

CATEGORY_BY_TYPE = {
    "VEHICLE": "vehicle",
    "PEDESTRIAN": "pedestrian",
    "CYCLIST": "cyclist",
    "TRAFFIC_CONE": "obstacle",
    "TRAFFIC_BARRIER": "obstacle",
    "TRAFFIC_OBJECT": "obstacle",
}
# No place on Earth has larger coordinates in any projection, m.
FARTHEST_M = 1e8
# A single step backwards between forward ones, m.
JUMP_BACK_M = 0.1


@dataclass(frozen=True)
class ScenarioLog:
    """One log, read and mended.

    Attributes:
        name: scene name, for example `scene-0103`.
        dataset: what ScenarioNet converted, for example `nuscenes`.
        ego: rig poses, map frame, z 0, up to the jump back.
        ego_vehicle: box of the recording car.
        tracks: road users, standing on z = 0, whole log.
        map_features: as in the file.
        notes: what was mended, one line each.
        path: the file.
    """

    name: str
    dataset: str
    ego: Trajectory
    ego_vehicle: EgoVehicle
    tracks: tuple[Track, ...]
    map_features: Any
    notes: tuple[str, ...]
    path: Path


def ingest_scenarionet(options: IngestOptions, out: Path) -> Clip:
    """Make a clip folder at `out` from the log `options.sequence` below `options.root` and return it as read back.

    The clip has no cameras. Its world keeps the axes of the map with the origin near the first ego position. Raises
    `InputError` naming the file on a log that is missing, unsafe, damaged or inconsistent.
    """
    refuse_camera_options(options, "scenarionet")
    log = read_log(find_log(options))
    for note in log.notes:
        logger.info("ingest: %s: %s", log.name, note)
    ego = select_poses(log.ego, options, str(log.path))
    clip = Clip(
        clip_id=out.name,
        source={
            "dataset": "scenarionet",
            "sequence": log.name,
            "converted_from": log.dataset,
            "notes": list(log.notes),
        },
        cameras={},
        ego=ego,
        ego_vehicle=log.ego_vehicle,
        tracks=crop_tracks(log.tracks, ego),
        road_map=road_map(log.map_features, str(log.path)),
    )
    return finish_clip(with_local_world(clip), options, out)


def find_log(options: IngestOptions) -> Path:
    """The `.pkl` of `options.sequence` below `options.root`, or the only one when no sequence is named."""
    root = options.root
    if root is None:
        raise InputError("scenarionet needs the folder with the sd_*.pkl logs; pass --root DIR")
    if root.is_file():
        return root
    found = sorted(root.rglob("sd_*.pkl")) if root.is_dir() else []
    wanted = [path for path in found if path.stem == options.sequence or path.stem.endswith(options.sequence)]
    if len(wanted) == 1 or (wanted and not options.sequence):
        return wanted[0]
    names = ", ".join(path.stem for path in found[:8]) or "none"
    what = "no log" if not wanted else f"{len(wanted)} logs"
    raise InputError(f"{root}: {what} named sd_*{options.sequence}.pkl; available: {names}")


def read_log(path: Path) -> ScenarioLog:
    """Read and mend one log. Raises `InputError` naming the file and the key."""
    value = _keys(load_restricted(path), str(path), ("tracks", "metadata", "map_features"))
    metadata = _keys(value["metadata"], f"{path}: metadata", ("ts", "sdc_id"))
    t_us = _times(metadata["ts"], f"{path}: metadata.ts")
    tracks = _keys(value["tracks"], f"{path}: tracks", (metadata["sdc_id"],))
    dataset = str(metadata.get("dataset", "unknown"))
    ego_state = _State(tracks[metadata["sdc_id"]], t_us, f"{path}: track {metadata['sdc_id']!r}")
    ego_vehicle, size_notes = _ego_vehicle(ego_state, dataset)
    ego, ego_notes = _ego(ego_state, t_us, ego_vehicle if dataset != "nuscenes" else None)
    others = (_tracks(str(name), track, t_us, path) for name, track in tracks.items() if name != metadata["sdc_id"])
    return ScenarioLog(
        name=str(metadata.get("scenario_id", path.stem)),
        dataset=dataset,
        ego=ego,
        ego_vehicle=ego_vehicle,
        tracks=tuple(track for parts in others for track in parts),
        map_features=value["map_features"],
        notes=(*size_notes, *ego_notes),
        path=path,
    )


def steps_before_jump_back(planar: Float[np.ndarray, "n 3"]) -> int:
    """How many poses come before the first single step backwards between forward ones; all of them without one."""
    step_m = np.diff(planar[:, :2], axis=0)
    ahead_m = step_m[:, 0] * np.cos(planar[:-1, 2]) + step_m[:, 1] * np.sin(planar[:-1, 2])
    before, after = ahead_m[:-1], np.append(ahead_m[2:], np.inf)
    jumps = np.flatnonzero((ahead_m[1:] < -JUMP_BACK_M) & (before > 0) & (after > 0)) + 1
    return int(jumps[0]) + 1 if jumps.size else len(planar)


class _State:
    """Checked arrays of one track: planar [T, 3], size_m [T, 3] (length, width, height), valid [T]."""

    planar: Float[np.ndarray, "t 3"]
    size_m: Float[np.ndarray, "t 3"]
    valid: Bool[np.ndarray, "t"]

    def __init__(self, track: Any, t_us: Int[np.ndarray, "t"], where: str) -> None:
        self.where = where
        state = _keys(_keys(track, where, ("state", "type"))["state"], where, ("position", "heading", "valid"))
        position = _column(state, "position", len(t_us), 3, where)
        if np.abs(position).max() > FARTHEST_M:
            raise InputError(f"{where}, position: {np.abs(position).max():.3g} m is no place; get the log again")
        self.planar = np.column_stack([position[:, :2], _column(state, "heading", len(t_us), 1, where)])
        self.size_m = np.column_stack([_column(state, k, len(t_us), 1, where) for k in ("length", "width", "height")])
        self.valid = _column(state, "valid", len(t_us), 1, where)[:, 0] != 0


def _column(state: dict[str, Any], key: str, rows: int, width: int, where: str) -> Float[np.ndarray, "t w"]:
    array = as_array(_keys(state, where, (key,))[key], f"{where}, {key}")
    array = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
    if len(array) != rows or array.shape[1] < width:
        raise InputError(
            f"{where}, {key}: shape {list(array.shape)}, expected {rows} rows of {width}; the log has {rows} times"
        )
    return array[:, :width]


def _times(value: Any, where: str) -> Int[np.ndarray, "t"]:
    seconds = as_array(value, where)
    if seconds.ndim != 1 or len(seconds) < 2 or not (np.diff(seconds) > 0).all():
        raise InputError(f"{where}: expected at least two increasing times in seconds; get the log again")
    return np.round(seconds * 1e6).astype(np.int64)


def _ego_vehicle(state: _State, dataset: str) -> tuple[EgoVehicle, list[str]]:
    if not state.valid.any():
        raise InputError(f"{state.where}: the ego is never valid; get the log again")
    length_m, width_m, height_m = map(float, state.size_m[np.argmax(state.valid)])
    notes = []
    if length_m < width_m:
        length_m, width_m = width_m, length_m
        notes.append(f"ego length and width were swapped; taken as {length_m:.2f} x {width_m:.2f} m")
    if min(length_m, width_m, height_m) <= 0:
        raise InputError(f"{state.where}: ego size is {length_m} x {width_m} x {height_m} m, expected positive lengths")
    if dataset == "nuscenes":
        rear_m, wheelbase_m = RENAULT_ZOE.rear_axle_to_rear_bumper_m, RENAULT_ZOE.wheelbase_m
    else:
        # Typical shares of a passenger car; the files do not say where the axles are.
        rear_m, wheelbase_m = 0.21 * length_m, 0.6 * length_m
        notes.append(f"positions taken as box centres, rear axle assumed {rear_m:.2f} m ahead of the rear bumper")
    return EgoVehicle(length_m, width_m, height_m, rear_m, wheelbase_m), notes


def _ego(state: _State, t_us: Int[np.ndarray, "t"], centered: EgoVehicle | None) -> tuple[Trajectory, list[str]]:
    """Rig poses up to the jump back; `centered` gives the box of logs whose positions are box centres."""
    planar, times = state.planar[state.valid], t_us[state.valid]
    kept = steps_before_jump_back(planar)
    notes = []
    if kept < len(planar):
        back_m = float(np.linalg.norm(planar[kept, :2] - planar[kept - 1, :2]))
        notes.append(f"ego cut after step {kept - 1} of {len(planar)}: its track jumps back by {back_m:.2f} m there")
    planar, times = planar[:kept], times[:kept]
    if centered is not None:
        offset_m = centered.center_x_m
        planar = planar - offset_m * np.column_stack([np.cos(planar[:, 2]), np.sin(planar[:, 2]), 0 * planar[:, 2]])
    ego = Trajectory(times, pose_from_planar(planar))
    uneven = uneven_steps(ego.t_us, ego.T_world_rig[:, :3, 3])
    if uneven:
        notes.append(f"{uneven} ego steps are over 15 % longer than their neighbours; --smooth-ego-s 1.0 evens them")
    return ego, notes


def _tracks(name: str, track: Any, t_us: Int[np.ndarray, "t"], path: Path) -> list[Track]:
    where = f"{path}: track {name!r}"
    state = _State(track, t_us, where)
    category = CATEGORY_BY_TYPE.get(str(track["type"]))
    if category is None or not state.valid.any():
        return []
    length_m, width_m, height_m = map(float, np.median(state.size_m[state.valid], axis=0))
    # Heights are of no use: the ego is at 0 while boxes float between -0.7 and 2.3 m. Everyone stands on z = 0.
    poses = pose_from_planar(state.planar[state.valid], height_m / 2)
    return build_tracks(name, category, (length_m, width_m, height_m), t_us[state.valid], poses, str(path))


def _keys(value: Any, where: str, keys: tuple[Any, ...]) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a dict, found {type(value).__name__}; get the log again")
    for key in keys:
        if key not in value:
            raise InputError(f"{where}: key {key!r} is missing; expected the ScenarioNet layout, get the log again")
    return value
