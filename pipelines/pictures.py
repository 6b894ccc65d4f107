"""The pictures that `roadloop inspect` draws of clips and scenes: a contact sheet and the drive from above."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from neural_sim.artifacts import atomic_file
from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames, Clip
from neural_sim.clips.storage import read_clip
from neural_sim.drawing.birds_eye import draw_drive
from neural_sim.drawing.contact_sheet import SheetRow, draw_contact_sheet
from neural_sim.drawing.overlay import draw_overlay
from neural_sim.errors import InputError
from neural_sim.rendering.splat_renderer import SplatRenderer
from neural_sim.scenes.recorded_views import recorded_request
from neural_sim.scenes.scene import Scene
from neural_sim.scenes.storage import read_scene

SHEET, BIRDS_EYE = "contact_sheet.jpg", "birds_eye.png"
_COLUMNS = 5
_LONGEST_SIDE_PX = 640
_JPEG_QUALITY = 90


def draw_pictures(path: Path, folder: Path | None = None) -> list[Path]:
    """Draw the clip folder or scene file at `path` and return the pictures written.

    They lie in `folder`, by default inside a clip and beside a scene, the latter with its name before theirs. The
    contact sheet has five moments of every camera with road users and lanes drawn in: recorded images of a clip,
    rendered ones of a scene. A clip without images, or a scene without Gaussians, has the drive from above only.

    Raises `InputError` when the clip or scene does not read or the folder cannot be written.
    """
    if path.is_dir():
        clip = read_clip(path)
        rows, view = clip_rows(clip), draw_drive(clip.ego, clip.ego_vehicle, clip.tracks, clip.road_map)
        target, prefix = folder or path, ""
    else:
        scene = read_scene(path)
        rows, view = scene_rows(scene), draw_drive(scene.expert, scene.ego_vehicle, scene.tracks, scene.road_map)
        target, prefix = folder or path.parent, f"{path.stem}."
    written = [save_picture(view, target / f"{prefix}{BIRDS_EYE}")]
    if rows:
        written.append(save_picture(draw_contact_sheet(rows), target / f"{prefix}{SHEET}"))
    return written


def clip_rows(clip: Clip) -> list[SheetRow]:
    """One row a camera: recorded images over the drive with the clip's own boxes and lanes drawn in."""
    return [_clip_row(clip, frames) for frames in clip.cameras.values()]


def scene_rows(scene: Scene) -> list[SheetRow]:
    """One row a camera: renderings at recorded poses; empty without Gaussians."""
    if len(scene.background) + len(scene.road) == 0:
        return []
    renderer = SplatRenderer(scene)
    return [_scene_row(scene, camera, renderer) for camera in scene.cameras.values()]


def _clip_row(clip: Clip, frames: CameraFrames) -> SheetRow:
    images = []
    indices = spread(len(frames.t_us))
    camera = small_camera(frames.camera)
    for index in indices:
        t_us = int(frames.t_us[index])
        pixels = Image.fromarray(frames.load(int(index))).resize((camera.width_px, camera.height_px))
        pose = clip.ego.poses_at(np.array([t_us]))[0]
        images.append(draw_overlay(np.asarray(pixels), camera, pose, t_us, clip.tracks, clip.road_map))
    title = f"{clip.clip_id}: {frames.camera.name}, {frames.camera.width_px}x{frames.camera.height_px}"
    return SheetRow(title, images, _captions(frames.t_us[indices], clip.ego.start_us))


def _scene_row(scene: Scene, camera: Camera, renderer: SplatRenderer) -> SheetRow:
    recorded_us = scene.camera_times_us[camera.name]
    recorded_us = recorded_us if len(recorded_us) else scene.expert.t_us
    times_us = recorded_us[spread(len(recorded_us))]
    small = small_camera(camera)
    requests = [recorded_request(scene, small, int(t_us)) for t_us in times_us]
    images = []
    for t_us, rendered in zip(times_us, renderer.render(requests), strict=True):
        pose = scene.expert.poses_at(np.array([t_us]))[0]
        pixels = np.round(rendered.rgb * 255).astype(np.uint8)
        images.append(draw_overlay(pixels, small, pose, int(t_us), scene.tracks, scene.road_map))
    title = f"{scene.scene_id}: {camera.name}, rendered"
    return SheetRow(title, images, _captions(times_us, scene.expert.start_us))


def small_camera(camera: Camera) -> Camera:
    """The camera with its longest side at most `_LONGEST_SIDE_PX`."""
    scale = min(1.0, _LONGEST_SIDE_PX / max(camera.width_px, camera.height_px))
    return camera.resized(max(1, round(camera.width_px * scale)), max(1, round(camera.height_px * scale)))


def spread(count: int) -> Int[np.ndarray, "c"]:
    """Up to `_COLUMNS` indices over `count` frames, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(_COLUMNS, count)).round().astype(int))


def _captions(t_us: Sequence[int] | Int[np.ndarray, "c"], start_us: int) -> list[str]:
    return [f"{(int(t) - start_us) * 1e-6:.2f} s" for t in t_us]


def save_picture(picture: UInt8[np.ndarray, "h w 3"], path: Path) -> Path:
    """Write a picture as PNG or JPEG and return `path`. Raises `InputError` when it cannot be written."""
    try:
        with atomic_file(path) as partial:
            form = "JPEG" if path.suffix == ".jpg" else "PNG"
            Image.fromarray(picture).save(partial, form, quality=_JPEG_QUALITY)
    except OSError as error:
        raise InputError(f"{path}: the picture cannot be written ({error}); choose a folder with --pictures") from error
    return path
