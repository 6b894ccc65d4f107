"""Is a clip sound? The questions that ingest and inspect ask."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

from neural_sim.clips.array_errors import NPY_ERRORS
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.clips.frame_work import over_frames
from neural_sim.errors import InputError
from neural_sim.frames import wrap_angle
from neural_sim.trajectory import Trajectory

HISTORY_S = 1.6
HORIZON_S = 6.4
MAX_SPEED_MPS = 60.0
MAX_JUMP_M = 5.0
# A car turns on a circle of at least 3.3 m at its rear axle.
MAX_CURVATURE = 0.3
CURVATURE_WINDOW_M = 3.0
# Poses farther apart than this are none, and the speed limit says so.
LONGEST_DRIVE_M = 1e7
# Pose logs repeat samples microseconds apart; their noise over such a step is not a speed.
SHORTEST_STEP_S = 0.02


def check_clip(clip: Clip, *, decode_images: bool) -> list[str]:
    """One line per problem found; empty when the clip is sound.

    Looks for missing, truncated or wrongly sized images (every one is decoded if `decode_images`, else only the file
    headers are read), frame times that do not increase or lie outside the ego poses, a clip too short for one training
    example, ego or actor poses that move faster than 60 m/s or jump by more than 5 m, and an ego that turns tighter
    than a car can. A clip without cameras is sound: it cannot be reconstructed, but it can be driven in without images.
    """
    problems = [problem for frames in clip.cameras.values() for problem in _image_problems(frames, decode_images)]
    return problems + _problems_beside_images(clip)


def require_sound(clip: Clip) -> None:
    """Raise `InputError` with the first problem of `check_clip` and the number of others; image files are not read."""
    problems = _problems_beside_images(clip)
    if problems:
        others = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise InputError(f"clip {clip.clip_id}: {problems[0]}{others}")


def require_duration(clip: Clip, history_s: float = HISTORY_S, horizon_s: float = HORIZON_S) -> None:
    """Raise `InputError` when the ego poses span less than `history_s + horizon_s`, the length of one example."""
    problems = _duration_problems(clip, history_s, horizon_s)
    if problems:
        raise InputError(f"clip {clip.clip_id}: {problems[0]}")


def _problems_beside_images(clip: Clip) -> list[str]:
    problems = [problem for frames in clip.cameras.values() for problem in _time_problems(frames, clip)]
    problems += _motion_problems(clip.ego, "ego")
    problems += _curvature_problems(clip.ego)
    problems += _track_problems(clip)
    problems += _lidar_problems(clip)
    return problems + _duration_problems(clip, HISTORY_S, HORIZON_S)


def _duration_problems(clip: Clip, history_s: float, horizon_s: float) -> list[str]:
    required_s = history_s + horizon_s
    if clip.duration_s >= required_s:
        return []
    return [
        f"{clip.duration_s:.2f} s long, but {required_s:.2f} s are required ({history_s} s history and {horizon_s} s "
        "plan); ingest a longer range"
    ]


def _time_problems(frames: CameraFrames, clip: Clip) -> Iterator[str]:
    name, t_us = frames.camera.name, frames.t_us
    if len(t_us) == 0 or len(t_us) != len(frames.paths):
        yield f"camera {name}: {len(t_us)} frame times for {len(frames.paths)} images; ingest again"
        return
    backwards = np.flatnonzero(np.diff(t_us) <= 0)
    if backwards.size:
        i = int(backwards[0])
        yield (
            f"camera {name}: frame times must increase, but frame {i + 1} ({t_us[i + 1]} us) does not come after "
            f"frame {i} ({t_us[i]} us); mend the timestamps"
        )
    outside = np.flatnonzero((t_us < clip.ego.start_us) | (t_us > clip.ego.end_us))
    if outside.size:
        yield (
            f"camera {name}: {outside.size} of {len(t_us)} frames lie outside the ego poses, first frame {outside[0]} "
            f"at {t_us[outside[0]]} us (poses: {clip.ego.start_us} to {clip.ego.end_us} us); choose a range with poses"
        )


def _image_problems(frames: CameraFrames, decode: bool) -> Iterator[str]:
    check: Callable[[int], None] = frames.verify if decode else frames.check_header

    def problem_of(index: int) -> str:
        try:
            check(index)
        except InputError as error:
            return str(error)
        return ""

    yield from filter(None, over_frames(problem_of, len(frames.paths)))


def _motion_problems(trajectory: Trajectory, who: str) -> Iterator[str]:
    """Speed above `MAX_SPEED_MPS`, or a step that leaves what its neighbours foretell by `MAX_JUMP_M`."""
    step_s = np.diff(trajectory.t_us) * 1e-6
    moved_m = np.diff(trajectory.T_world_rig[:, :3, 3], axis=0)
    velocity_mps = moved_m / np.maximum(step_s, SHORTEST_STEP_S)[:, None]
    speed_mps = np.linalg.norm(velocity_mps, axis=1)
    surprise_m = _velocity_change(velocity_mps) * step_s
    for values, limit, text in (
        (speed_mps, MAX_SPEED_MPS, "moves at {:.1f} m/s (limit {:.0f} m/s)"),
        (surprise_m, MAX_JUMP_M, "jumps by {:.1f} m off its course (limit {:.0f} m)"),
    ):
        bad = np.flatnonzero(values > limit)
        if bad.size:
            i = int(bad[0])
            between = f"between {trajectory.t_us[i]} and {trajectory.t_us[i + 1]} us"
            yield f"{who}: {text.format(values[i], limit)} {between}, {bad.size} such steps; mend or cut the poses"


def _curvature_problems(ego: Trajectory) -> Iterator[str]:
    """Headings that turn tighter than any car can, against the path driven over `CURVATURE_WINDOW_M`."""
    distance_m = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(ego.planar[:, :2], axis=0), axis=1))])
    if not 2 * CURVATURE_WINDOW_M <= distance_m[-1] < LONGEST_DRIVE_M:
        return
    marks_m = np.arange(0.0, distance_m[-1], CURVATURE_WINDOW_M)
    at = np.searchsorted(distance_m, marks_m)
    curvature = np.abs(wrap_angle(np.diff(ego.planar[at, 2]))) / np.maximum(np.diff(distance_m[at]), CURVATURE_WINDOW_M)
    bad = np.flatnonzero(curvature > MAX_CURVATURE)
    if bad.size:
        yield (
            f"ego: turns with {curvature[bad[0]]:.2f} per m (limit {MAX_CURVATURE} per m, a radius of "
            f"{1 / MAX_CURVATURE:.1f} m) after {ego.t_us[at[bad[0]]]} us, {bad.size} such places; are heading and path "
            "in the same axes?"
        )


def _velocity_change(velocity_mps: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """Difference of each step's velocity from the more similar one of its neighbours, m/s; 0 for a single step."""
    if len(velocity_mps) < 2:
        return np.zeros(len(velocity_mps))
    change = np.linalg.norm(np.diff(velocity_mps, axis=0), axis=1)
    before, after = np.concatenate([[np.inf], change]), np.concatenate([change, [np.inf]])
    return np.minimum(before, after)


def _track_problems(clip: Clip) -> Iterator[str]:
    ids = [track.track_id for track in clip.tracks]
    for repeated in sorted({track_id for track_id in ids if ids.count(track_id) > 1}):
        yield f"track {repeated!r}: the id is used by several tracks; give every road user its own"
    for track in clip.tracks:
        if not min(track.size_m) > 0:
            yield f"track {track.track_id!r}: box size {track.size_m} m must be positive; mend the annotation"
        yield from _motion_problems(track.trajectory, f"track {track.track_id!r}")


def _lidar_problems(clip: Clip) -> Iterator[str]:
    for t_us, path in clip.lidar_paths.items():
        try:
            sweep = np.load(path, mmap_mode="r", allow_pickle=False)
        except NPY_ERRORS as error:
            yield f"lidar sweep at {t_us} us ({path}): not a readable .npy file ({error}); restore it"
            continue
        if sweep.ndim != 2 or sweep.shape[1] != 4 or sweep.dtype != np.float32:
            yield f"lidar sweep at {t_us} us ({path}): {sweep.dtype} {list(sweep.shape)}, expected float32 [N, 4]"
