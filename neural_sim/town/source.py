"""The town as a dataset: a clip made from its expert drive, with images, tracks, map and navigation."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from neural_sim.artifacts import work_folder
from neural_sim.cameras import Camera
from neural_sim.clips.check import require_sound
from neural_sim.clips.clip import CameraFrames, Clip, NavigationStep, navigation_at
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.storage import read_clip, write_clip
from neural_sim.errors import InputError
from neural_sim.progress import Progress
from neural_sim.road_users import Track
from neural_sim.town.config import STREET_KINDS, TownConfig
from neural_sim.town.town import TOWN_VERSION, Town, build_town
from neural_sim.trajectory import Trajectory


def ingest_town(options: IngestOptions, out: Path) -> Clip:
    """Drive through the town of `options.seed`, write the clip folder `out` and return the clip as read back.

    Defaults: 20 s at 10 Hz, both cameras at 320x192 times `options.scale`, lidar at 2 Hz. `clip.source` holds the
    settings of the town, from which `town_from_source` rebuilds the true world. `options.sequence` may name the kind of
    street. Raises `InputError` when told a folder, or another sequence.
    """
    config = town_config(options)
    town = build_town(config)
    start_us = round(options.start_s * 1e6)
    with work_folder(out) as work:
        clip = render_clip(town, start_us, work, out.name)
        require_sound(clip)
        write_clip(clip, out, work)
    return read_clip(out)


def town_config(options: IngestOptions) -> TownConfig:
    """The town that `options` ask for. Raises `InputError` on an option the town does not have."""
    street = next((kind for kind in STREET_KINDS if kind == options.sequence), None)
    if options.root is not None or (options.sequence and street is None):
        raise InputError(
            f"the town is generated, but root is {options.root} and sequence is {options.sequence!r}; leave the root "
            "out, choose the drive with --seed, and with --sequence at most the kind of street: "
            + ", ".join(STREET_KINDS)
        )
    default = TownConfig()
    duration_s = default.duration_s if options.duration_s is None else options.duration_s
    return replace(
        default,
        seed=options.seed,
        street=street,
        duration_s=options.start_s + duration_s,
        rate_hz=default.rate_hz if options.rate_hz is None else options.rate_hz,
        image_width_px=round(default.image_width_px * options.scale),
        image_height_px=round(default.image_height_px * options.scale),
        cameras=options.cameras or default.cameras,
    )


def render_clip(town: Town, start_us: int, folder: Path, clip_id: str) -> Clip:
    """Render the drive from `start_us` to its end; images go to `folder`, as PNG."""
    t_us = _times(town.config, start_us, town.config.rate_hz)
    cameras = {name: _render_frames(town, camera, t_us, folder / name) for name, camera in town.cameras.items()}
    return Clip(
        clip_id=clip_id,
        source={
            "dataset": "town",
            "town_version": TOWN_VERSION,
            "start_us": start_us,
            "town": town.config.to_json(),
        },
        cameras=cameras,
        ego=_since(town.expert, start_us),
        ego_vehicle=town.ego_vehicle,
        tracks=_tracks_since(town.tracks, start_us),
        road_map=town.road_map,
        navigation=_navigation_since(town.navigation, start_us),
        lidar_paths=_scan_sweeps(town, start_us, folder / "lidar"),
    )


def _times(config: TownConfig, start_us: int, rate_hz: float) -> Int[np.ndarray, "n"]:
    """Times from `start_us` to the end of the drive, both ends included, us."""
    count = math.floor((config.duration_s - start_us * 1e-6) * rate_hz + 1e-6) + 1
    return start_us + np.round(np.arange(count) * 1e6 / rate_hz).astype(np.int64)


def _scan_sweeps(town: Town, start_us: int, folder: Path) -> dict[int, Path]:
    """Lidar sweeps by time; none where the town has no lidar."""
    if not town.config.lidar_rate_hz:
        return {}
    folder.mkdir(parents=True)
    paths = {}
    for t_us in _times(town.config, start_us, town.config.lidar_rate_hz).tolist():
        paths[t_us] = folder / f"{t_us}.npy"
        np.save(paths[t_us], town.scan(t_us), allow_pickle=False)
    return paths


def _render_frames(town: Town, camera: Camera, t_us: Int[np.ndarray, "n"], folder: Path) -> CameraFrames:
    folder.mkdir(parents=True)
    paths = []
    with Progress(f"rendering {camera.name}", len(t_us), "frames") as progress:
        for time_us in t_us.tolist():
            image = town.renderer.render([town.request(camera, time_us)])[0]
            paths.append(folder / f"{time_us}.png")
            pixels = np.round(image.rgb * 255).astype(np.uint8)
            Image.fromarray(pixels).save(paths[-1], compress_level=3)
            progress.advance()
    return CameraFrames(camera, t_us, tuple(paths))


def _since(trajectory: Trajectory, start_us: int) -> Trajectory:
    """The trajectory from `start_us` on, beginning exactly there."""
    later = trajectory.t_us > start_us
    t_us = np.append(start_us, trajectory.t_us[later])
    return Trajectory(t_us, np.concatenate([trajectory.poses_at(np.array([start_us])), trajectory.T_world_rig[later]]))


def _tracks_since(tracks: tuple[Track, ...], start_us: int) -> tuple[Track, ...]:
    """What is left of each track; those that have ended before are left out."""
    return tuple(
        replace(track, trajectory=_since(track.trajectory, start_us))
        for track in tracks
        if track.trajectory.end_us > start_us
    )


def _navigation_since(steps: tuple[NavigationStep, ...], start_us: int) -> tuple[NavigationStep, ...]:
    """The instruction that holds at `start_us`, then the later ones."""
    later = tuple(step for step in steps if step.start_us > start_us)
    return (NavigationStep(start_us, navigation_at(steps, start_us)), *later)
