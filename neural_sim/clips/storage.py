"""The clip folder: `clip.json`, `frames/`, `egomotion.parquet`, `tracks.parquet`, `map.json`, `lidar/`."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from neural_sim.artifacts import atomic_folder
from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip, NavigationStep
from neural_sim.clips.frame_work import over_frames
from neural_sim.clips.json_input import check_format_version, field, parse_json_object
from neural_sim.clips.map_json import road_map_from_json, road_map_to_json
from neural_sim.clips.numbered_files import NumberedFiles
from neural_sim.clips.tables import read_tracks, read_trajectory, write_tracks, write_trajectory
from neural_sim.ego_mask import read_ego_mask
from neural_sim.errors import InputError
from neural_sim.road_map import RoadMap
from neural_sim.road_users import EgoVehicle

CLIP_FORMAT_VERSION = 1
READABLE_VERSIONS = (CLIP_FORMAT_VERSION,)
IMAGE_EXTENSIONS = ("jpg", "png")
# Laid beside the frames by hand: which pixels show the recording car, see `neural_sim.ego_mask.read_ego_mask`.
EGO_MASK_FILE = "ego_mask.png"
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def write_clip(clip: Clip, folder: Path, own: Path | None = None) -> None:
    """Write `clip` as `folder`, replacing it; images and sweeps are copied from where the clip points.

    Files below `own`, a folder on the same disk that nobody else needs, are moved and not copied. Of all others each
    image is read once: what is found whole by `CameraFrames.read_file` is written. The folder appears only when whole
    and on the disk. Raises `InputError` when an image is missing or damaged, is neither JPEG nor PNG by name, or a
    camera mixes the two.
    """
    _check_clip_id(clip.clip_id, "clip")
    with atomic_folder(folder) as partial:
        for frames in clip.cameras.values():
            _place_frames(frames, partial / "frames" / frames.camera.name, own)
        write_trajectory(clip.ego, partial / "egomotion.parquet")
        write_tracks(clip.tracks, partial / "tracks.parquet")
        if clip.road_map is not None:
            _write_json(
                partial / "map.json", {"format_version": CLIP_FORMAT_VERSION, **road_map_to_json(clip.road_map)}
            )
        for t_us, source in clip.lidar_paths.items():
            _place(source, partial / "lidar" / f"{t_us}.npy", own)
        _write_json(partial / "clip.json", _clip_to_json(clip))


def read_clip(folder: Path) -> Clip:
    """Read a clip folder. Images stay on disk; whether they decode is told by `check_clip`.

    Raises `InputError`, naming the file, when the folder is not a clip, was written by an unknown format version, or
    a file, key, column or frame is missing or malformed.
    """
    if not (folder / "clip.json").is_file():
        raise InputError(f"{folder}: no clip.json here, so this is not a clip folder; make one with `roadloop ingest`")
    where = str(folder / "clip.json")
    value = parse_json_object((folder / "clip.json").read_bytes(), where)
    check_format_version(value, READABLE_VERSIONS, where)
    clip_id = field(value, "clip_id", str, where)
    _check_clip_id(clip_id, where)
    cameras = [_frames_from_json(item, folder, where) for item in field(value, "cameras", list, where)]
    return Clip(
        clip_id=clip_id,
        source=field(value, "source", dict, where),
        cameras={frames.camera.name: frames for frames in cameras},
        ego=read_trajectory(folder / "egomotion.parquet"),
        ego_vehicle=ego_vehicle_from_json(field(value, "ego_vehicle", dict, where), where),
        tracks=read_tracks(folder / "tracks.parquet"),
        road_map=_read_map(folder / "map.json") if field(value, "has_map", bool, where) else None,
        navigation=navigation_from_json(field(value, "navigation", list, where), where),
        lidar_paths=_lidar_paths(field(value, "lidar_t_us", list, where), folder, where),
    )


def camera_from_json(value: Any, where: str) -> Camera:
    """`Camera.from_json` for untrusted files; `where` names the file in errors.

    Raises `InputError` on a malformed calibration or a name that is not safe as a folder.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where}: a calibration must be an object, found {type(value).__name__}; mend the file")
    try:
        camera = Camera.from_json(value)
    except (InputError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error
    if camera.T_rig_camera.shape != (4, 4) or not np.isfinite(camera.T_rig_camera).all():
        raise InputError(f"{where}: camera {camera.name}: T_rig_camera must be 4x4 finite numbers; mend the file")
    if not _SAFE_NAME.fullmatch(camera.name):
        raise InputError(f"{where}: camera name {camera.name!r} must be letters, digits, '_', '-' and '.'; rename it")
    return camera


def ego_vehicle_to_json(vehicle: EgoVehicle) -> dict[str, float]:
    """Plain JSON values of the ego box, m."""
    return {name: float(value) for name, value in vars(vehicle).items()}


def ego_vehicle_from_json(value: dict[str, Any], where: str) -> EgoVehicle:
    """Inverse of `ego_vehicle_to_json`. Raises `InputError` on a missing or non-positive length."""
    lengths = {name: field(value, name, float, where) for name in EgoVehicle.__dataclass_fields__}
    for name, length in lengths.items():
        if not length > 0:
            raise InputError(f"{where}: ego_vehicle.{name} is {length}, expected a positive length in m; mend the file")
    return EgoVehicle(**lengths)


def navigation_to_json(navigation: tuple[NavigationStep, ...]) -> list[dict[str, Any]]:
    """Plain JSON values of the instructions."""
    return [{"start_us": int(step.start_us), "text": step.text} for step in navigation]


def navigation_from_json(value: list[Any], where: str) -> tuple[NavigationStep, ...]:
    """Inverse of `navigation_to_json`. Raises `InputError` on a malformed step or steps out of order."""
    if not all(isinstance(step, dict) for step in value):
        raise InputError(f"{where}: every navigation step must be an object with start_us and text; mend the file")
    steps = tuple(
        NavigationStep(field(step, "start_us", int, where), field(step, "text", str, where)) for step in value
    )
    if any(after.start_us < before.start_us for before, after in itertools.pairwise(steps)):
        raise InputError(f"{where}: navigation steps are not in order of start_us; sort them")
    return steps


def _check_clip_id(clip_id: str, where: str) -> None:
    if not _SAFE_NAME.fullmatch(clip_id):
        raise InputError(f"{where}: clip_id {clip_id!r} must be letters, digits, '_', '-' and '.'; rename the clip")


def _clip_to_json(clip: Clip) -> dict[str, Any]:
    return {
        "format_version": CLIP_FORMAT_VERSION,
        "clip_id": clip.clip_id,
        "source": dict(clip.source),
        "cameras": [_frames_to_json(frames) for frames in clip.cameras.values()],
        "ego_vehicle": ego_vehicle_to_json(clip.ego_vehicle),
        "navigation": navigation_to_json(clip.navigation),
        "has_map": clip.road_map is not None,
        "lidar_t_us": [int(t_us) for t_us in clip.lidar_paths],
    }


def _frames_to_json(frames: CameraFrames) -> dict[str, Any]:
    return {
        "calibration": frames.camera.to_json(),
        "extension": _extension(frames),
        "t_us": [int(t_us) for t_us in frames.t_us],
    }


def _frames_from_json(value: Any, folder: Path, where: str) -> CameraFrames:
    if not isinstance(value, dict):
        raise InputError(f"{where}: cameras must be a list of objects, found {type(value).__name__}; mend the file")
    camera = camera_from_json(field(value, "calibration", dict, where), where)
    extension = field(value, "extension", str, where)
    if extension not in IMAGE_EXTENSIONS:
        raise InputError(f"{where}: image extension is {extension!r}, expected jpg or png; mend the file")
    t_us = _timestamps(field(value, "t_us", list, where), f"{where}, camera {camera.name}")
    paths = NumberedFiles(folder / "frames" / camera.name, t_us, f".{extension}")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: the image file is missing ({len(missing)} of {len(paths)} frames of {camera.name} are); "
            "restore it or ingest the clip again"
        )
    mask_path = folder / "frames" / camera.name / EGO_MASK_FILE
    if camera.ego_mask is None and mask_path.is_file():
        camera = replace(camera, ego_mask=read_ego_mask(mask_path, camera.width_px, camera.height_px))
    return CameraFrames(camera, t_us, paths)


