"""Behaviour cloning: training windows from a recorded clip."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8

from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.errors import InputError
from neural_sim.frames import planar_to_local
from neural_sim.road_map import corridor_map
from neural_sim.simulation.observation import HISTORY_STEP_US, HISTORY_STEPS, PLAN_STEP_US, PLAN_STEPS, ImageFormat
from neural_sim.simulation.route import Route, RouteConfig, make_route
from neural_sim.trajectory import Trajectory
from pipelines.shards.example import ShardExample, safe_name
from pipelines.training.images import resize_image

MAX_FRAME_AGE_US = 250_000
"""A frame may be this much older than the time it stands for, us."""
MAX_POSE_GAP_US = 500_000
"""Ego poses farther apart than this are not interpolated across, us."""
_CORRIDOR_HALF_WIDTH_M = 2.0


def clip_examples(clip: Clip, images: ImageFormat, stride_us: int) -> Iterator[ShardExample]:
    """Yield the windows of a clip in order of time, the expert's own future as the target.

    A window stands at the time of a frame of the first camera. It exists only where the clip has the whole history
    and the whole 6.4 s horizon, without gaps in the ego poses, and recent frames of every camera. Each frame is the
    latest at or before the time it stands for. The route is that of the closed loop with its default settings: the
    recorded path, drawn to the lanes where the clip has a recorded map.

    Args:
        clip: the recorded drive.
        images: what the policy sees.
        stride_us: time between consecutive windows, us, 1 or more.

    Raises:
        InputError: the clip lacks a camera, or an image does not decode.
    """
    for name in images.cameras:
        if name not in clip.cameras:
            raise InputError(f"clip {clip.clip_id}: no camera {name}; it has {', '.join(sorted(clip.cameras))}")
    pixels = _ResizedFrames(clip, images)
    route = make_route(clip.ego, clip.road_map or corridor_map(clip.ego, _CORRIDOR_HALF_WIDTH_M), RouteConfig())
    for number, t_us in enumerate(window_times(clip, images, stride_us)):
        yield _example(clip, images, pixels, route, number, int(t_us))


def window_times(clip: Clip, images: ImageFormat, stride_us: int) -> Int[np.ndarray, "n"]:
    """Times of the windows, us, `stride_us` apart as closely as frame times allow; see `clip_examples`."""
    times_us = clip.cameras[images.cameras[0]].t_us
    # Frame times jitter: a frame just before the due time is better than one almost an interval after it.
    early_us = int(np.median(np.diff(times_us))) // 2 if len(times_us) > 1 else 0
    chosen: list[int] = []
    due_us = int(times_us[0])
    for t_us in times_us.tolist():
        if t_us < due_us - early_us or not (_is_covered(clip.ego, t_us) and _has_frames(clip, images, t_us)):
            continue
        # The grid of due times starts at the first window and again after a gap.
        is_on_grid = bool(chosen) and t_us - due_us < stride_us
        due_us = (due_us if is_on_grid else t_us) + stride_us
        chosen.append(t_us)
    return np.array(chosen, np.int64)


def frame_indices(frames: CameraFrames, t_us: int, num_frames: int, frame_interval_us: int) -> Int[np.ndarray, "f"]:
    """Index of the latest frame at or before t - i * interval, oldest first; -1 where there is none."""
    asked_us = t_us - frame_interval_us * np.arange(num_frames - 1, -1, -1)
    return np.searchsorted(frames.t_us, asked_us, side="right") - 1


def ego_history(ego: Trajectory, t_us: int) -> Float[np.ndarray, "16 4"]:
    """(x, y, yaw, speed) every 0.1 s from t - 1.5 s to t, float32, rig frame at `t_us`, m, rad, m/s."""
    times_us = t_us - HISTORY_STEP_US * np.arange(HISTORY_STEPS - 1, -1, -1)
    local = planar_to_local(ego.planar_at(times_us), ego.planar_at(np.array([t_us])))
    return np.concatenate([local, ego.speed_mps_at(times_us)[:, None]], axis=1).astype(np.float32)


def ego_future(ego: Trajectory, t_us: int) -> Float[np.ndarray, "64 3"]:
    """(x, y, yaw) every 0.1 s from t + 0.1 s to t + 6.4 s, float32, rig frame at `t_us`, m and rad."""
    times_us = t_us + PLAN_STEP_US * np.arange(1, PLAN_STEPS + 1)
    return planar_to_local(ego.planar_at(times_us), ego.planar_at(np.array([t_us]))).astype(np.float32)


class _ResizedFrames:
    """Resized frames of a clip; the newest few stay in memory because neighbouring windows share them."""

    def __init__(self, clip: Clip, images: ImageFormat) -> None:
        self._clip, self._images = clip, images
        self._kept: dict[tuple[str, int], UInt8[np.ndarray, "h w 3"]] = {}

    def get(self, camera: str, index: int) -> UInt8[np.ndarray, "h w 3"]:
        if (camera, index) not in self._kept:
            if len(self._kept) >= 4 * self._images.num_frames * len(self._images.cameras):
                self._kept.pop(next(iter(self._kept)))
            image = self._clip.cameras[camera].load(index)
            self._kept[camera, index] = resize_image(image, self._images.width_px, self._images.height_px)
        return self._kept[camera, index]


def _is_covered(ego: Trajectory, t_us: int) -> bool:
    """Whether ego poses reach over history and horizon without a gap."""
    start_us = t_us - HISTORY_STEP_US * (HISTORY_STEPS - 1)
    end_us = t_us + PLAN_STEP_US * PLAN_STEPS
    if start_us < ego.start_us or end_us > ego.end_us:
        return False
    first = np.searchsorted(ego.t_us, start_us, side="right") - 1
    last = np.searchsorted(ego.t_us, end_us, side="left")
    return bool(np.diff(ego.t_us[first : last + 1]).max(initial=0) <= MAX_POSE_GAP_US)


def _has_frames(clip: Clip, images: ImageFormat, t_us: int) -> bool:
    asked_us = t_us - images.frame_interval_us * np.arange(images.num_frames - 1, -1, -1)
    for name in images.cameras:
        frames = clip.cameras[name]
        indices = frame_indices(frames, t_us, images.num_frames, images.frame_interval_us)
        if indices[0] < 0 or (asked_us - frames.t_us[indices] > MAX_FRAME_AGE_US).any():
            return False
    return True


def _example(
    clip: Clip, images: ImageFormat, pixels: _ResizedFrames, route: Route, number: int, t_us: int
) -> ShardExample:
    indices = {
        name: frame_indices(clip.cameras[name], t_us, images.num_frames, images.frame_interval_us)
        for name in images.cameras
    }
    future = ego_future(clip.ego, t_us)
    return ShardExample(
        key=f"{safe_name(clip.clip_id)}-w{number:05d}",
        t_us=t_us,
        images={name: np.stack([pixels.get(name, int(i)) for i in chosen]) for name, chosen in indices.items()},
        image_times_us={name: clip.cameras[name].t_us[chosen] for name, chosen in indices.items()},
        ego_history=ego_history(clip.ego, t_us),
        navigation=clip.navigation_at(t_us),
        target=future,
        plan=future,
        candidate_distances=np.zeros(0, np.float32),
        recovered=False,
        meta={
            "source": "clip",
            "scene_id": clip.clip_id,
            "rollout_index": 0,
            "step": number,
            "seed": 0,
            "policy_hash": "",
            "round": 0,
        },
        route=route.waypoints(clip.ego.planar_at(np.array([t_us])))[0].astype(np.float32),
    )
