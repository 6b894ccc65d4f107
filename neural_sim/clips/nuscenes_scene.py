"""Reader of one nuScenes scene as a folder of front-camera frames beside its ScenarioNet log.

    <root>/frames/000000.jpg ...          images, already undistorted
    <root>/cam_front_timestamps_us.txt    one Unix time a frame, us
    <root>/calib_cam_front.json           intrinsics at the native size, camera to ego
    sd_*scene-<id>.pkl                    in <root>, beside it, or in a folder `scenarionet` beside it

Times are paired as the log was made: ego step s lies 0.1 s x s after the first frame, while step 5 k of other road
users is keyframe k, whatever its true time. The log has no pitch and roll, so boxes miss in the image when the car
pitches.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.clips.finishing import cover, crop_tracks, finish_clip, with_local_world
from neural_sim.clips.frame_selection import choose_cameras, select_frames
from neural_sim.clips.json_input import field, parse_json_object
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.scenarionet import read_log
from neural_sim.clips.scenarionet_map import road_map
from neural_sim.errors import InputError
from neural_sim.frames import pose_from_translation_quaternion
from neural_sim.road_users import Track
from neural_sim.trajectory import Trajectory

CAMERA = "CAM_FRONT"
STEPS_PER_KEYFRAME = 5


def ingest_nuscenes_scene(options: IngestOptions, out: Path) -> Clip:
    """Make a clip folder at `out` from the frames in `options.root` and their log; return it as read back.

    `options.sequence` names the log, for example `scene-0103`; by default the digits in the folder's name do. Raises
    `InputError` naming the file on anything missing, damaged or inconsistent.
    """
    root = _root(options)
    choose_cameras((CAMERA,), (CAMERA,), options, str(root / "frames"))
    log = read_log(_find_log(root, options.sequence))
    keyframes_us = _timestamps(root / "cam_front_timestamps_us.txt")
    ego = Trajectory(log.ego.t_us - log.ego.t_us[0] + keyframes_us[0], log.ego.T_world_rig)
    inside = keyframes_us <= ego.end_us
    kept = select_frames(keyframes_us[inside], options, str(root))
    t_us = keyframes_us[kept]
    ego = cover(ego, int(t_us[0]), int(t_us[-1]))
    dropped = int((~inside).sum())
    notes = [*log.notes, *([f"last {dropped} frames dropped: the ego track ends before them"] if dropped else [])]
    clip = Clip(
        clip_id=out.name,
        source={
            "dataset": "nuscenes-scene",
            "sequence": log.name,
            "licence": "CC BY-NC-SA 4.0",
            "rate_hz": options.rate_hz,
            "scale": options.scale,
            "notes": notes,
        },
        cameras={CAMERA: CameraFrames(_camera(root), t_us, tuple(root / "frames" / f"{i:06d}.jpg" for i in kept))},
        ego=ego,
        ego_vehicle=log.ego_vehicle,
        tracks=crop_tracks(_at_keyframes(log.tracks, log.ego.start_us, keyframes_us), ego),
        road_map=road_map(log.map_features, str(log.path)),
    )
    return finish_clip(with_local_world(clip), options, out)


def keyframe_times(
    since_us: Int[np.ndarray, "n"], keyframes_us: Int[np.ndarray, "k"], step_us: int = 100_000
) -> Int[np.ndarray, "n"]:
    """True time of other road users' samples `since_us` after the first: step 5 k is keyframe k, linear between.

    Beyond the last keyframe the mean spacing continues.
    """
    spacing_us = int(np.diff(keyframes_us).mean())
    knots_us = np.append(keyframes_us, keyframes_us[-1] + spacing_us)
    steps = since_us / step_us / STEPS_PER_KEYFRAME
    return np.round(np.interp(steps, np.arange(len(knots_us)), knots_us)).astype(np.int64)


def _at_keyframes(tracks: tuple[Track, ...], start_us: int, keyframes_us: Int[np.ndarray, "k"]) -> tuple[Track, ...]:
    last_us = len(keyframes_us) * STEPS_PER_KEYFRAME * 100_000
    retimed = []
    for track in tracks:
        since_us = track.trajectory.t_us - start_us
        timed = since_us <= last_us
        if timed.any():
            t_us = keyframe_times(since_us[timed], keyframes_us)
            retimed.append(replace(track, trajectory=Trajectory(t_us, track.trajectory.T_world_rig[timed])))
    return tuple(retimed)


def _root(options: IngestOptions) -> Path:
    if options.root is None:
        raise InputError("nuscenes-scene needs the folder with frames/ and calib_cam_front.json; pass --root DIR")
    if not (options.root / "frames").is_dir():
        raise InputError(f"{options.root}: no folder frames/ inside; mend --root")
    return options.root


def _find_log(root: Path, sequence: str) -> Path:
    digits = re.findall(r"\d{4}", sequence or root.name)
    if not digits:
        raise InputError(f"{root}: which log belongs to these frames? name it by --sequence, for example scene-0103")
    pattern = f"sd_*scene-{digits[-1]}.pkl"
    folders = (root, root.parent, root.parent / "scenarionet")
    found = [path for folder in folders for path in sorted(folder.glob(pattern))]
    if not found:
        raise InputError(f"{root}: no log {pattern} in {', '.join(map(str, folders))}; put it there")
    return found[0]


def _timestamps(path: Path) -> Int[np.ndarray, "k"]:
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; restore it")
    try:
        t_us = np.array([int(line) for line in path.read_text().split()], np.int64)
    except (ValueError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not one whole number of microseconds a line ({error}); restore the file") from error
    backwards = np.flatnonzero(np.diff(t_us) <= 0)
    if len(t_us) < 2 or backwards.size:
        where = (
            f"line {int(backwards[0]) + 2} does not come after the line before" if backwards.size else "too few lines"
        )
        raise InputError(f"{path}: {where}; expected at least two increasing times, restore the file")
    return t_us


def _camera(root: Path) -> Camera:
    where = str(root / "calib_cam_front.json")
    if not Path(where).is_file():
        raise InputError(f"{where}: the file is missing; restore it")
    value = parse_json_object(Path(where).read_bytes(), where)
    native, size = (_numbers(value, key, (2,), where) for key in ("native_size", "video_size"))
    intrinsic = _numbers(value, "intrinsic_native", (3, 3), where)
    quaternion_wxyz = _numbers(value, "ego_from_cam_quat_wxyz", (4,), where)
    if abs(np.linalg.norm(quaternion_wxyz) - 1) > 1e-3:
        raise InputError(f"{where}: ego_from_cam_quat_wxyz has norm {np.linalg.norm(quaternion_wxyz):.4g}, expected 1")
    translation_m = _numbers(value, "ego_from_cam_translation_m", (3,), where)
    camera = Camera(
        name=CAMERA,
        width_px=int(native[0]),
        height_px=int(native[1]),
        fx_px=float(intrinsic[0, 0]),
        fy_px=float(intrinsic[1, 1]),
        cx_px=float(intrinsic[0, 2]) + 0.5,
        cy_px=float(intrinsic[1, 2]) + 0.5,
        T_rig_camera=pose_from_translation_quaternion(translation_m, quaternion_wxyz[[1, 2, 3, 0]]),
    )
    return camera.resized(int(size[0]), int(size[1]))


def _numbers(value: dict[str, Any], key: str, shape: tuple[int, ...], where: str) -> Float[np.ndarray, "..."]:
    try:
        array = np.array(field(value, key, list, where), float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {key} is not numbers ({error}); restore the file") from error
    if array.shape != shape or not np.isfinite(array).all():
        raise InputError(f"{where}: {key} has shape {list(array.shape)}, expected {list(shape)} finite numbers")
    return array
