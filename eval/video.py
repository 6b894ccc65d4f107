"""MP4 files, and the video of one rollout."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float, Int, UInt8

from eval.aggregate import kept_steps
from eval.context import box_center_planar
from eval.drawing import BirdsEyeContent, Caption, compose_frame, draw_birds_eye
from eval.protocol import EvaluationProtocol
from eval.results import RolloutScore
from eval.scorers import score_rollout
from neural_sim.artifacts import atomic_file
from neural_sim.errors import InputError
from neural_sim.frames import planar_to_world
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.record import RolloutRecord
from neural_sim.trajectory import Trajectory

_CRF = "26"
# One thread, and no macroblock tree: its lookahead makes the same frames come out different from run to run.
_X264_PARAMS = "threads=1:mbtree=0"
_FLAGS = (
    ("collision_front", "COLLISION FRONT"),
    ("collision_lateral", "COLLISION SIDE"),
    ("collision_rear", "COLLISION REAR"),
    ("offroad", "OFF-ROAD"),
)


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float) -> int:
    """Encode frames as H.264 in MP4, playable while it loads; returns their number.

    One encoder thread and no wall-clock metadata: the same frames give the same file. Odd sizes are padded by one
    repeated row or column. Raises `InputError` when there is no frame or a frame changes the size.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise InputError(f"{path}: a video needs at least one frame, found none")
    with atomic_file(path) as partial:
        return _encode(partial, path, chain([first], frames), first.shape, fps)


def render_rollout_video(
    record: RolloutRecord,
    scene: Scene,
    frames: Sequence[UInt8[np.ndarray, "h w 3"]] | UInt8[np.ndarray, "t h w 3"] | None,
    path: Path,
    *,
    policy: str = "",
    score: RolloutScore | None = None,
    protocol: EvaluationProtocol | None = None,
    candidates: Float[np.ndarray, "t k 64 3"] | None = None,
    window_us: tuple[int, int] | None = None,
) -> int:
    """Write the video of one rollout: camera, bird's-eye view, numbers and incidents; returns the number of frames.

    `frames`: one camera image per step of the record, or None for the bird's-eye view alone. `score`: from
    `score_rollout`, computed here when absent. `candidates`: sampled plans, rig frame, m and rad; NaN where there are
    none. `window_us`: first and last time to show, all when absent. Plays in real time.
    Raises `InputError` when the number of frames is not that of the steps.
    """
    if frames is not None and len(frames) != len(record.t_us):
        raise InputError(
            f"{path}: {len(frames)} camera frames for {len(record.t_us)} steps; expected one frame per step"
        )
    protocol = protocol or EvaluationProtocol()
    score = score or score_rollout(record, scene, protocol, policy=policy)
    step_us = float(np.median(np.diff(record.t_us))) if len(record.t_us) > 1 else 100_000.0
    first_us, last_us = window_us or (int(record.t_us[0]), int(record.t_us[-1]))
    shown = np.flatnonzero((record.t_us >= first_us) & (record.t_us <= last_us))
    drawing = _RolloutDrawing(record, scene, score, protocol, candidates)
    return write_video(path, drawing.frames(frames, shown), 1e6 / step_us)


