"""Everything the optimisation starts from: views, the road surface and coloured points."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import KDTree

from neural_sim.clips.clip import Clip
from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction.actor_motion import ActorKnots
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
from neural_sim.reconstruction.sky_mask import sky_mask
from neural_sim.reconstruction.structure import Structure, find_structure
from neural_sim.reconstruction.views import View
from neural_sim.rendering.renderer import RenderRequest
from neural_sim.road_users import Track
from neural_sim.scenes.recorded_views import drive_request
from neural_sim.trajectory import Trajectory

logger = logging.getLogger("roadloop")

# The first Gaussians take at most this share of the cap, so that growth can go where the images ask for it.
_INITIAL_SHARE = 0.7
# Of these the road and the moving road users take at most so much each.
_ROAD_SHARE, _ACTORS_SHARE = 0.4, 0.25
# Points this far below the road surface are wrong matches, mostly reflections and passing cars.
_MAX_BELOW_GROUND_M = 1.0


@dataclass(frozen=True)
class Prepared:
    """A clip ready to be optimised.

    Attributes:
        training, held_out: views of all cameras.
        tracks: moving road users, each with a set of points.
        knots: when the poses of those can be corrected.
        surface: road surface as the images show it.
        static: points of the background, world frame.
        road: points on the road surface, world frame.
        actors: points of each moving track, box frame.
        ego: rig poses, refined.
    """

    training: tuple[View, ...]
    held_out: tuple[View, ...]
    tracks: tuple[Track, ...]
    knots: ActorKnots
    surface: GroundSurface
    static: ColoredPoints
    road: ColoredPoints
    actors: tuple[ColoredPoints, ...]
    ego: Trajectory

    def request(self, view: View) -> RenderRequest:
        """What to draw to see what `view` shows."""
        return drive_request(self.ego, self.tracks, view.camera, view.t_us)


def prepare(clip: Clip, config: ReconstructionConfig, seed: int) -> Prepared:
    """Load the images, triangulate, find the road surface and place the first points.

    Held-out images are only loaded: neither features nor colours come from them. Raises `InputError` as `load_views`.
    """
    rng = np.random.default_rng([seed, 0])
    moving = moving_tracks(clip.tracks)
    structure = find_structure(clip, moving, config)
    training, held_out, ego = structure.training, structure.held_out, structure.ego

    def is_static(view: View, pixels: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n"]:
        return ~pixels_on_boxes(view, pixels, moving)

    dense = interpolated_points(
        structure.points_m, structure.seen, training, config.dense_points_per_frame, rng, is_static
    )
    lidar, on_actors = lidar_points(replace(clip, ego=ego), moving)
    near = ColoredPoints.concatenate([color_from_views(points, training) for points in (structure.points_m, lidar)])
    plane = ground_from_path(ego, config.ground_half_width_m)
    surface = fit_to_points(plane, near.points_m)
    near = _above_ground(ColoredPoints.concatenate([near, dense]), surface)
    far = far_points(near, training, config.far_points, config.far_distance_m, rng, is_static)
    road = color_from_views(road_grid(surface, config.road_spacing_m), training)
    actors = tuple(
        initial_actor_points(track, training, points, rng) for track, points in zip(moving, on_actors, strict=True)
    )
    budget = int(_INITIAL_SHARE * config.max_gaussians)
    crowd = max(1.0, sum(map(len, actors)) / (_ACTORS_SHARE * budget))
    actors = tuple(_at_most(points, int(len(points) / crowd), rng) for points in actors)
    road = _at_most(road, int(_ROAD_SHARE * budget), rng)
    static = _at_most(ColoredPoints.concatenate([near, far]), budget - len(road) - sum(map(len, actors)), rng)
    logger.info(
        "%s: %d training and %d held-out views; %d triangulated, %d lidar, %d far, %d road points, %d road users",
        clip.clip_id, len(training), len(held_out), len(structure.points_m), len(lidar), len(far), len(road),
        len(moving),
    )  # fmt: skip
    return Prepared(
        _with_sky(clip.clip_id, structure, lidar) if config.sky_opacity_weight > 0 else training,
        held_out,
        moving,
        ActorKnots(moving, training),
        surface,
        static,
        road,
        actors,
        ego,
    )


def _with_sky(clip_id: str, structure: Structure, lidar_m: Float[np.ndarray, "n 3"]) -> tuple[View, ...]:
    """The training views with masks of the sky, refuted by lidar points and by the points that each view observed."""
    views = tuple(
        replace(view, sky=sky_mask(view, np.concatenate([structure.points_m[seen], lidar_m])))
        for view, seen in zip(structure.training, structure.seen, strict=True)
    )
    logger.info("%s: sky found in %d of %d views", clip_id, sum(view.sky is not None for view in views), len(views))
    return views


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


def _upper_color(view: View) -> Float[np.ndarray, "3"]:
    """Mean colour of the upper eighth of the image, or of its usable pixels."""
    if view.usable is None:
        return view.image[: max(1, len(view.image) // 8)].mean(axis=(0, 1))
    pixels = view.image[view.usable]
    return pixels[: max(1, len(pixels) // 8)].mean(axis=0)


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
    upper = np.mean([_upper_color(view) for view in prepared.training], axis=0)
    size = config.sky_size_px
    sky = torch.from_numpy((upper / 255.0).astype(np.float32)).expand(6, size, size, 3).clone()
    gaussians = Gaussians.concatenate(parts).to(device)
    return SceneModel(gaussians, owner.to(device), sky.to(device), len(prepared.training), len(prepared.knots))
