"""nerfstudio's `transforms.json`, both ways.

Camera poses there are camera to world with OpenGL axes (x right, y up, z backwards). The format knows neither time nor
car: clips written here carry both in keys of their own (`t_us`, `camera`, `rig`), which others ignore. Files without
them become one camera on an assumed rig, its frames evenly spaced in time.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from neural_sim.artifacts import atomic_folder
from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.clips.finishing import cover, finish_clip, trajectory_from_poses
from neural_sim.clips.frame_selection import choose_cameras, select_frames
from neural_sim.clips.json_input import field, parse_json_object
from neural_sim.clips.options import IngestOptions
from neural_sim.distortion import Distortion, EquidistantFisheye, RadialTangential
from neural_sim.errors import InputError
from neural_sim.frames import R_RIG_FORWARD_CAMERA, invert_pose
from neural_sim.road_users import EgoVehicle

# OpenCV camera axes seen in OpenGL ones, and back.
GL_FROM_CV = np.diag([1.0, -1.0, -1.0, 1.0])
ASSUMED_RATE_HZ = 10.0
ASSUMED_CAMERA_AHEAD_M, ASSUMED_CAMERA_HEIGHT_M = 1.5, 1.5
_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "OPENCV_FISHEYE")


def ingest_nerfstudio(options: IngestOptions, out: Path) -> Clip:
    """Make a clip folder at `out` from `transforms.json` in (or at) `options.root` and return it as read back.

    `applied_transform` and `applied_scale` are undone. Raises `InputError` naming the frame on anything missing or
    malformed.
    """
    path = _transforms_path(options)
    value = parse_json_object(path.read_bytes(), str(path))
    frames = [_frame(frame, value, i, path) for i, frame in enumerate(field(value, "frames", list, str(path)))]
    groups: dict[str, list[dict[str, Any]]] = {}
    for frame in frames:
        groups.setdefault(frame["camera"], []).append(frame)
    names = choose_cameras(list(groups), list(groups), options, str(path))
    rigs = value.get("rig", {})
    notes = [] if rigs else ["no times and no rig in the file: 10 Hz and a level camera 1.5 m above the road assumed"]
    cameras, ego = {}, None
    for name in names:
        group = sorted(groups[name], key=lambda frame: frame["t_us"])
        T_rig_camera = _mounting(rigs, name, str(path))
        t_us = np.array([frame["t_us"] for frame in group], np.int64)
        if ego is None:
            poses = np.stack([frame["T_world_camera"] for frame in group]) @ invert_pose(T_rig_camera)
            ego = trajectory_from_poses(t_us, poses, str(path))
        kept = select_frames(t_us, options, f"{path}: camera {name}")
        camera = _camera(name, group[0]["settings"], T_rig_camera, str(path))
        cameras[name] = CameraFrames(camera, t_us[kept], tuple(path.parent / group[i]["file"] for i in kept))
    assert ego is not None
    starts, ends = zip(*((int(f.t_us[0]), int(f.t_us[-1])) for f in cameras.values()), strict=True)
    clip = Clip(
        clip_id=out.name,
        source={"dataset": "nerfstudio", "sequence": path.parent.name, "scale": options.scale, "notes": notes},
        cameras=cameras,
        ego=cover(ego, min(starts), max(ends)),
        ego_vehicle=EgoVehicle(),
    )
    return finish_clip(clip, options, out)


def export_nerfstudio(clip: Clip, folder: Path) -> None:
    """Write `clip` as a nerfstudio dataset: `transforms.json` and the images, all cameras, world z up, m.

    Raises `InputError` on a camera whose lens the format does not know (f-theta).
    """
    frames: list[dict[str, Any]] = []
    with atomic_folder(folder) as partial:
        for name, item in clip.cameras.items():
            settings = _settings(item.camera)
            poses = clip.ego.poses_at(item.t_us) @ item.camera.T_rig_camera @ GL_FROM_CV
            for t_us, source, pose in zip(item.t_us, item.paths, poses, strict=True):
                target = partial / "images" / name / f"{t_us}{source.suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
                place = {"file_path": str(target.relative_to(partial)), "camera": name, "t_us": int(t_us)}
                frames.append({**place, "transform_matrix": pose.tolist(), **settings})
        rig = {name: item.camera.T_rig_camera.tolist() for name, item in clip.cameras.items()}
        value = {"camera_model": "OPENCV", "rig": rig, "frames": frames}
        (partial / "transforms.json").write_text(json.dumps(value, indent=1, allow_nan=False))


def _transforms_path(options: IngestOptions) -> Path:
    if options.root is None:
        raise InputError("nerfstudio needs the folder with transforms.json; pass --root DIR")
    path = options.root if options.root.is_file() else options.root / "transforms.json"
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; mend --root")
    return path


def _frame(frame: Any, value: Mapping[str, Any], index: int, path: Path) -> dict[str, Any]:
    where = f"{path}: frame {index}"
    if not isinstance(frame, dict):
        raise InputError(f"{where}: expected an object, found {type(frame).__name__}; mend the file")
    file = field(frame, "file_path", str, where)
    if not (path.parent / file).resolve().is_relative_to(path.parent.resolve()):
        raise InputError(f"{where}: file_path {file!r} leaves the dataset; do not trust this file")
    camera = str(frame.get("camera", "camera"))
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", camera):
        raise InputError(f"{where}: camera {camera!r} must be letters, digits, '_', '-' and '.'; rename it")
    time_us = round(float(frame["time"]) * 1e6) if isinstance(frame.get("time"), int | float) else None
    default_us = round(index * 1e6 / ASSUMED_RATE_HZ) if time_us is None else time_us
    pose = _matrix(frame.get("transform_matrix"), 4, f"{where}: transform_matrix")
    return {
        "file": file,
        "camera": camera,
        "t_us": field({"t_us": default_us, **frame}, "t_us", int, where),
        "T_world_camera": _undo_applied(pose, value, str(path)) @ GL_FROM_CV,
        "settings": {**{k: v for k, v in value.items() if k != "frames"}, **frame},
    }


def _undo_applied(pose: Float[np.ndarray, "4 4"], value: Mapping[str, Any], where: str) -> Float[np.ndarray, "4 4"]:
    """Poses before nerfstudio's processing: first its scale, then its transform are taken back."""
    pose = pose.copy()
    scale = field({"applied_scale": 1.0, **value}, "applied_scale", float, where)
    if not scale > 0:
        raise InputError(f"{where}: applied_scale is {scale}, expected a positive number; mend the file")
    pose[:3, 3] /= scale
    if "applied_transform" not in value:
        return pose
    applied = _matrix(value["applied_transform"], 3, f"{where}: applied_transform")
    try:
        return np.linalg.inv(applied) @ pose
    except np.linalg.LinAlgError as error:
        raise InputError(f"{where}: applied_transform cannot be inverted; mend the file") from error


