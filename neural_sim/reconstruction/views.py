"""Frames of a clip as posed images, split into training and held-out views."""

import logging
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from neural_sim.cameras import Camera, require_pinhole
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.errors import InputError
from neural_sim.frames import invert_pose
from neural_sim.reconstruction.config import ReconstructionConfig

logger = logging.getLogger("roadloop")

MIN_FRAMES = 8
MIN_MOTION_M = 1.0
# Gaussians are float32: 100 km from the origin their grid is 8 mm.
MAX_DISTANCE_FROM_ORIGIN_M = 100_000.0
# No lit scene keeps every pixel this dark, not even at night.
BLACK_LEVEL = 12


@dataclass(frozen=True)
class View:
    """One posed image.

    Attributes:
        camera: calibration at the size of `image`.
        frame_index: index of the frame in its camera's recording.
        t_us: when the middle row was exposed, us.
        T_world_camera: float64 [4, 4] camera pose at `t_us`, m. Rolling shutters are treated as global.
        image: uint8 [H, W, 3] RGB.
        held_out: whether the view is only measured, never trained on.
    """

    camera: Camera
    frame_index: int
    t_us: int
    T_world_camera: Float[np.ndarray, "4 4"]
    image: UInt8[np.ndarray, "h w 3"]
    held_out: bool

    @property
    def T_camera_world(self) -> Float[np.ndarray, "4 4"]:
        """World to camera, m."""
        return invert_pose(self.T_world_camera)

    @property
    def name(self) -> str:
        """Camera and frame, for messages."""
        return f"{self.camera.name}/{self.frame_index}"

    def project(
        self, points_m: Float[np.ndarray, "n 3"]
    ) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
        """Image position (px), depth (m) and whether it falls into the image, of world points (m)."""
        T = self.T_camera_world
        local = points_m @ T[:3, :3].T + T[:3, 3]
        depth = local[:, 2]
        safe = np.where(depth > 0.1, depth, 1.0)
        camera = self.camera
        x = camera.fx_px * local[:, 0] / safe + camera.cx_px
        y = camera.fy_px * local[:, 1] / safe + camera.cy_px
        inside = (depth > 0.1) & (x >= 0) & (x < camera.width_px) & (y >= 0) & (y < camera.height_px)
        return np.stack([x, y], axis=-1), depth, inside

    def ray_directions(self, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
        """World directions of image positions (px), scaled so that their depth along the optical axis is 1."""
        camera = self.camera
        x = (pixels[:, 0] - camera.cx_px) / camera.fx_px
        y = (pixels[:, 1] - camera.cy_px) / camera.fy_px
        return np.stack([x, y, np.ones_like(x)], axis=-1) @ self.T_world_camera[:3, :3].T

    def colors_at(self, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
        """RGB 0..1 of the pixels that contain the image positions `pixels`, which must lie inside."""
        column, row = np.floor(pixels).astype(int).T
        return self.image[row, column] / 255.0


def check_clip(clip: Clip) -> None:
    """Raise `InputError` for a clip that cannot be reconstructed: no camera, few frames, no motion, far from origin."""
    where = f"clip {clip.clip_id}"
    if not clip.cameras:
        raise InputError(f"{where}: has no camera; reconstruction needs images, ingest the clip with its cameras")
    for name, frames in clip.cameras.items():
        require_pinhole(frames.camera, "reconstruction")
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

    Returns the views at the training size, and for each a gray image at the tracking size. Black frames are left out
    with a warning. Raises `InputError` when a file is missing or broken or fewer than `MIN_FRAMES` frames are lit.
    """
    camera = frames.camera.resized(*reduced_size(frames.camera, config.image_width_px))
    gray_size = reduced_size(frames.camera, config.track_width_px)
    T_world_rig = clip.ego.poses_at(frames.t_us)
    views, grays = [], []
    for index, t_us in enumerate(frames.t_us):
        pixels = frames.load(index)
        if pixels.max() <= BLACK_LEVEL:
            logger.warning("clip %s: frame %d (%s) is black; left out", clip.clip_id, index, frames.paths[index])
            continue
        image = _resize(pixels, (camera.width_px, camera.height_px))
        pose = T_world_rig[index] @ camera.T_rig_camera
        views.append(View(camera, index, int(t_us), pose, image, is_held_out(index, config.holdout_every)))
        grays.append(_resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), gray_size))
    if len(views) < MIN_FRAMES:
        raise InputError(
            f"clip {clip.clip_id}: camera {camera.name} has {len(views)} frames that are not black; expected at least "
            f"{MIN_FRAMES}; check the exported images"
        )
    return views, grays


def reduced_size(camera: Camera, width_px: int) -> tuple[int, int]:
    """Width and height, px, of the camera's image at most `width_px` wide, in its own aspect."""
    width = min(width_px, camera.width_px)
    return width, max(1, round(camera.height_px * width / camera.width_px))


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels.copy()
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
