"""What is in a clip, for `roadloop inspect`."""

from collections import Counter
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Int

from neural_sim.clips.check import HISTORY_S, HORIZON_S, check_clip
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.clips.storage import read_clip
from neural_sim.clips.time_offset import estimate_time_offset
from neural_sim.errors import InputError
from neural_sim.road_map import RoadMap
from neural_sim.road_users import Track
from neural_sim.trajectory import Trajectory

# Yaw rates of images and poses that agree less say nothing about their clocks.
CLEAR_CORRELATION = 0.8
# A step this many times the median one is a gap in the recording.
LONG_STEP = 1.5


def describe_clip(folder: Path) -> tuple[list[str], list[str]]:
    """Facts about the clip at `folder` and the problems found; every image is decoded.

    A clip that cannot be read has its name as the only fact and one problem.
    """
    try:
        clip = read_clip(folder)
    except InputError as error:
        return [f"clip {folder.name}, not readable"], [str(error)]
    return _facts(clip), check_clip(clip, decode_images=True)


def describe_drive(ego: Trajectory) -> str:
    """Duration, path length and speed range of the recorded drive, one line."""
    speed_mps = ego.speed_mps_at(ego.t_us)
    return (
        f"drive: {(ego.end_us - ego.start_us) * 1e-6:.2f} s, {ego.path_length_m:.1f} m, "
        f"{speed_mps.min():.1f} to {speed_mps.max():.1f} m/s, {len(ego.t_us)} poses{describe_gaps(ego.t_us)}"
    )


def describe_gaps(t_us: Int[np.ndarray, "n"]) -> str:
    """Steps longer than half as much again as the median one, for the end of a line; empty without any."""
    steps_us = np.diff(t_us)
    gaps_us = steps_us[steps_us > LONG_STEP * np.median(steps_us)] if len(steps_us) else steps_us
    return f", {len(gaps_us)} gaps up to {gaps_us.max() * 1e-6:.2f} s" if len(gaps_us) else ""


def describe_tracks(tracks: tuple[Track, ...]) -> str:
    """How many road users of each category, and how many move, one line."""
    counts = Counter(track.category for track in tracks)
    by_category = ", ".join(f"{count} {category}" for category, count in sorted(counts.items())) or "none"
    return f"road users: {by_category}; {sum(track.is_moving() for track in tracks)} moving"


def describe_map(road_map: RoadMap | None) -> str:
    """Source and size of the map, one line."""
    if road_map is None:
        return "map: none"
    return (
        f"map: {road_map.source}, {len(road_map.lanes)} lanes, {len(road_map.road_edges_m)} road edges, "
        f"{shapely.area(road_map.drivable):.0f} m2 drivable"
    )


def _facts(clip: Clip) -> list[str]:
    source = ", ".join(f"{key} {value}" for key, value in clip.source.items() if isinstance(value, str | int | float))
    return [
        f"clip {clip.clip_id}",
        f"source: {source}",
        describe_drive(clip.ego),
        *(_camera_fact(frames) for frames in clip.cameras.values()),
        *_clock_facts(clip),
        *([] if clip.cameras else ["cameras: none"]),
        describe_tracks(clip.tracks),
        describe_map(clip.road_map),
        f"lidar sweeps: {len(clip.lidar_paths)}; navigation steps: {len(clip.navigation)}",
        *(f"note: {note}" for note in clip.source.get("notes", ())),
        *_stage_facts(clip),
    ]


def describe_driving(tracks: tuple[Track, ...], road_map: RoadMap | None) -> str:
    """What closed-loop metrics have to do without, one line; empty when they have all they use."""
    missing = []
    if road_map is None or road_map.source != "recorded":
        missing.append("no recorded map, so off-road is judged against a corridor around the drive")
    if not tracks:
        missing.append("no road users, so there is nobody to collide with")
    return "; ".join(missing)


def _stage_facts(clip: Clip) -> list[str]:
    """What stands between the clip and each stage that takes one."""
    if not clip.cameras:
        reconstruct = pretrain = "needs images, and the clip has none"
    else:
        enough = clip.duration_s >= HISTORY_S + HORIZON_S
        reconstruct = "ready"
        pretrain = "ready" if enough else f"needs {HISTORY_S + HORIZON_S:.1f} s, the clip has {clip.duration_s:.1f} s"
    driving = describe_driving(clip.tracks, clip.road_map)
    return [
        f"for reconstruct: {reconstruct}",
        f"for pretrain: {pretrain}",
        *([f"for evaluate: {driving}"] if driving else []),
    ]


def _camera_fact(frames: CameraFrames) -> str:
    camera = frames.camera
    spacing_s = float(np.median(np.diff(frames.t_us))) * 1e-6 if len(frames.t_us) > 1 else float("nan")
    edges, _ = camera.unproject(np.array([[0.0, camera.cy_px], [camera.width_px, camera.cy_px]]))
    field_of_view = np.degrees(np.arctan2(np.abs(edges[:, 0]), edges[:, 2]).sum())
    lens = "" if camera.distortion is None else f" ({camera.model} lens)"
    return (
        f"camera {camera.name}: {len(frames.t_us)} frames, {camera.width_px}x{camera.height_px}, "
        f"{1 / spacing_s:.2f} Hz, {field_of_view:.0f} degrees wide{lens}{describe_gaps(frames.t_us)}"
    )


def _clock_facts(clip: Clip) -> list[str]:
    """Time offset between the first camera and the poses, where turns show it clearly."""
    for name, frames in list(clip.cameras.items())[:1]:
        try:
            found = estimate_time_offset(frames, clip.ego)
        except InputError:
            return []
        if found is not None and found.correlation > CLEAR_CORRELATION:
            return [
                f"clock of {name}: {found.offset_us / 1000:+.0f} ms to the poses (correlation {found.correlation:.2f})"
            ]
    return []