@dataclass(frozen=True)
class _RolloutDrawing:
    """One rollout about to be drawn step by step."""

    record: RolloutRecord
    scene: Scene
    score: RolloutScore
    protocol: EvaluationProtocol
    candidates: Float[np.ndarray, "t k 64 3"] | None

    @cached_property
    def rig_planar(self) -> Float[np.ndarray, "t 3"]:
        """Driven rig poses (x, y, yaw), world frame, m and rad."""
        return Trajectory(self.record.t_us, self.record.T_world_rig).planar

    @cached_property
    def expert_path_m(self) -> Float[np.ndarray, "m 2"]:
        """Recorded path of the box centre, world frame, m."""
        return box_center_planar(self.scene.expert.planar, self.scene.ego_vehicle.center_x_m)[:, :2]

    @cached_property
    def actor_sizes_m(self) -> Float[np.ndarray, "n 2"]:
        """Length and width of each actor of the record, m."""
        sizes = {track.track_id: track.size_m[:2] for track in self.scene.tracks}
        return np.array([sizes[actor_id] for actor_id in self.record.actor_ids]).reshape(-1, 2)

    def frames(
        self, images: Sequence[np.ndarray] | np.ndarray | None, shown: Int[np.ndarray, "n"]
    ) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """The frames of the video at the steps `shown`."""
        keep, _ = kept_steps(self.score, self.protocol)
        size_px = (320, 360) if images is not None else (640, 360)
        for step in shown.tolist():
            birds_eye = draw_birds_eye(self.content(step), self.scene.road_map, *size_px)
            image = None if images is None else np.asarray(images[step])
            yield compose_frame(image, birds_eye, _caption(self.score, step, bool(keep[step])))

    def content(self, step: int) -> BirdsEyeContent:
        """What the bird's-eye view shows at `step`."""
        vehicle, plan = self.scene.ego_vehicle, self.record.plans[step]
        return BirdsEyeContent(
            ego_planar=self.score.ego_planar[step],
            ego_size_m=(vehicle.length_m, vehicle.width_m),
            expert_xy=self.expert_path_m,
            driven_xy=self.score.ego_planar[: step + 1, :2],
            plan_xy=self._planned_centers(plan, step) if np.isfinite(plan).all() else None,
            candidates_xy=self._candidates_xy(step),
            expert_planar=self.score.expert_planar[step],
            actor_planar=self.record.actor_planar[step],
            actor_sizes_m=self.actor_sizes_m,
            in_contact=bool(self.score.series["offroad_or_collision"].values[step] > 0),
        )

    def _candidates_xy(self, step: int) -> Float[np.ndarray, "k 64 2"] | None:
        if self.candidates is None or not np.isfinite(self.candidates[step]).all():
            return None
        return self._planned_centers(self.candidates[step], step)

    def _planned_centers(self, plan: Float[np.ndarray, "*k 64 3"], step: int) -> Float[np.ndarray, "*k 64 2"]:
        world = planar_to_world(plan.astype(float), self.rig_planar[step])
        flat = box_center_planar(world.reshape(-1, 3), self.scene.ego_vehicle.center_x_m)
        return flat[:, :2].reshape(*plan.shape[:-1], 2)


def _caption(score: RolloutScore, step: int, is_counted: bool) -> Caption:
    series = score.series
    is_evaluated = not score.is_warmup[step]
    notes = ["warm-up"] if not is_evaluated else []
    if is_evaluated and not is_counted:
        notes.append("not counted")
    if score.map_source == "derived":
        notes.append("derived corridor")
    return Caption(
        title=f"{score.policy} · {score.scene_id} · rollout {score.rollout_index}".lstrip(" ·"),
        lines=(
            ("time", f"{(score.t_us[step] - score.t_us[0]) * 1e-6:.1f} s"),
            ("speed", f"{series['speed_mps'].values[step] * 3.6:.0f} km/h"),
            ("expert speed", f"{series['expert_speed_mps'].values[step] * 3.6:.0f} km/h"),
            ("to expert path", f"{series['dist_to_gt_trajectory'].values[step]:.2f} m"),
            ("driven", f"{series['dist_traveled_m'].values[step]:.0f} m"),
        ),
        flags=tuple(text for name, text in _FLAGS if series[name].values[step] > 0),
        notes=tuple(notes),
    )


def _encode(
    partial: Path, path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], shape: tuple[int, ...], fps: float
) -> int:
    height_px, width_px = shape[0], shape[1]
    count = 0
    with av.open(
        str(partial), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}
    ) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = width_px + width_px % 2, height_px + height_px % 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": _CRF, "preset": "veryfast", "threads": "1", "x264-params": _X264_PARAMS}
        for frame in frames:
            if frame.shape != shape:
                raise InputError(f"{path}: frame {count} has shape {frame.shape}, the first one {shape}; use one size")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_even(frame), format="rgb24")))
            count += 1
        container.mux(stream.encode())
    return count


def _even(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    padded = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded)
