"""Frames of a clip as posed images, split into training and held-out views."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.errors import InputError
from neural_sim.frames import invert_pose
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.rendering.lenses import is_perspective, view_rays
from neural_sim.rendering.motion import is_read_by_rows, line_poses
from neural_sim.rendering.splat_renderer import pose_at_mid_shutter
from neural_sim.scenes.recorded_views import drive_request
from neural_sim.trajectory import Trajectory

logger = logging.getLogger("roadloop")

MIN_FRAMES = 8
MIN_MOTION_M = 1.0
# Gaussians are float32: 100 km from the origin their grid is 8 mm.
MAX_DISTANCE_FROM_ORIGIN_M = 100_000.0
# No lit scene keeps every pixel this dark, not even at night.
BLACK_LEVEL = 12
# Nearer than this nothing is projected.
MIN_DEPTH_M = 0.1
# Steps from the middle of the exposure to the time at which the line that shows a point is read.
_SHUTTER_STEPS = 4


@dataclass(frozen=True)
class View:
    """One posed image.

    Depth is along the optical axis, for fisheye and f-theta lenses the distance from the camera.

    Attributes:
        camera: calibration at the size of `image`.
        frame_index: index of the frame in its camera's recording.
        t_us: when the middle row was exposed, us.
        T_world_camera: float64 [4, 4] camera pose at `t_us`, m.
        image: uint8 [H, W, 3] RGB; black where it is not usable.
        held_out: whether the view is only measured, never trained on.
        ends: camera poses as the first and the last line of a rolling shutter are read; None for a global one.
        usable: bool [H, W], which pixels show the world, see `usable_pixels`; None for all.
        sky: bool [H, W], which pixels surely show sky, see `sky_mask`; None where that is not known.
    """

    camera: Camera
    frame_index: int
    t_us: int
    T_world_camera: Float[np.ndarray, "4 4"]
    image: UInt8[np.ndarray, "h w 3"]
    held_out: bool
    ends: tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "4 4"]] | None = None
    usable: Bool[np.ndarray, "h w"] | None = None
    sky: Bool[np.ndarray, "h w"] | None = None

    @property
    def T_camera_world(self) -> Float[np.ndarray, "4 4"]:
        """World to camera at `t_us`, m."""
        return invert_pose(self.T_world_camera)

    @property
    def name(self) -> str:
        """Camera and frame, for messages."""
        return f"{self.camera.name}/{self.frame_index}"

    def along(self, ego: Trajectory) -> "View":
        """The same image taken from a rig that drives along `ego`."""
        pose, ends = _poses_along(ego, self.camera, self.t_us)
        return replace(self, T_world_camera=pose, ends=ends)

    @cached_property
    def T_world_camera_lines(self) -> Float[np.ndarray, "l 4 4"]:
        """Camera pose as each line is read, m: of rows from the top or columns from the left; one of a global one."""
        if self.ends is None:
            return self.T_world_camera[None]
        opened, closed = (torch.from_numpy(pose)[None] for pose in self.ends)
        camera = self.camera
        return line_poses(opened, closed, camera.shutter_direction, camera.width_px, camera.height_px)[0].numpy()

    def project(
        self, points_m: Float[np.ndarray, "n 3"]
    ) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
        """Image position (px), depth (m) and whether a usable pixel shows it, of world points (m).

        Under a rolling shutter a point is where it is when its line is read. The depth is 0 where a lens does not see.
        """
        camera = self.camera
        if camera.distortion is None and self.ends is None:
            pixels, depth = self._project_pinhole(points_m)
        else:
            pixels, depth = self._project_line_by_line(points_m)
        x, y = pixels.T
        inside = (depth > MIN_DEPTH_M) & (x >= 0) & (x < camera.width_px) & (y >= 0) & (y < camera.height_px)
        if self.usable is not None:
            inside[inside] = self.is_usable(pixels[inside])
        return pixels, depth, inside

    def is_usable(self, pixels: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n"]:
        """Whether image positions, which must lie inside, are on usable pixels."""
        if self.usable is None:
            return np.ones(len(pixels), bool)
        column, row = np.floor(pixels).astype(int).T
        return self.usable[row, column]

    def ray_directions(self, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
        """World directions of image positions (px), of depth 1."""
        camera = self.camera
        if camera.distortion is None:
            x = (pixels[:, 0] - camera.cx_px) / camera.fx_px
            y = (pixels[:, 1] - camera.cy_px) / camera.fy_px
            rays = np.stack([x, y, np.ones_like(x)], axis=-1)
        else:
            rays, _ = camera.unproject(pixels)
            rays = rays / rays[:, 2:] if is_perspective(camera.distortion) else rays
        if self.ends is None:
            return rays @ self.T_world_camera[:3, :3].T
        return np.einsum("nij,nj->ni", self.T_world_camera_lines[self._lines(pixels), :3, :3], rays)

    def ray_origins(self, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
        """World position of the camera as the lines of image positions (px) are read, m."""
        return self.T_world_camera_lines[self._lines(pixels), :3, 3]

    def colors_at(self, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
        """RGB 0..1 of the pixels that contain the image positions `pixels`, which must lie inside."""
        column, row = np.floor(pixels).astype(int).T
        return self.image[row, column] / 255.0

    def _project_pinhole(self, points_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        T, camera = self.T_camera_world, self.camera
        local = points_m @ T[:3, :3].T + T[:3, 3]
        depth = local[:, 2]
        safe = np.where(depth > MIN_DEPTH_M, depth, 1.0)
        x = camera.fx_px * local[:, 0] / safe + camera.cx_px
        y = camera.fy_px * local[:, 1] / safe + camera.cy_px
        return np.stack([x, y], axis=-1), depth

    def _project_line_by_line(self, points_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        T_camera_world, camera = invert_pose(self.T_world_camera_lines), self.camera
        pixels = np.empty((len(points_m), 2))
        local, seen = np.empty((len(points_m), 3)), np.zeros(len(points_m), bool)
        line = np.full(len(points_m), len(T_camera_world) // 2)
        for _ in range(1 if self.ends is None else _SHUTTER_STEPS):
            T = T_camera_world[line]
            local = np.einsum("nij,nj->ni", T[:, :3, :3], points_m) + T[:, :3, 3]
            pixels, seen = camera.project(local)
            line = self._lines(pixels)
        depth = local[:, 2] if is_perspective(camera.distortion) else np.linalg.norm(local, axis=1)
        return pixels, np.where(seen, depth, 0.0)

    def _lines(self, pixels: np.ndarray) -> Int[np.ndarray, "n"]:
        """Index in `T_world_camera_lines` of each image position, the nearest one for positions outside."""
        along = pixels[:, 1] if is_read_by_rows(self.camera.shutter_direction) else pixels[:, 0]
        return np.clip(np.floor(np.nan_to_num(along)), 0, len(self.T_world_camera_lines) - 1).astype(int)


def check_clip(clip: Clip) -> None:
    """Raise `InputError` for a clip that cannot be reconstructed: no camera, few frames, no motion, far from origin."""
    where = f"clip {clip.clip_id}"
    if not clip.cameras:
        raise InputError(f"{where}: has no camera; reconstruction needs images, ingest the clip with its cameras")
    for name, frames in clip.cameras.items():
        if len(frames.t_us) < MIN_FRAMES:
            raise InputError(
                f"{where}: camera {name} has {len(frames.t_us)} frames; expected at least {MIN_FRAMES}; "
                "ingest a longer range"
            )
    positions = clip.ego.T_world_rig[:, :3, 3]
    moved_m = float(np.linalg.norm(positions - positions[0], axis=1).max())
    if moved_m < MIN_MOTION_M:
        raise InputError(
            f"{where}: the ego poses move {moved_m:.2f} m; expected at least {MIN_MOTION_M} m, because depth comes "
            "from motion; choose a range in which the car drives"
        )
    far_m = float(np.abs(positions).max())
    if far_m > MAX_DISTANCE_FROM_ORIGIN_M:
        raise InputError(
            f"{where}: ego poses lie {far_m / 1000:.0f} km from the world origin; expected less than "
            f"{MAX_DISTANCE_FROM_ORIGIN_M / 1000:.0f} km; subtract a local origin when ingesting"
        )


def is_held_out(frame_index: int, holdout_every: int) -> bool:
    """Whether a frame is kept for measurement: `frame_index` mod `holdout_every` is `holdout_every // 2`."""
    return frame_index % holdout_every == holdout_every // 2


def load_views(
    clip: Clip, frames: CameraFrames, config: ReconstructionConfig
) -> tuple[list[View], list[UInt8[np.ndarray, "h w"]]]:
    """Decode every frame of one camera once.

    Returns the views at the training size, and for each a gray image at the tracking size. Pixels that are not usable
    are black in both. Black frames are left out with a warning. Raises `InputError` when a file is missing or broken,
    no pixel is usable, or fewer than `MIN_FRAMES` frames are lit.
    """
    camera = frames.camera.resized(*reduced_size(frames.camera, config.image_width_px))
    gray_size = reduced_size(frames.camera, config.track_width_px)
    usable = usable_pixels(frames.camera, camera.width_px, camera.height_px)
    gray_usable = usable_pixels(frames.camera, *gray_size)
    if usable is not None and not usable.any():
        raise InputError(
            f"clip {clip.clip_id}: camera {camera.name}: ego mask and lens leave no pixel of the image; mend the mask "
            "or leave this camera out"
        )
    views, grays = [], []
    for index, t_us in enumerate(frames.t_us):
        pixels = frames.load(index)
        image = _blacked_out(_resize(pixels, (camera.width_px, camera.height_px)), usable)
        if (pixels if usable is None else image).max() <= BLACK_LEVEL:
            logger.warning("clip %s: frame %d (%s) is black; left out", clip.clip_id, index, frames.paths[index])
            continue
        pose, ends = _poses_along(clip.ego, camera, int(t_us))
        held_out = is_held_out(index, config.holdout_every)
        views.append(View(camera, index, int(t_us), pose, image, held_out, ends, usable))
        grays.append(_blacked_out(_resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), gray_size), gray_usable))
    if len(views) < MIN_FRAMES:
        raise InputError(
            f"clip {clip.clip_id}: camera {camera.name} has {len(views)} frames that are not black; expected at least "
            f"{MIN_FRAMES}; check the exported images"
        )
    return views, grays


def usable_pixels(camera: Camera, width_px: int, height_px: int) -> Bool[np.ndarray, "h w"] | None:
    """Which pixels of the camera's image, reduced to this size, show the world; None for all.

    Left out are pixels that any pixel of the recording car has part in, and those whose centre the lens does not reach.
    """
    usable = np.ones((height_px, width_px), bool)
    if camera.ego_mask is not None:
        ego = camera.ego_pixels().astype(np.float32)
        usable &= np.asarray(cv2.resize(ego, (width_px, height_px), interpolation=cv2.INTER_AREA)) == 0
    if camera.distortion is not None:
        small = camera.resized(width_px, height_px)
        usable &= view_rays(small.K, width_px, height_px, small.distortion).any(axis=-1)
    return None if usable.all() else usable


def reduced_size(camera: Camera, width_px: int) -> tuple[int, int]:
    """Width and height, px, of the camera's image at most `width_px` wide, in its own aspect."""
    width = min(width_px, camera.width_px)
    return width, max(1, round(camera.height_px * width / camera.width_px))


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels.copy()
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _blacked_out(image: np.ndarray, usable: Bool[np.ndarray, "h w"] | None) -> np.ndarray:
    if usable is not None:
        image[~usable] = 0
    return image


def _poses_along(
    ego: Trajectory, camera: Camera, t_us: int
) -> tuple[Float[np.ndarray, "4 4"], tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "4 4"]] | None]:
    """Pose of a camera in the middle of an exposure, and at the ends of a rolling shutter."""
    request = drive_request(ego, (), camera, t_us)
    ends = (request.T_world_camera_open, request.T_world_camera_close)
    return pose_at_mid_shutter(request), ends if camera.shutter_us else None