def _matrix(value: Any, at_least_rows: int, where: str) -> Float[np.ndarray, "4 4"]:
    try:
        rows = np.array(value, float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} is not numbers ({error}); mend the file") from error
    if rows.ndim != 2 or rows.shape[1] != 4 or not at_least_rows <= len(rows) <= 4 or not np.isfinite(rows).all():
        raise InputError(f"{where} has shape {list(rows.shape)}, expected finite numbers [4, 4]; mend the file")
    matrix = np.eye(4)
    matrix[: len(rows)] = rows
    if abs(np.linalg.det(matrix)) < 1e-9:
        raise InputError(f"{where} cannot be inverted; mend the file")
    return matrix


def _mounting(rigs: Any, name: str, where: str) -> Float[np.ndarray, "4 4"]:
    if isinstance(rigs, dict) and name in rigs:
        return _matrix(rigs[name], 4, f"{where}: rig.{name}")
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = R_RIG_FORWARD_CAMERA, (ASSUMED_CAMERA_AHEAD_M, 0.0, ASSUMED_CAMERA_HEIGHT_M)
    return pose


def _camera(name: str, settings: dict[str, Any], T_rig_camera: Float[np.ndarray, "4 4"], where: str) -> Camera:
    where = f"{where}: camera {name}"
    model = str(settings.get("camera_model", "OPENCV"))
    if model not in _MODELS:
        raise InputError(f"{where}: camera_model is {model!r}, expected one of {', '.join(_MODELS)}")
    k1, k2, k3, k4, p1, p2 = (
        field({key: 0.0, **settings}, key, float, where) for key in ("k1", "k2", "k3", "k4", "p1", "p2")
    )
    lens: Distortion | None = None
    if model == "OPENCV_FISHEYE":
        lens = EquidistantFisheye((k1, k2, k3, k4))
    elif any((k1, k2, k3, k4, p1, p2)):
        lens = RadialTangential((k1, k2, k3, k4, 0.0, 0.0) if k4 else (k1, k2, k3), (p1, p2))
    fx_px = field(settings, "fl_x", float, where)
    return Camera(
        name=name,
        width_px=int(field(settings, "w", float, where)),
        height_px=int(field(settings, "h", float, where)),
        fx_px=fx_px,
        fy_px=field({"fl_y": fx_px, **settings}, "fl_y", float, where),
        cx_px=field(settings, "cx", float, where),
        cy_px=field(settings, "cy", float, where),
        T_rig_camera=T_rig_camera,
        distortion=lens,
    )


def _settings(camera: Camera) -> dict[str, Any]:
    sizes = {"w": camera.width_px, "h": camera.height_px}
    numbers = {"fl_x": camera.fx_px, "fl_y": camera.fy_px, "cx": camera.cx_px, "cy": camera.cy_px}
    lens = camera.distortion
    if lens is None:
        return {"camera_model": "OPENCV", **sizes, **numbers}
    if isinstance(lens, EquidistantFisheye):
        coefficients = dict(zip(("k1", "k2", "k3", "k4"), lens.coefficients, strict=True))
        return {"camera_model": "OPENCV_FISHEYE", **sizes, **numbers, **coefficients}
    if isinstance(lens, RadialTangential) and not any(lens.radial[4:]):
        coefficients = dict(zip(("k1", "k2", "k3", "k4"), lens.radial, strict=False))
        tangential = dict(zip(("p1", "p2"), lens.tangential, strict=True))
        return {"camera_model": "OPENCV", **sizes, **numbers, **coefficients, **tangential}
    raise InputError(f"camera {camera.name}: transforms.json has no lens {camera.model!r}; choose another camera")
