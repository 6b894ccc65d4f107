"""The whole town for one seed: street, traffic, expert drive, cameras, and the true world as a renderer."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from neural_sim.cameras import Camera
from neural_sim.clips.clip import NavigationStep
from neural_sim.errors import InputError
from neural_sim.frames import R_RIG_FORWARD_CAMERA, interpolate_poses
from neural_sim.rendering.renderer import RenderRequest
from neural_sim.road_map import RoadMap
from neural_sim.road_users import EgoVehicle, Track
from neural_sim.scenes.scene import Scene
from neural_sim.town.choreography import make_drives
from neural_sim.town.config import FIELD_OF_VIEW_DEG, TELE_CAMERA, TownConfig
from neural_sim.town.expert import EGO_VEHICLE
from neural_sim.town.layout import Layout, make_layout
from neural_sim.town.navigation import navigation_along
from neural_sim.town.network import Network, make_network
from neural_sim.town.renderer import TownRenderer
from neural_sim.town.street import street_mesh
from neural_sim.town.street_plan import draw_plan
from neural_sim.town.town_map import town_map
from neural_sim.town.traffic import Car
from neural_sim.town.weather import Weather, draw_weather
from neural_sim.trajectory import Trajectory

CAMERA_X_M, CAMERA_Z_M, CAMERA_SPACING_M = 1.9, 1.45, 0.12
# Raised whenever the same settings give another town.
TOWN_VERSION = 2


@dataclass(frozen=True)
class Town:
    """Streets with a drive along them.

    Attributes:
        config: settings it was built from.
        network: the streets.
        layout: what stands beside them.
        cars: all other road users.
        expert: poses of the rig over the whole drive.
        weather: light and camera exposure.
    """

    config: TownConfig
    network: Network
    layout: Layout
    cars: tuple[Car, ...]
    expert: Trajectory
    weather: Weather

    @property
    def ego_vehicle(self) -> EgoVehicle:
        """Outer box of the ego."""
        return EGO_VEHICLE

    @property
    def tracks(self) -> tuple[Track, ...]:
        """Exact boxes of all other road users."""
        return tuple(car.track for car in self.cars)

    @cached_property
    def road_map(self) -> RoadMap:
        """Lanes, kerbs and carriageway."""
        return town_map(self.network)

    @cached_property
    def cameras(self) -> Mapping[str, Camera]:
        """Calibrated cameras by name."""
        return {name: make_camera(name, self.config) for name in self.config.cameras}

    @cached_property
    def renderer(self) -> TownRenderer:
        """The true world, with every road user of the town at hand."""
        actors = {car.track.track_id: car.mesh for car in self.cars}
        static = street_mesh(self.network, self.layout)
        return TownRenderer(static, actors, self.weather, self.config.sensor_noise)

    @cached_property
    def navigation(self) -> tuple[NavigationStep, ...]:
        """Instructions along the expert drive."""
        return navigation_along(self.network, self.expert)

    def actor_poses(self, t_us: int) -> dict[str, Float[np.ndarray, "4 4"]]:
        """Box poses by track id of the road users that are there at `t_us` of the recorded drive."""
        return {track.track_id: pose_at(track.trajectory, t_us) for track in self.tracks if track.is_present(t_us)}

    def request(self, camera: Camera, t_us: int) -> RenderRequest:
        """What `camera` saw at `t_us` of the recorded drive."""
        pose = pose_at(self.expert, t_us) @ camera.T_rig_camera
        return RenderRequest(camera, pose, pose, self.actor_poses(t_us), t_us)

    def scan(self, t_us: int) -> Float[np.ndarray, "n 4"]:
        """The lidar sweep at `t_us` of the recorded drive, float32 [N, 4] (x, y, z, intensity), rig frame, m."""
        return self.renderer.scan(pose_at(self.expert, t_us), self.actor_poses(t_us), t_us)


def build_town(config: TownConfig) -> Town:
    """Build the town of `config`, the same for the same settings. Raises `InputError` for impossible settings."""

    def stream(name: str, attempt: int = 0) -> np.random.Generator:
        # Each part of the town draws from its own stream, so that one car more moves no house.
        return np.random.default_rng([config.seed, zlib.crc32(name.encode()), attempt])

    plan = draw_plan(stream("plan"), config)
    network = make_network(stream("network"), plan, config)
    drives = make_drives(stream, network, config)
    layout = make_layout(stream("layout"), network)
    return Town(config, network, layout, drives.cars, drives.expert, draw_weather(stream("weather"), config.seed))


def config_from_source(source: Any) -> TownConfig:
    """Settings of the town behind a clip or scene, from its `source`.

    Raises `InputError` if that is another dataset's, or of a town that another version of this program built.
    """
    if not isinstance(source, Mapping):
        source = {"dataset": source}
    settings = source.get("town")
    if source.get("dataset") != "town" or not isinstance(settings, Mapping):
        raise InputError(
            f"the clip is of dataset {source.get('dataset')!r}; expected 'town' with its settings, since only the town "
            "can be rendered as it truly is"
        )
    if source.get("town_version") != TOWN_VERSION:
        raise InputError(
            f"the clip is of version {source.get('town_version')} of the town, but this program builds version "
            f"{TOWN_VERSION}, where other houses and cars stand; ingest and reconstruct again"
        )
    return TownConfig.from_json(settings)


def town_from_source(source: Any) -> Town:
    """Rebuild the true world behind a clip or scene from its `source`; raises as `config_from_source`."""
    return _cached_town(config_from_source(source))


@lru_cache(maxsize=2)
def _cached_town(config: TownConfig) -> Town:
    return build_town(config)


def require_town(scene: Scene) -> None:
    """Raise `InputError` when the true world behind a scene cannot be rebuilt; builds nothing."""
    try:
        config_from_source(scene.metadata.get("source"))
    except InputError as error:
        raise InputError(f"scene {scene.scene_id}: {error}") from error


def true_world(scene: Scene) -> TownRenderer:
    """The world in which a scene was recorded, as a renderer; scene and town share one frame.

    Road users stand where a request puts them. Raises `InputError` when the scene is not of the town.
    """
    require_town(scene)
    return town_from_source(scene.metadata["source"]).renderer


def make_camera(name: str, config: TownConfig) -> Camera:
    """One of the town's cameras behind the windscreen, looking straight ahead, the tele left of the wide."""
    width, height = config.image_width_px, config.image_height_px
    focal_px = float(width / 2 / np.tan(np.deg2rad(FIELD_OF_VIEW_DEG[name]) / 2))
    T_rig_camera = np.eye(4)
    T_rig_camera[:3, :3] = R_RIG_FORWARD_CAMERA
    y_m = CAMERA_SPACING_M if name == TELE_CAMERA else 0.0
    T_rig_camera[:3, 3] = CAMERA_X_M, y_m, CAMERA_Z_M
    return Camera(name, width, height, focal_px, focal_px, width / 2, height / 2, T_rig_camera)


def pose_at(trajectory: Trajectory, t_us: int) -> Float[np.ndarray, "4 4"]:
    """Pose at one time; only the two poses around it are interpolated, which is much faster than `poses_at`."""
    after = int(np.clip(np.searchsorted(trajectory.t_us, t_us), 1, len(trajectory.t_us) - 1))
    pair = slice(after - 1, after + 1)
    return interpolate_poses(trajectory.t_us[pair], trajectory.T_world_rig[pair], np.array([t_us]))[0]
