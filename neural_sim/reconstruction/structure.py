"""Structure from motion with known poses: where the cameras were, a little better than recorded, and what they saw."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.reconstruction.actors import pixels_on_boxes
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.pose_refinement import PoseCorrection, RigImages, refine_poses
from neural_sim.reconstruction.tracks import FeatureTracks, track_features
from neural_sim.reconstruction.triangulation import triangulate
from neural_sim.reconstruction.views import View, load_views
from neural_sim.road_users import Track


@dataclass(frozen=True)
class Structure:
    """What the images alone say.

    Attributes:
        training, held_out: views of all cameras, at refined poses.
        correction: of the recorded rig poses.
        points_m: float64 [P, 3], triangulated points, world frame.
        seen: for each training view the indices of the points it observed.
    """

    training: tuple[View, ...]
    held_out: tuple[View, ...]
    correction: PoseCorrection
    points_m: Float[np.ndarray, "p 3"]
    seen: tuple[Int[np.ndarray, "k"], ...]


def find_structure(clip: Clip, moving: Sequence[Track], config: ReconstructionConfig) -> Structure:
    """Load the images, follow features outside the boxes of `moving`, refine the rig poses and triangulate.

    Held-out images are only loaded: no features come from them. Raises `InputError` as `load_views`.
    """
    views: list[View] = []
    parts: list[FeatureTracks] = []
    K: list[np.ndarray] = []
    for frames in clip.cameras.values():
        camera_views, tracks, intrinsics = _track_camera(clip, frames, moving, config)
        views += camera_views
        parts.append(tracks)
        K.append(intrinsics)
    tracks = FeatureTracks.join(parts, [len(each) for each in K])
    training = [view for view in views if not view.held_out]
    images = _rig_images(clip, training, np.concatenate(K))
    correction = refine_poses(images, tracks) if config.refine_poses else PoseCorrection.none(np.unique(images.t_us))
    found = triangulate(tracks, images.K, images.T_camera_world(correction))
    views = [_at_corrected_pose(clip, view, correction) for view in views]
    return Structure(
        tuple(view for view in views if not view.held_out),
        tuple(view for view in views if view.held_out),
        correction,
        found.points_m,
        _seen(tracks, found.track, len(training)),
    )


def _track_camera(
    clip: Clip, frames: CameraFrames, moving: Sequence[Track], config: ReconstructionConfig
) -> tuple[list[View], FeatureTracks, Float[np.ndarray, "v 3 3"]]:
    """All views of one camera, the feature tracks through its training images, and the intrinsics of those."""
    views, grays = load_views(clip, frames, config)
    chosen = [index for index, view in enumerate(views) if not view.held_out]
    tracks = track_features([grays[index] for index in chosen], config.track_corners)
    gray_camera = frames.camera.resized(grays[0].shape[1], grays[0].shape[0])
    tracks = tracks.keep(~_on_moving(tracks, [views[index] for index in chosen], gray_camera.width_px, moving))
    return views, tracks, np.tile(gray_camera.K, (len(chosen), 1, 1))


def _on_moving(
    tracks: FeatureTracks, views: Sequence[View], track_width_px: int, moving: Sequence[Track]
) -> Bool[np.ndarray, "m"]:
    """Which observations lie on the box of a moving road user."""
    hit = np.zeros(len(tracks.track), bool)
    for index, view in enumerate(views):
        here = np.flatnonzero(tracks.image == index)
        hit[here] = pixels_on_boxes(view, tracks.xy_px[here] * (view.camera.width_px / track_width_px), moving)
    return hit


def _rig_images(clip: Clip, views: Sequence[View], K: Float[np.ndarray, "v 3 3"]) -> RigImages:
    t_us = np.array([view.t_us for view in views])
    return RigImages(t_us, K, np.stack([view.camera.T_rig_camera for view in views]), clip.ego.poses_at(t_us))


def _at_corrected_pose(clip: Clip, view: View, correction: PoseCorrection) -> View:
    at = np.array([view.t_us])
    T_world_rig = clip.ego.poses_at(at)[0] @ correction.at(at)[0]
    return replace(view, T_world_camera=T_world_rig @ view.camera.T_rig_camera)


def _seen(tracks: FeatureTracks, found: np.ndarray, view_count: int) -> tuple[Int[np.ndarray, "k"], ...]:
    number = np.full(len(tracks), -1)
    number[found] = np.arange(len(found))
    seen = [number[tracks.track[tracks.image == index]] for index in range(view_count)]
    return tuple(indices[indices >= 0] for indices in seen)