def _timestamps(values: list[Any], where: str) -> np.ndarray:
    if not values or not all(type(value) is int and abs(value) < 2**62 for value in values):
        raise InputError(f"{where}: t_us must be a list of whole microseconds, not empty; mend the file")
    t_us = np.array(values, np.int64)
    backwards = np.flatnonzero(np.diff(t_us) <= 0)
    if backwards.size:
        i = int(backwards[0])
        raise InputError(
            f"{where}: times must increase, but entry {i + 1} ({t_us[i + 1]} us) does not come after entry {i} "
            f"({t_us[i]} us); mend the file"
        )
    return t_us


def _read_map(path: Path) -> RoadMap:
    if not path.is_file():
        raise InputError(f"{path}: clip.json announces a map but the file is missing; ingest the clip again")
    value = parse_json_object(path.read_bytes(), str(path))
    check_format_version(value, READABLE_VERSIONS, str(path))
    return road_map_from_json(value, str(path))


def _lidar_paths(t_us: list[Any], folder: Path, where: str) -> dict[int, Path]:
    if not t_us:
        return {}
    paths = {int(t): folder / "lidar" / f"{t}.npy" for t in _timestamps(t_us, f"{where}, lidar")}
    for path in paths.values():
        if not path.is_file():
            raise InputError(f"{path}: the lidar sweep is missing; restore it or ingest the clip again")
    return paths


def _place_frames(frames: CameraFrames, folder: Path, own: Path | None) -> None:
    extension = _extension(frames)
    folder.mkdir(parents=True)

    def place(index: int) -> None:
        target = folder / f"{frames.t_us[index]}.{extension}"
        if own is not None and frames.paths[index].is_relative_to(own):
            frames.paths[index].rename(target)
        else:
            target.write_bytes(frames.read_file(index))

    for _ in over_frames(place, len(frames.paths)):
        pass


def _place(source: Path, target: Path, own: Path | None) -> None:
    if not source.is_file():
        raise InputError(f"{source}: the file is missing; restore it or ingest a range without it")
    target.parent.mkdir(parents=True, exist_ok=True)
    if own is not None and source.is_relative_to(own):
        source.rename(target)
    else:
        shutil.copyfile(source, target)


def _extension(frames: CameraFrames) -> str:
    found = sorted({path.suffix.lower().lstrip(".").replace("jpeg", "jpg") for path in frames.paths})
    if len(found) != 1 or found[0] not in IMAGE_EXTENSIONS:
        raise InputError(f"camera {frames.camera.name}: images are {found}, expected all jpg or all png; convert them")
    return found[0]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
