"""The last steps that all readers share: time range, local world, smoothing on request, checks, resizing, writing."""

import logging
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from neural_sim.artifacts import work_folder
from neural_sim.clips.check import require_sound
from neural_sim.clips.clip import Clip
from neural_sim.clips.ego_smoothing import smooth_ego
from neural_sim.clips.frame_selection import resize_frames, select_frames
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.storage import read_clip, write_clip
from neural_sim.errors import InputError
from neural_sim.maps.moving import shifted_map
from neural_sim.maps.opendrive import read_opendrive
from neural_sim.road_users import Track
from neural_sim.trajectory import Trajectory

logger = logging.getLogger("roadloop")


def finish_clip(clip: Clip, options: IngestOptions, out: Path, own: Path | None = None) -> Clip:
    """Add a map and smooth the ego poses if asked, check the clip, resize, write and read back.

    Image files are checked as they are written (`CameraFrames.read_file`), those below `own` (`work_folder`) moved.
    Raises `InputError` with the first problem found; nothing is left at `out` then.
    """
    if options.map is not None:
        clip = _with_map(clip, options.map)
    if options.smooth_ego_s is not None:
        clip, change = smooth_ego(clip, options.smooth_ego_s)
        logger.info("ingest: %s: %s", clip.clip_id, change)
    require_sound(clip)
    if options.scale == 1.0 or not clip.cameras:
        return _written(clip, out, own)
    with ExitStack() as stack:
        own = stack.enter_context(work_folder(out)) if own is None else own
        folder = own / "resized"
        cameras = {name: resize_frames(frames, options.scale, folder / name) for name, frames in clip.cameras.items()}
        return _written(replace(clip, cameras=cameras), out, own)


def _with_map(clip: Clip, path: Path) -> Clip:
    """The clip with the OpenDRIVE map at `path`, moved from the dataset's world to the clip's."""
    origin_m = np.array(clip.source.get("world_origin_m", (0.0, 0.0, 0.0)))
    road_map = shifted_map(read_opendrive(path), -origin_m)
    return replace(clip, road_map=road_map, source={**clip.source, "map": path.name})


def _written(clip: Clip, out: Path, own: Path | None) -> Clip:
    """The clip as read back from `out`, which is not left there when it does not read."""
    write_clip(clip, out, own)
    try:
        return read_clip(out)
    except InputError:
        shutil.rmtree(out)
        raise


def refuse_camera_options(options: IngestOptions, what: str) -> None:
    """Raise `InputError` when options about images are given for `what`, a dataset without any."""
    for name in ("cameras", "rate_hz"):
        if getattr(options, name):
            raise InputError(f"{what} has no images, so {name} does not apply; leave it out")
    if options.scale != 1.0:
        raise InputError(f"{what} has no images, so scale does not apply; leave it out")


def select_poses(ego: Trajectory, options: IngestOptions, where: str) -> Trajectory:
    """The part of the ego poses in the asked range, for drives without images."""
    kept = select_frames(ego.t_us, replace(options, rate_hz=None), where)
    return Trajectory(ego.t_us[kept], ego.T_world_rig[kept])


def cover(ego: Trajectory, start_us: int, end_us: int) -> Trajectory:
    """The poses from the last one at or before `start_us` to the first one at or after `end_us`, us."""
    first = max(int(np.searchsorted(ego.t_us, start_us, side="right")) - 1, 0)
    last = int(np.searchsorted(ego.t_us, end_us, side="left")) + 1
    return Trajectory(ego.t_us[first:last], ego.T_world_rig[first:last])


def crop_tracks(tracks: Iterable[Track], ego: Trajectory) -> tuple[Track, ...]:
    """The tracks while the ego poses last; those without a pose then are left out."""
    cropped = []
    for track in tracks:
        t_us = track.trajectory.t_us
        inside = (t_us >= ego.start_us) & (t_us <= ego.end_us)
        if inside.any():
            trajectory = Trajectory(t_us[inside], track.trajectory.T_world_rig[inside])
            cropped.append(replace(track, trajectory=trajectory))
    return tuple(cropped)


def with_local_world(clip: Clip) -> Clip:
    """Move the world origin to the first ego position, in whole metres, and note it as `source.world_origin_m`.

    Datasets give positions kilometres from their origin, which float32 and float16 cannot carry. Axes stay.
    """
    origin_m = np.floor(clip.ego.T_world_rig[0, :3, 3])
    return replace(
        clip,
        source={**clip.source, "world_origin_m": origin_m.tolist()},
        ego=_shifted(clip.ego, origin_m),
        tracks=tuple(replace(track, trajectory=_shifted(track.trajectory, origin_m)) for track in clip.tracks),
        road_map=None if clip.road_map is None else shifted_map(clip.road_map, -origin_m),
    )


def trajectory_from_poses(t_us: Int[np.ndarray, "n"], poses: Float[np.ndarray, "n 4 4"], where: str) -> Trajectory:
    """`Trajectory`, its errors led by `where`. Raises `InputError` also on rotations that are none."""
    rotation = poses[:, :3, :3]
    error = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max(axis=(1, 2))
    bad = np.flatnonzero(~(error < 1e-3) | ~(np.linalg.det(np.nan_to_num(rotation)) > 0))
    if bad.size:
        raise InputError(f"{where}: pose {int(bad[0])} has no valid rotation; restore the file")
    try:
        return Trajectory(t_us, poses)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _shifted(trajectory: Trajectory, origin_m: Float[np.ndarray, "3"]) -> Trajectory:
    poses = trajectory.T_world_rig.copy()
    poses[:, :3, 3] -= origin_m
    return Trajectory(trajectory.t_us, poses)
