"""The scene: a clip reconstructed, in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from neural_sim.cameras import Camera
from neural_sim.clips.clip import NavigationStep
from neural_sim.gaussians import Gaussians
from neural_sim.road_map import RoadMap
from neural_sim.road_users import EgoVehicle, Track
from neural_sim.trajectory import Trajectory


@dataclass(frozen=True)
class GroundMesh:
    """Drivable ground surface.

    Attributes:
        vertices_m: float32 [V, 3], world frame, m.
        faces: int32 [F, 3], indices into `vertices_m`.
    """

    vertices_m: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]


@dataclass(frozen=True)
class Scene:
    """A reconstructed drive: what the simulator needs and nothing of the policy.

    Attributes:
        scene_id: name; equals the clip's.
        background: static Gaussians off the road, world frame.
        road: static Gaussians of the road surface, world frame.
        actors: Gaussians of each rigid actor by track id, in the frame of its box.
        sky: float32 [6, S, S, 3], RGB cubemap in 0..1, faces +X -X +Y -Y +Z -Z of the world frame; see
            `neural_sim.rendering.sky` for the orientation of each face.
        expert: the recorded rig poses, the demonstration that guidance follows.
        tracks: recorded road users, the moving ones among them with Gaussians in `actors`.
        road_map: recorded, or derived from the expert path.
        ground: surface the cars stand on.
        cameras: calibration by camera name, at the recorded image size.
        camera_times_us: int64 [N] recorded frame times by camera name.
        ego_vehicle: outer box of the recording car.
        navigation: instructions in order of time.
        metadata: source, reconstruction settings and held-out quality; plain JSON values.
    """

    scene_id: str
    background: Gaussians
    road: Gaussians
    actors: Mapping[str, Gaussians]
    sky: Float[Tensor, "6 s s 3"]
    expert: Trajectory
    tracks: tuple[Track, ...]
    road_map: RoadMap
    ground: GroundMesh
    cameras: Mapping[str, Camera]
    camera_times_us: Mapping[str, Int[np.ndarray, "n"]]
    ego_vehicle: EgoVehicle
    navigation: tuple[NavigationStep, ...]
    metadata: Mapping[str, Any]
