"""The side files of a NuRec archive in: calibration, rig poses, exposures, tracks.

NVIDIA's `T_a_b` maps a to b: `T_rig_worlds` are our `T_world_rig`, `T_sensor_rig` our `T_rig_camera`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from neural_sim.cameras import SHUTTER_DIRECTIONS, Camera
from neural_sim.clips.json_input import field, parse_json_object
from neural_sim.distortion import EquidistantFisheye, FTheta, RadialTangential
from neural_sim.errors import InputError
from neural_sim.frames import pose_from_translation_quaternion
from neural_sim.road_users import EgoVehicle, Track
from neural_sim.trajectory import Trajectory

CATEGORY_BY_LABEL = {
    **dict.fromkeys(
        ("automobile", "heavy_truck", "bus", "train_or_tram_car", "trolley_bus", "other_vehicle"), "vehicle"
    ),
    **dict.fromkeys(("trailer", "vehicle", "truck", "car"), "vehicle"),
    **dict.fromkeys(("person", "pedestrian", "stroller", "animal"), "pedestrian"),
    **dict.fromkeys(("rider", "bicycle", "cyclist", "motorcycle"), "cyclist"),
}


@dataclass(frozen=True)
class RigFile:
    """`rig_trajectories.json`, read.

    Attributes:
        sequence_id: name of the one sequence.
        world_to_nre: float64 [4, 4], world of poses to world of the volume, m.
        T_ecef_world: float64 [4, 4], world of poses to earth-centred coordinates, m.
        ego: rig poses in the world.
        cameras: calibration by logical name.
        camera_times_us: int64 [N] by camera, middle of each exposure.
        ego_vehicle: from `rig_bbox`, else the default.
    """

    sequence_id: str
    world_to_nre: Float[np.ndarray, "4 4"]
    T_ecef_world: Float[np.ndarray, "4 4"]
    ego: Trajectory
    cameras: dict[str, Camera]
    camera_times_us: dict[str, Int[np.ndarray, "n"]]
    ego_vehicle: EgoVehicle


def read_rig_file(content: bytes, where: str) -> RigFile:
    """Read `rig_trajectories.json`. Raises `InputError` on several rigs, and naming what is malformed."""
    value = parse_json_object(content, where)
    trajectories = field(value, "rig_trajectories", list, where)
    if len(trajectories) != 1 or not isinstance(trajectories[0], dict):
        raise InputError(f"{where}: {len(trajectories)} rig trajectories, expected one; split the scene")
    rig = trajectories[0]
    t_us = _times(field(rig, "T_rig_world_timestamps_us", list, where), where)
    ego = Trajectory(t_us, _numbers(rig.get("T_rig_worlds"), (len(t_us), 4, 4), f"{where}: T_rig_worlds"))
    nre = value.get("world_to_nre") or {}
    exposures = field(rig, "cameras_frame_timestamps_us", dict, where)
    cameras: dict[str, Camera] = {}
    times: dict[str, Int[np.ndarray, "n"]] = {}
    for uid, calibration in field(value, "camera_calibrations", dict, where).items():
        label = f"{where}: camera {uid}"
        spans = _numbers(exposures.get(uid, []), (-1, 2), f"{label}: frame times").astype(np.int64)
        camera = _camera(calibration, spans, label)
        cameras[camera.name] = camera
        times[camera.name] = spans.mean(axis=1).astype(np.int64)
    identity = np.eye(4).tolist()
    return RigFile(
        sequence_id=str(rig.get("sequence_id", "")),
        world_to_nre=_numbers(nre.get("matrix", identity), (4, 4), f"{where}: world_to_nre"),
        T_ecef_world=_numbers(value.get("T_world_base", identity), (4, 4), f"{where}: T_world_base"),
        ego=ego,
        cameras=cameras,
        camera_times_us=times,
        ego_vehicle=_ego_vehicle(rig.get("rig_bbox"), where),
    )


def read_tracks_file(content: bytes, where: str) -> tuple[Track, ...]:
    """Read `sequence_tracks.json`. Raises `InputError` on several sequences, and naming what is malformed."""
    value = parse_json_object(content, where)
    if len(value) > 1:
        raise InputError(f"{where}: {len(value)} sequences, expected one; split the scene")
    tracks: list[Track] = []
    for sequence in value.values():
        data = field(sequence, "tracks_data", dict, where) if isinstance(sequence, dict) else {}
        ids = field(data, "tracks_id", list, where)
        columns = [field(data, f"tracks_{name}", list, where) for name in ("label_class", "timestamps_us", "poses")]
        sizes = field(field(sequence, "cuboidtracks_data", dict, where), "cuboids_dims", list, where)
        if {len(column) for column in (*columns, sizes)} != {len(ids)}:
            raise InputError(f"{where}: {len(ids)} tracks, but columns of other lengths; get the file again")
        tracks += [
            _track(str(name), label, times, poses, size, f"{where}: track {name}")
            for name, label, times, poses, size in zip(ids, *columns, sizes, strict=True)
        ]
    return tuple(tracks)


def _track(name: str, label: Any, times: Any, poses: Any, size: Any, where: str) -> Track:
    t_us = _times(times, where)
    rows = _numbers(poses, (len(t_us), 7), f"{where}: poses")
    norm = np.linalg.norm(rows[:, 3:], axis=1)
    if not (np.abs(norm - 1) < 1e-2).all():
        raise InputError(f"{where}: a quaternion has norm {norm[np.argmax(np.abs(norm - 1))]:.4g}, expected 1")
    length_m, width_m, height_m = map(float, _numbers(size, (3,), f"{where}: size"))
    trajectory = Trajectory(t_us, pose_from_translation_quaternion(rows[:, :3], rows[:, 3:]))
    return Track(name, CATEGORY_BY_LABEL.get(str(label), "obstacle"), (length_m, width_m, height_m), trajectory)


def _camera(calibration: Any, spans_us: Int[np.ndarray, "n 2"], where: str) -> Camera:
    if not isinstance(calibration, dict):
        raise InputError(f"{where}: expected an object, found {type(calibration).__name__}; get the file again")
    model = field(calibration, "camera_model", dict, where)
    parameters = field(model, "parameters", dict, where)
    size = _numbers(field(parameters, "resolution", list, where), (2,), f"{where}: resolution")
    center = _numbers(field(parameters, "principal_point", list, where), (2,), f"{where}: principal_point")
    kind = field(model, "type", str, where)
    shutter = str(parameters.get("shutter_type", "GLOBAL"))
    rolling = shutter.startswith("ROLLING_")
    common: dict[str, Any] = {
        "name": field(calibration, "logical_sensor_name", str, where),
        "width_px": int(size[0]),
        "height_px": int(size[1]),
        "T_rig_camera": _numbers(calibration.get("T_sensor_rig"), (4, 4), f"{where}: T_sensor_rig"),
        "shutter_us": int(np.median(spans_us[:, 1] - spans_us[:, 0])) if rolling and len(spans_us) else 0,
        "shutter_direction": _direction(shutter, where) if rolling else SHUTTER_DIRECTIONS[0],
    }
    if kind == "ftheta":
        lens = _ftheta(parameters, where)
        # F-theta principal points count pixel centres as integers; ours count from the corner of the first pixel.
        place: dict[str, Any] = {"cx_px": float(center[0]) + 0.5, "cy_px": float(center[1]) + 0.5}
        return Camera(**{**common, **place}, fx_px=lens.focal_px, fy_px=lens.focal_px, distortion=lens)
    if kind not in ("opencv-pinhole", "opencv-fisheye"):
        raise InputError(
            f"{where}: camera model {kind!r} is not supported; expected 'ftheta', 'opencv-pinhole' or 'opencv-fisheye'"
        )
    focal = _numbers(field(parameters, "focal_length", list, where), (2,), f"{where}: focal_length")
    place = {"cx_px": float(center[0]), "cy_px": float(center[1])}
    if kind == "opencv-fisheye":
        k = _numbers(parameters.get("radial_coeffs", [0.0] * 4), (4,), f"{where}: radial_coeffs").tolist()
        max_angle_rad = field({"max_angle": np.pi / 2, **parameters}, "max_angle", float, where)
        fisheye = EquidistantFisheye((k[0], k[1], k[2], k[3]), max_angle_rad)
        return Camera(**{**common, **place}, fx_px=float(focal[0]), fy_px=float(focal[1]), distortion=fisheye)
    radial = tuple(_numbers(parameters.get("radial_coeffs", [0.0] * 6), (6,), f"{where}: radial_coeffs").tolist())
    tangential = _numbers(parameters.get("tangential_coeffs", [0.0] * 2), (2,), f"{where}: tangential_coeffs")
    if any(parameters.get("thin_prism_coeffs") or ()):
        raise InputError(f"{where}: thin prism coefficients are not supported; undistort the camera first")
    bent = any(radial) or tangential.any()
    lens = RadialTangential(radial, (float(tangential[0]), float(tangential[1]))) if bent else None
    return Camera(**{**common, **place}, fx_px=float(focal[0]), fy_px=float(focal[1]), distortion=lens)


def _ftheta(parameters: dict[str, Any], where: str) -> FTheta:
    def polynomial(key: str) -> tuple[float, ...]:
        return tuple(_numbers(field(parameters, key, list, where), (-1,), f"{where}: {key}").tolist())

    reference = str(parameters.get("reference_poly", "ANGLE_TO_PIXELDIST"))
    linear = _numbers(parameters.get("linear_cde", [1.0, 0.0, 0.0]), (3,), f"{where}: linear_cde").tolist()
    return FTheta(
        angle_to_radius_px=polynomial("angle_to_pixeldist_poly"),
        radius_px_to_angle=polynomial("pixeldist_to_angle_poly"),
        reference="radius_to_angle" if reference.startswith("PIXELDIST") else "angle_to_radius",
        max_angle_rad=field(parameters, "max_angle", float, where),
        linear=(linear[0], linear[1], linear[2]),
    )


def _direction(shutter: str, where: str) -> str:
    direction = shutter.removeprefix("ROLLING_").lower().replace("_", "-")
    if direction not in SHUTTER_DIRECTIONS:
        raise InputError(
            f"{where}: shutter type {shutter!r} is not known; expected GLOBAL or ROLLING_TOP_TO_BOTTOM, ..."
        )
    return direction


def _ego_vehicle(box: Any, where: str) -> EgoVehicle:
    """The outer box; the axles inside it are not in the file, so the default's share of the length is taken."""
    if box is None:
        return EgoVehicle()
    if not isinstance(box, dict):
        raise InputError(f"{where}: rig_bbox should be an object or null, found {type(box).__name__}")
    center = _numbers(box.get("centroid"), (3,), f"{where}: rig_bbox.centroid")
    length_m, width_m, height_m = map(float, _numbers(box.get("dim"), (3,), f"{where}: rig_bbox.dim"))
    default = EgoVehicle()
    rear_m = length_m / 2 - float(center[0])
    if min(length_m, width_m, height_m, rear_m) <= 0:
        raise InputError(
            f"{where}: rig_bbox {length_m} x {width_m} x {height_m} m around x {center[0]} holds no rear axle"
        )
    return EgoVehicle(length_m, width_m, height_m, rear_m, default.wheelbase_m * length_m / default.length_m)


def _times(values: Any, where: str) -> Int[np.ndarray, "n"]:
    t_us = _numbers(values, (-1,), f"{where}: timestamps")
    if len(t_us) == 0 or not (np.diff(t_us) > 0).all() or np.abs(t_us).max() > 2**62:
        raise InputError(f"{where}: timestamps must be microseconds that increase; get the file again")
    return np.array([int(value) for value in values], np.int64)


def _numbers(value: Any, shape: tuple[int, ...], where: str) -> Float[np.ndarray, "..."]:
    try:
        array = np.array(value, float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} is not numbers ({error}); get the file again") from error
    if array.size == 0 and -1 in shape:
        array = array.reshape([max(n, 0) for n in shape])
    fits = array.ndim == len(shape) and all(w in (-1, n) for w, n in zip(shape, array.shape, strict=True))
    if not fits or not np.isfinite(array).all():
        raise InputError(f"{where} has shape {list(array.shape)}, expected finite numbers {list(shape)}")
    return array
