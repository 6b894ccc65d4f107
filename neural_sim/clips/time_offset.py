"""Do images and poses share a clock? Turning shows in both: the image shifts sideways when the car yaws."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int

from neural_sim.clips.clip import CameraFrames
from neural_sim.frames import wrap_angle
from neural_sim.trajectory import Trajectory

LARGEST_OFFSET_US = 500_000
OFFSET_STEP_US = 5_000
# Below this spread of yaw rates (rad/s) there is nothing to compare.
LEAST_TURNING = 0.02
_WORK_WIDTH_PX = 320


@dataclass(frozen=True)
class TimeOffset:
    """How camera and pose clocks agree.

    Attributes:
        offset_us: add this to the frame times to match the poses, us.
        correlation: of the two yaw rates at that offset, -1..1; below about 0.8 the offset means little.
    """

    offset_us: int
    correlation: float


def estimate_time_offset(frames: CameraFrames, ego: Trajectory, count: int = 200) -> TimeOffset | None:
    """Offset within 0.5 s at which the sideways shift of the first `count` images best follows the yaw of the poses.

    None when there are too few frames, or the car does not turn. Meant for cameras that look ahead or back.
    """
    indices = np.arange(min(len(frames.t_us), count))
    if len(indices) < 10:
        return None
    t_us = frames.t_us[indices]
    yaw_rate = _image_yaw_rate(frames, indices)
    offsets_us = np.arange(-LARGEST_OFFSET_US, LARGEST_OFFSET_US + 1, OFFSET_STEP_US)
    correlations = np.array([_correlation(yaw_rate, _pose_yaw_rate(ego, t_us + offset)) for offset in offsets_us])
    if np.isnan(correlations).all() or _pose_yaw_rate(ego, t_us).std() < LEAST_TURNING:
        return None
    best = int(np.nanargmax(correlations))
    return TimeOffset(int(offsets_us[best]), float(correlations[best]))


def _image_yaw_rate(frames: CameraFrames, indices: Int[np.ndarray, "n"]) -> Float[np.ndarray, "m"]:
    """Yaw rate (rad/s, left positive) by the sideways shift between consecutive images, m = n - 1."""
    camera, shifts = frames.camera, []
    height_px = max(16, round(camera.height_px * _WORK_WIDTH_PX / camera.width_px))
    window = cv2.createHanningWindow((_WORK_WIDTH_PX, height_px // 2), cv2.CV_32F)
    before = None
    for index in indices:
        gray = cv2.cvtColor(frames.load(int(index)), cv2.COLOR_RGB2GRAY).astype(np.float32)
        # The upper half is far away: it shifts by turning and hardly by driving.
        image = cv2.resize(gray, (_WORK_WIDTH_PX, height_px), interpolation=cv2.INTER_AREA)[: height_px // 2]
        if before is not None:
            shifts.append(cv2.phaseCorrelate(before, image, window)[0][0])
        before = image
    angle_rad = np.array(shifts) / (camera.fx_px * _WORK_WIDTH_PX / camera.width_px)
    return angle_rad / (np.diff(frames.t_us[indices]) * 1e-6)


def _pose_yaw_rate(ego: Trajectory, t_us: Int[np.ndarray, "n"]) -> Float[np.ndarray, "m"]:
    """Yaw rate (rad/s) between the times; NaN where they leave the poses."""
    rate = wrap_angle(np.diff(ego.planar_at(t_us)[:, 2])) / (np.diff(t_us) * 1e-6)
    inside = (t_us >= ego.start_us) & (t_us <= ego.end_us)
    return np.where(inside[:-1] & inside[1:], rate, np.nan)


def _correlation(a: Float[np.ndarray, "m"], b: Float[np.ndarray, "m"]) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 8 or a[both].std() == 0 or b[both].std() == 0:
        return float("nan")
    return float(np.corrcoef(a[both], b[both])[0, 1])
