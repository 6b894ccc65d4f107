"""The whole town for one seed: street, traffic, expert drive, cameras, and the true world as a renderer."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
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
from neural_sim.town.config import FIELD_OF_VIEW_DEG, TELE_CAMERA, TownConfig
from neural_sim.town.expert import EGO_VEHICLE, drive_expert, sample_times_us
from neural_sim.town.layout import Layout, make_layout
from neural_sim.town.renderer import TownRenderer
from neural_sim.town.road import Road, make_road, road_map
from neural_sim.town.shading import Light
from neural_sim.town.street import street_mesh
from neural_sim.town.traffic import Car, make_lead_car, make_oncoming_cars, make_parked_cars, street_length_m
from neural_sim.trajectory import Trajectory

CAMERA_X_M, CAMERA_Z_M, CAMERA_SPACING_M = 1.9, 1.45, 0.12
BEND_PER_M = 0.008
NAVIGATION_PREVIEW_M = 15.0
# Each part of the town draws from its own stream, so that one more parked car moves no house.
STREAMS = ("road", "layout", "lead", "oncoming", "parked", "expert", "sun")


@dataclass(frozen=True)
class Town:
    """A street with a drive along it.

    Attributes:
        config: settings it was built from.
        road: geometry of the street.
        layout: what stands beside it.
        cars: all other road users.
        expert: poses of the rig over the whole drive.
        light: sun and textures.
    """

    config: TownConfig
    road: Road
    layout: Layout
    cars: tuple[Car, ...]
    expert: Trajectory
    light: Light

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
        return road_map(self.road)

    @cached_property
    def cameras(self) -> Mapping[str, Camera]:
        """Calibrated cameras by name."""
        return {name: make_camera(name, self.config) for name in self.config.cameras}

    @cached_property
    def renderer(self) -> TownRenderer:
        """The true world, with every road user of the town at hand."""
        actors = {car.track.track_id: car.mesh for car in self.cars}
        return TownRenderer(street_mesh(self.road, self.layout), actors, self.light, self.config.sensor_noise)

    @cached_property
    def navigation(self) -> tuple[NavigationStep, ...]:
        """Instructions along the expert drive: which way the road bends next."""
        return _navigation(self.road, self.expert)

    def request(self, camera: Camera, t_us: int) -> RenderRequest:
        """What `camera` saw at `t_us` of the recorded drive."""
        pose = _pose_at(self.expert, t_us) @ camera.T_rig_camera
        actors = {track.track_id: _pose_at(track.trajectory, t_us) for track in self.tracks}
        return RenderRequest(camera, pose, pose, actors, t_us)


def build_town(config: TownConfig) -> Town:
    """Build the town of `config`, the same for the same settings. Raises `InputError` for more cars than bays."""
    rngs = {name: np.random.default_rng([config.seed, i]) for i, name in enumerate(STREAMS)}
    road = make_road(rngs["road"], street_length_m(config), config.max_curvature_per_m)
    t_us = sample_times_us(config)
    lead = make_lead_car(rngs["lead"], road, config, t_us) if config.lead_car else None
    expert = drive_expert(rngs["expert"], road, config, lead)
    oncoming = make_oncoming_cars(rngs["oncoming"], road, config, t_us)
    parked = make_parked_cars(rngs["parked"], road, config, int(t_us[-1]))
    cars = [drive.car for drive in ([lead] if lead else []) + oncoming] + parked
    layout = make_layout(rngs["layout"], road)
    light = Light(_sun(rngs["sun"]), road.section.lane_width_m, config.seed % 1_000_003)
    return Town(config, road, layout, tuple(cars), expert, light)


def town_from_source(source: Mapping[str, Any]) -> Town:
    """Rebuild the true world behind a clip from its `source`. Raises `InputError` if that is another dataset's."""
    if source.get("dataset") != "town" or not isinstance(source.get("town"), Mapping):
        raise InputError(
            f"the clip is of dataset {source.get('dataset')!r}; expected 'town' with its settings, since only the town "
            "can be rendered as it truly is"
        )
    return build_town(TownConfig.from_json(source["town"]))


def make_camera(name: str, config: TownConfig) -> Camera:
    """One of the town's cameras behind the windscreen, looking straight ahead, the tele left of the wide."""
    width, height = config.image_width_px, config.image_height_px
    focal_px = float(width / 2 / np.tan(np.deg2rad(FIELD_OF_VIEW_DEG[name]) / 2))
    T_rig_camera = np.eye(4)
    T_rig_camera[:3, :3] = R_RIG_FORWARD_CAMERA
    y_m = CAMERA_SPACING_M if name == TELE_CAMERA else 0.0
    T_rig_camera[:3, 3] = CAMERA_X_M, y_m, CAMERA_Z_M
    return Camera(name, width, height, focal_px, focal_px, width / 2, height / 2, T_rig_camera)


def _pose_at(trajectory: Trajectory, t_us: int) -> Float[np.ndarray, "4 4"]:
    """Pose at one time; only the two poses around it are interpolated, which is much faster than `poses_at`."""
    after = int(np.clip(np.searchsorted(trajectory.t_us, t_us), 1, len(trajectory.t_us) - 1))
    pair = slice(after - 1, after + 1)
    return interpolate_poses(trajectory.t_us[pair], trajectory.T_world_rig[pair], np.array([t_us]))[0]


def _sun(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    azimuth, elevation = rng.uniform(0.0, 2 * np.pi), np.deg2rad(rng.uniform(38.0, 58.0))
    return np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])


def _navigation(road: Road, expert: Trajectory) -> tuple[NavigationStep, ...]:
    s_m = road.to_road(expert.planar[:, :2])[:, 0]
    curvature = road.curvature_at(s_m + NAVIGATION_PREVIEW_M)
    kind = np.where(np.abs(curvature) < BEND_PER_M, 0, np.sign(curvature)).astype(int)
    texts = {0: "go straight on", 1: "follow the road to the left", -1: "follow the road to the right"}
    starts = [0, *(np.flatnonzero(np.diff(kind)) + 1)]
    return tuple(NavigationStep(int(expert.t_us[i]), texts[int(kind[i])]) for i in starts)
