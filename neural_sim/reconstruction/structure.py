"""Structure from motion with known poses: where the cameras were, a little better than recorded, and what they saw."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.reconstruction.actors import pixels_on_boxes
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.pose_refinement import PoseCorrection, RigImages, refine_poses
from neural_sim.reconstruction.tracks import FeatureTracks, bearings_of, track_features
from neural_sim.reconstruction.triangulation import triangulate
from neural_sim.reconstruction.views import View, load_views, usable_pixels
from neural_sim.rendering.motion import is_read_by_rows
from neural_sim.road_users import Track
from neural_sim.scenes.recorded_views import exposure_us
from neural_sim.trajectory import Trajectory

# The lines of a rolling shutter are placed at the times of so many equal blocks: half of one is a quarter of a
# millisecond of the usual 30, a few millimetres of driving.
_LINE_BLOCKS = 64


@dataclass(frozen=True)
class Structure:
    """What the images alone say.

    Attributes:
        training, held_out: views of all cameras, along the refined poses.
        ego: rig poses, refined.
        points_m: float64 [P, 3], triangulated points, world frame.
        seen: for each training view the indices of the points it observed.
    """

    training: tuple[View, ...]
    held_out: tuple[View, ...]
    ego: Trajectory
    points_m: Float[np.ndarray, "p 3"]
    seen: tuple[Int[np.ndarray, "k"], ...]


def find_structure(clip: Clip, moving: Sequence[Track], config: ReconstructionConfig) -> Structure:
    """Load the images, follow features outside the boxes of `moving`, refine the rig poses and triangulate.

    Held-out images are only loaded: no features come from them. Raises `InputError` as `load_views`.
    """
    views: list[View] = []
    parts: list[FeatureTracks] = []
    cameras: list[list[Camera]] = []
    for frames in clip.cameras.values():
        camera_views, tracks, gray_camera = _track_camera(clip, frames, moving, config)
        views += camera_views
        parts.append(tracks)
        cameras.append([gray_camera] * sum(not view.held_out for view in camera_views))
    if any(frames.camera.distortion is not None for frames in clip.cameras.values()):
        pairs = zip(parts, cameras, strict=True)
        parts = [replace(part, bearings=bearings_of(each[0], part.xy_px)) for part, each in pairs]
    tracks = FeatureTracks.join(parts, [len(each) for each in cameras])
    training = [view for view in views if not view.held_out]
    images, sighted = _rig_images(clip, training, [camera for each in cameras for camera in each], tracks)
    correction = refine_poses(images, sighted) if config.refine_poses else PoseCorrection.none(np.unique(images.t_us))
    found = triangulate(sighted, images.K, images.T_camera_world(correction))
    ego = correction.applied(clip.ego)
    views = [view.along(ego) for view in views]
    return Structure(
        tuple(view for view in views if not view.held_out),
        tuple(view for view in views if view.held_out),
        ego,
        found.points_m,
        _seen(tracks, found.track, len(training)),
    )


def _track_camera(
    clip: Clip, frames: CameraFrames, moving: Sequence[Track], config: ReconstructionConfig
) -> tuple[list[View], FeatureTracks, Camera]:
    """All views of one camera, the feature tracks through its training images, and the camera as those were."""
    views, grays = load_views(clip, frames, config)
    chosen = [index for index, view in enumerate(views) if not view.held_out]
    gray_camera = frames.camera.resized(grays[0].shape[1], grays[0].shape[0])
    usable = usable_pixels(frames.camera, gray_camera.width_px, gray_camera.height_px)
    tracks = track_features([grays[index] for index in chosen], config.track_corners, usable=usable)
    tracks = tracks.keep(~_on_moving(tracks, [views[index] for index in chosen], gray_camera.width_px, moving))
    return views, tracks, gray_camera


def _on_moving(
    tracks: FeatureTracks, views: Sequence[View], track_width_px: int, moving: Sequence[Track]
) -> Bool[np.ndarray, "m"]:
    """Which observations lie on the box of a moving road user."""
    hit = np.zeros(len(tracks.track), bool)
    for index, view in enumerate(views):
        here = np.flatnonzero(tracks.image == index)
        hit[here] = pixels_on_boxes(view, tracks.xy_px[here] * (view.camera.width_px / track_width_px), moving)
    return hit


def _rig_images(
    clip: Clip, views: Sequence[View], cameras: Sequence[Camera], tracks: FeatureTracks
) -> tuple[RigImages, FeatureTracks]:
    """The images that features were followed in, through `cameras`, and the tracks with their numbers.

    With a rolling shutter among them every block of lines in which there are features is an image of its own.
    """
    image, t_us = np.arange(len(views)), np.array([view.t_us for view in views])
    if any(camera.shutter_us for camera in cameras) and len(tracks):
        read_us = _read_us(tracks, cameras, t_us)
        moments, number = np.unique(np.stack([tracks.image, read_us]), axis=1, return_inverse=True)
        (image, t_us), tracks = moments, replace(tracks, image=number.ravel())
    chosen = [(cameras[i], views[i].t_us) for i in image.tolist()]
    images = RigImages(
        np.array([middle_us for _, middle_us in chosen]),
        np.stack([camera.K for camera, _ in chosen]),
        np.stack([camera.T_rig_camera for camera, _ in chosen]),
        clip.ego.poses_at(t_us),
    )
    return images, tracks


def _read_us(tracks: FeatureTracks, cameras: Sequence[Camera], t_us: Int[np.ndarray, "v"]) -> Int[np.ndarray, "m"]:
    """When the block of lines with each observation was read, us."""
    shares = np.empty(len(tracks.track))
    for index, camera in enumerate(cameras):
        here = tracks.image == index
        shares[here] = _read_share(camera, tracks.xy_px[here])
    opened_us, closed_us = np.array([exposure_us(camera, int(t)) for camera, t in zip(cameras, t_us, strict=True)]).T
    block = np.minimum(np.floor(shares * _LINE_BLOCKS), _LINE_BLOCKS - 1)
    span_us = (closed_us - opened_us)[tracks.image]
    return opened_us[tracks.image] + np.round(span_us * (block + 0.5) / _LINE_BLOCKS).astype(np.int64)


def _read_share(camera: Camera, xy_px: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "m"]:
    """Share of the exposure that is gone when the lines of image positions are read."""
    by_rows = is_read_by_rows(camera.shutter_direction)
    share = xy_px[:, 1] / camera.height_px if by_rows else xy_px[:, 0] / camera.width_px
    forward = camera.shutter_direction in ("top-to-bottom", "left-to-right")
    return np.clip(share if forward else 1 - share, 0, 1)


def _seen(tracks: FeatureTracks, found: np.ndarray, view_count: int) -> tuple[Int[np.ndarray, "k"], ...]:
    number = np.full(len(tracks), -1)
    number[found] = np.arange(len(found))
    seen = [number[tracks.track[tracks.image == index]] for index in range(view_count)]
    return tuple(indices[indices >= 0] for indices in seen)
