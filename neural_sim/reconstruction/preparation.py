"""Everything the optimisation starts from: views, the road surface and coloured points."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import KDTree

from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction.actors import initial_actor_points, moving_tracks, pixels_on_boxes
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.ground import GroundSurface, fit_to_points, ground_from_path, road_grid, surface_normals
from neural_sim.reconstruction.initial_points import (
    ColoredPoints,
    color_from_views,
    far_points,
    interpolated_points,
)
from neural_sim.reconstruction.lidar import lidar_points
from neural_sim.reconstruction.model import (
    BACKGROUND,
    FIRST_ACTOR,
    ROAD,
    SceneModel,
    actor_gaussians,
    gaussians_from_points,
    road_gaussians,
)
from neural_sim.reconstruction.tracks import FeatureTracks, track_features
from neural_sim.reconstruction.triangulation import triangulate
from neural_sim.reconstruction.views import View, load_views
from neural_sim.road_users import Track
from neural_sim.trajectory import Trajectory

logger = logging.getLogger("roadloop")

# The first Gaussians take at most this share of the cap, so that growth can go where the images ask for it.
_INITIAL_SHARE = 0.7
# Points this far below the road surface are wrong matches, mostly reflections and passing cars.
_MAX_BELOW_GROUND_M = 1.0


@dataclass(frozen=True)
class Prepared:
    """A clip ready to be optimised.

    Attributes:
        training, held_out: views of all cameras.
        tracks: moving road users, each with a set of points.
        surface: road surface as the images show it.
        static: points of the background, world frame.
        road: points on the road surface, world frame.
        actors: points of each moving track, box frame.
        ego: recorded rig poses.
    """

    training: tuple[View, ...]
    held_out: tuple[View, ...]
    tracks: tuple[Track, ...]
    surface: GroundSurface
    static: ColoredPoints
    road: ColoredPoints
    actors: tuple[ColoredPoints, ...]
    ego: Trajectory


def prepare(clip: Clip, config: ReconstructionConfig, seed: int) -> Prepared:
    """Load the images, triangulate, find the road surface and place the first points.

    Held-out images are only loaded: neither features nor colours come from them. Raises `InputError` as `load_views`.
    """
    rng = np.random.default_rng([seed, 0])
    moving = moving_tracks(clip.tracks)
    views: list[View] = []
    triangulated, dense = [], []
    for frames in clip.cameras.values():
        camera_views, near, between = _points_of_camera(clip, frames, moving, config, rng)
        views += camera_views
        triangulated.append(near)
        dense.append(between)
    training = tuple(view for view in views if not view.held_out)
    held_out = tuple(view for view in views if view.held_out)
    lidar, on_actors = lidar_points(clip, moving)
    near = ColoredPoints.concatenate([*triangulated, color_from_views(lidar, training)])
    plane = ground_from_path(clip.ego, config.ground_half_width_m)
    surface = fit_to_points(plane, near.points_m)
    near = _above_ground(ColoredPoints.concatenate([near, *dense]), surface)
    far = far_points(near, training, config.far_points, config.far_distance_m, rng)
    road = color_from_views(road_grid(surface, config.road_spacing_m), training)
    actors = tuple(
        initial_actor_points(track, training, points, rng) for track, points in zip(moving, on_actors, strict=True)
    )
    budget = int(_INITIAL_SHARE * config.max_gaussians)
    road = _at_most(road, budget // 2, rng)
    static = _at_most(ColoredPoints.concatenate([near, far]), budget - len(road) - sum(map(len, actors)), rng)
    logger.info(
        "%s: %d training and %d held-out views; %d triangulated, %d lidar, %d far, %d road points, %d road users",
        clip.clip_id, len(training), len(held_out), sum(map(len, triangulated)), len(lidar), len(far), len(road),
        len(moving),
    )  # fmt: skip
    return Prepared(training, held_out, moving, surface, static, road, actors, clip.ego)


def _points_of_camera(
    clip: Clip,
    frames: CameraFrames,
    moving: Sequence[Track],
    config: ReconstructionConfig,
    rng: np.random.Generator,
) -> tuple[list[View], ColoredPoints, ColoredPoints]:
    """All views of one camera, its triangulated points and the points interpolated between them."""
    views, grays = load_views(clip, frames, config)
    chosen = [index for index, view in enumerate(views) if not view.held_out]
    shown = [views[index] for index in chosen]
    tracks = track_features([grays[index] for index in chosen], config.track_corners)
    gray_camera = frames.camera.resized(grays[0].shape[1], grays[0].shape[0])
    tracks = tracks.keep(~_on_moving(tracks, shown, gray_camera.width_px, moving))
    found = triangulate(tracks, gray_camera.K, np.stack([view.T_camera_world for view in shown]))
    number = np.full(len(tracks), -1)
    number[found.track] = np.arange(len(found.track))
    seen = [number[tracks.track[tracks.image == index]] for index in range(len(shown))]
    seen = [indices[indices >= 0] for indices in seen]
    between = interpolated_points(found.points_m, seen, shown, config.dense_points_per_frame, rng)
    return views, color_from_views(found.points_m, shown), between


def _on_moving(
    tracks: FeatureTracks, views: Sequence[View], track_width_px: int, moving: Sequence[Track]
) -> Bool[np.ndarray, "m"]:
    """Which observations lie on the box of a moving road user."""
    hit = np.zeros(len(tracks.track), bool)
    for index, view in enumerate(views):
        here = np.flatnonzero(tracks.image == index)
        hit[here] = pixels_on_boxes(view, tracks.xy_px[here] * (view.camera.width_px / track_width_px), moving)
    return hit


def _above_ground(points: ColoredPoints, surface: GroundSurface) -> ColoredPoints:
    xy = points.points_m[:, :2]
    below = surface.contains(xy) & (points.points_m[:, 2] < surface.height_at(xy) - _MAX_BELOW_GROUND_M)
    return points.keep(~below)


def _at_most(points: ColoredPoints, count: int, rng: np.random.Generator) -> ColoredPoints:
    if len(points) <= count:
        return points
    wanted = np.zeros(len(points), bool)
    wanted[rng.choice(len(points), max(count, 0), replace=False)] = True
    return points.keep(wanted)


def _path_yaw(ego: Trajectory, xy_m: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n"]:
    _, nearest = KDTree(ego.planar[:, :2]).query(xy_m)
    return ego.planar[nearest, 2]


def initial_model(prepared: Prepared, config: ReconstructionConfig, device: str) -> SceneModel:
    """The first Gaussians with their owners, and a sky in the mean colour of the images' upper rows."""
    centers = np.stack([view.T_world_camera[:3, 3] for view in prepared.training])
    normals = surface_normals(prepared.surface, prepared.road.points_m[:, :2])
    yaw_rad = _path_yaw(prepared.ego, prepared.road.points_m[:, :2])
    parts = [
        gaussians_from_points(prepared.static, config.sh_degree, centers),
        road_gaussians(prepared.road, normals, yaw_rad, config.road_spacing_m, config.sh_degree),
        *(actor_gaussians(points, config.sh_degree) for points in prepared.actors),
    ]
    owners = (BACKGROUND, ROAD, *range(FIRST_ACTOR, FIRST_ACTOR + len(prepared.actors)))
    owner = torch.cat([torch.full((len(part),), number) for number, part in zip(owners, parts, strict=True)])
    upper = np.mean(
        [view.image[: max(1, len(view.image) // 8)].mean(axis=(0, 1)) for view in prepared.training], axis=0
    )
    size = config.sky_size_px
    sky = torch.from_numpy((upper / 255.0).astype(np.float32)).expand(6, size, size, 3).clone()
    gaussians = Gaussians.concatenate(parts).to(device)
    return SceneModel(gaussians, owner.to(device), sky.to(device), len(prepared.training))
