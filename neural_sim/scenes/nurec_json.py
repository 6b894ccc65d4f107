"""The side files of a NuRec archive that AlpaSim's artifact reader reads.

All poses here are in the local world: the scene's own, shifted by `-origin_m`, so that nothing is lost to the float32
of other readers. `world_to_nre` is the identity, because readers disagree whether tracks are given before or after it.
NVIDIA's `T_a_b` maps a to b: `T_rig_worlds` are our `T_world_rig`, `T_sensor_rig` our `T_rig_camera`.
"""

import hashlib
import json
import uuid
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float

from neural_sim.cameras import Camera
from neural_sim.distortion import EquidistantFisheye, FTheta, RadialTangential
from neural_sim.frames import translation_quaternion_from_pose
from neural_sim.road_users import EgoVehicle, Track
from neural_sim.scenes.scene import Scene

LABEL_CLASSES = {"vehicle": "automobile", "pedestrian": "person", "cyclist": "rider", "obstacle": "unknown"}


def metadata_yaml(scene: Scene, version: str, content: bytes) -> bytes:
    """`metadata.yaml`: identity, sensors and time range (us) of `scene`; ids derive from `content`, its full record."""
    digest = hashlib.sha256(content).hexdigest()
    value = {
        "scene_id": scene.scene_id,
        "version_string": version,
        "training_date": str(scene.metadata.get("created", "unknown")),
        "dataset_hash": digest,
        "uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, digest)),
        "is_resumable": False,
        "sensors": {"camera_ids": list(scene.cameras), "lidar_ids": []},
        "logger": {"name": None, "run_id": None, "run_url": None},
        "time_range": {"start": scene.expert.start_us, "end": scene.expert.end_us},
        "training_step_outputs": {},
    }
    return yaml.safe_dump(value, sort_keys=False).encode()


def rig_trajectories_json(scene: Scene, origin_m: Float[np.ndarray, "3"]) -> bytes:
    """`rig_trajectories.json`: calibration, expert poses, frame exposures [start, end] (us) and the ego box."""
    identity = np.eye(4).tolist()
    poses = scene.expert.T_world_rig.copy()
    poses[:, :3, 3] -= origin_m
    trajectory = {
        "sequence_id": scene.scene_id,
        "T_rig_world_timestamps_us": scene.expert.t_us.tolist(),
        "T_rig_worlds": poses.tolist(),
        "cameras_frame_timestamps_us": {
            _camera_uid(scene, name): _exposures(camera, scene.camera_times_us[name])
            for name, camera in scene.cameras.items()
        },
        "rig_bbox": _rig_bbox(scene.ego_vehicle),
    }
    value = {
        "world_to_nre": {"matrix": identity},
        "T_world_base": identity,
        "camera_calibrations": {
            _camera_uid(scene, name): _calibration(camera) for name, camera in scene.cameras.items()
        },
        "rig_trajectories": [trajectory],
    }
    return _dump(value)


def sequence_tracks_json(scene: Scene, origin_m: Float[np.ndarray, "3"]) -> bytes:
    """`sequence_tracks.json`: boxes as [x, y, z, qx, qy, qz, qw]; moving ones carry the flag CONTROLLABLE.

    Road users seen at one time only are left out: AlpaSim fits a spline through the positions of every one.
    """
    tracks = [track for track in scene.tracks if len(track.trajectory.t_us) > 1]
    value = {
        scene.scene_id: {
            "tracks_data": {
                "tracks_id": [track.track_id for track in tracks],
                "tracks_label_class": [LABEL_CLASSES[track.category] for track in tracks],
                "tracks_flags": [["CONTROLLABLE"] if track.is_moving() else [] for track in tracks],
                "tracks_timestamps_us": [track.trajectory.t_us.tolist() for track in tracks],
                "tracks_poses": [_pose_rows(track, origin_m) for track in tracks],
            },
            "cuboidtracks_data": {"cuboids_dims": [list(map(float, track.size_m)) for track in tracks]},
        }
    }
    return _dump(value)


def _camera_uid(scene: Scene, name: str) -> str:
    return f"{name}@{scene.scene_id}"


def _calibration(camera: Camera) -> dict[str, Any]:
    direction = camera.shutter_direction.upper().replace("-", "_")
    kind, lens = _lens(camera)
    parameters = {
        "resolution": [camera.width_px, camera.height_px],
        "shutter_type": f"ROLLING_{direction}" if camera.shutter_us else "GLOBAL",
        "principal_point": [camera.cx_px, camera.cy_px],
        **lens,
    }
    return {
        "logical_sensor_name": camera.name,
        "camera_model": {"type": kind, "parameters": parameters},
        "T_sensor_rig": camera.T_rig_camera.tolist(),
    }


def _lens(camera: Camera) -> tuple[str, dict[str, Any]]:
    """Name of the camera model and its own parameters."""
    lens, focal = camera.distortion, {"focal_length": [camera.fx_px, camera.fy_px]}
    if isinstance(lens, FTheta):
        radius_first = lens.reference == "radius_to_angle"
        return "ftheta", {
            # F-theta principal points count pixel centres as integers; ours count from the corner of the first pixel.
            "principal_point": [camera.cx_px - 0.5, camera.cy_px - 0.5],
            "reference_poly": "PIXELDIST_TO_ANGLE" if radius_first else "ANGLE_TO_PIXELDIST",
            "pixeldist_to_angle_poly": _padded(lens.radius_px_to_angle),
            "angle_to_pixeldist_poly": _padded(lens.angle_to_radius_px),
            "max_angle": lens.max_angle_rad,
            "linear_cde": list(lens.linear),
        }
    if isinstance(lens, EquidistantFisheye):
        return "opencv-fisheye", {
            **focal,
            "radial_coeffs": list(lens.coefficients),
            "max_angle": float(lens.max_angle_rad),
        }
    bent = isinstance(lens, RadialTangential)
    return "opencv-pinhole", {
        **focal,
        "radial_coeffs": _padded(lens.radial if bent else ()),
        "tangential_coeffs": list(lens.tangential) if bent else [0.0] * 2,
        "thin_prism_coeffs": [0.0] * 4,
    }


def _padded(coefficients: tuple[float, ...]) -> list[float]:
    """Six coefficients or more, zeros at the end."""
    return [*map(float, coefficients), *[0.0] * (6 - len(coefficients))]


def _exposures(camera: Camera, t_us: np.ndarray) -> list[list[int]]:
    """First and last row's time of each frame; a global shutter gets 1 us, since an empty interval is refused."""
    start_us = t_us - camera.shutter_us // 2
    return np.stack([start_us, start_us + max(camera.shutter_us, 1)], axis=-1).tolist()


def _rig_bbox(vehicle: EgoVehicle) -> dict[str, list[float]]:
    return {
        "centroid": [vehicle.center_x_m, 0.0, vehicle.height_m / 2],
        "dim": [vehicle.length_m, vehicle.width_m, vehicle.height_m],
        "rot": [0.0, 0.0, 0.0],
    }


def _pose_rows(track: Track, origin_m: Float[np.ndarray, "3"]) -> list[list[float]]:
    translation_m, quaternion = translation_quaternion_from_pose(track.trajectory.T_world_rig)
    return np.concatenate([translation_m - origin_m, quaternion], axis=1).tolist()


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
