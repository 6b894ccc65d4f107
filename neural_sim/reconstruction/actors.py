"""Moving road users: one rigid set of Gaussians each, in the frame of its box."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from neural_sim.frames import invert_pose
from neural_sim.reconstruction.initial_points import ColoredPoints, color_from_views
from neural_sim.reconstruction.views import MIN_DEPTH_M, View
from neural_sim.road_users import Track

ACTOR_CATEGORIES = ("vehicle", "cyclist", "pedestrian")
# Boxes are tight and their poses noisy: Gaussians may leave the box by this factor.
BOX_MARGIN = 1.2
_POINTS_PER_M2 = 40.0
_POINT_LIMITS = (200, 3000)


def moving_tracks(tracks: Sequence[Track]) -> tuple[Track, ...]:
    """The road users that get Gaussians of their own; what stands still stays in the background."""
    return tuple(track for track in tracks if track.category in ACTOR_CATEGORIES and track.is_moving())


def actor_poses(tracks: Sequence[Track], t_us: int) -> list[Float[np.ndarray, "4 4"] | None]:
    """T_world_box of each track at `t_us` (us), None where it is not present."""
    at = np.array([t_us])
    return [track.trajectory.poses_at(at)[0] if track.is_present(t_us) else None for track in tracks]


def in_box(points_m: Float[np.ndarray, "n 3"], size_m: tuple[float, float, float]) -> Bool[np.ndarray, "n"]:
    """Whether points in the box frame lie inside the box with its margin."""
    return np.all(np.abs(points_m) <= 0.5 * BOX_MARGIN * np.asarray(size_m), axis=1)


def inside_any_box(points_m: Float[np.ndarray, "n 3"], tracks: Sequence[Track], t_us: int) -> Bool[np.ndarray, "n"]:
    """Whether world points lie in the box of any of `tracks` at `t_us`."""
    inside = np.zeros(len(points_m), bool)
    for track, pose in zip(tracks, actor_poses(tracks, t_us), strict=True):
        if pose is not None:
            T_box_world = invert_pose(pose)
            inside |= in_box(points_m @ T_box_world[:3, :3].T + T_box_world[:3, 3], track.size_m)
    return inside


def pixels_on_boxes(view: View, pixels: Float[np.ndarray, "n 2"], tracks: Sequence[Track]) -> Bool[np.ndarray, "n"]:
    """Whether image positions lie in the upright rectangle around the projection of any track's box.

    Before a pinhole the whole box must lie in front; otherwise the rectangle is around what the lens sees of the box.
    """
    hit = np.zeros(len(pixels), bool)
    bends = view.camera.distortion is not None
    # Edges are straight in a pinhole image only.
    steps = np.linspace(-1, 1, 5 if bends else 2)
    corners = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3) * 0.5
    for track, pose in zip(tracks, actor_poses(tracks, view.t_us), strict=True):
        if pose is None:
            continue
        box = (corners * np.asarray(track.size_m) * BOX_MARGIN) @ pose[:3, :3].T + pose[:3, 3]
        at, depth, _ = view.project(box)
        ahead = depth > MIN_DEPTH_M
        if ahead.any() if bends else ahead.all():
            at = at[ahead]
            hit |= ((pixels >= at.min(axis=0)) & (pixels <= at.max(axis=0))).all(axis=1)
    return hit


def initial_actor_points(
    track: Track, views: Sequence[View], lidar_m: Float[np.ndarray, "n 3"], rng: np.random.Generator
) -> ColoredPoints:
    """Points in the frame of the track's box, coloured from the views that show them.

    Measured points `lidar_m` (box frame) where there are enough, filled up with random points inside the box.
    """
    length, width, height = track.size_m
    surface_m2 = 2 * (length * width + length * height + width * height)
    count = int(np.clip(_POINTS_PER_M2 * surface_m2, *_POINT_LIMITS))
    if len(lidar_m) > count:
        lidar_m = lidar_m[rng.choice(len(lidar_m), count, replace=False)]
    random = (rng.uniform(-0.5, 0.5, (count - len(lidar_m), 3))) * np.asarray(track.size_m)
    poses = [actor_poses([track], view.t_us)[0] for view in views]
    return color_from_views(np.concatenate([lidar_m, random]), views, poses)
