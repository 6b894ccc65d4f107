"""What `roadloop inspect SCENE --render` makes: a video and a contact sheet of a scene beside its recording."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw

from eval.video import write_video
from neural_sim.cameras import Camera
from neural_sim.clips.clip import CameraFrames
from neural_sim.clips.storage import read_clip
from neural_sim.drawing.contact_sheet import SheetRow, draw_contact_sheet
from neural_sim.drawing.top_view import Color, caption_font
from neural_sim.errors import InputError
from neural_sim.progress import Progress
from neural_sim.reconstruction.off_log import held_out_indices, shifted_request
from neural_sim.rendering.renderer import Renderer
from neural_sim.rendering.splat_renderer import SplatRenderer
from neural_sim.scenes.recorded_views import recorded_request
from neural_sim.scenes.scene import Scene
from neural_sim.scenes.storage import read_scene
from pipelines.pictures import save_picture, small_camera, spread

_RATE_HZ = 10.0
_VIDEO_SHIFTS_M = (2.0, -2.0)
_SHEET_SHIFTS_M = (1.0, -1.0, 2.0, -2.0, 4.0, -4.0)
_HELD_OUT_COLOR: Color = (240, 176, 48)
_TEXT_COLOR: Color = (245, 245, 243)
_PANEL_COLOR: Color = (24, 27, 31)
_CAPTION_PX = 18


@dataclass(frozen=True)
class _Shown:
    """One camera of a scene and what is shown of it.

    Attributes:
        scene, renderer: what is drawn.
        camera: at the size of the pictures.
        recorded_us: int64 [N] times of its recorded frames.
        frames: the recorded images, where the clip is at hand.
        held_out: indices of the frames that were only measured.
    """

    scene: Scene
    renderer: Renderer
    camera: Camera
    recorded_us: Int[np.ndarray, "n"]
    frames: CameraFrames | None
    held_out: frozenset[int]

    def nearest(self, t_us: int) -> int:
        """Index of the recorded frame nearest to `t_us`."""
        return int(np.argmin(np.abs(self.recorded_us - t_us)))

    def recorded(self, index: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """The recorded frame at the size of the pictures; None without the clip."""
        if self.frames is None:
            return None
        image = Image.fromarray(self.frames.load(index))
        return np.asarray(image.resize((self.camera.width_px, self.camera.height_px), Image.Resampling.LANCZOS))

    def rendered(self, t_us: int, left_m: float = 0.0) -> UInt8[np.ndarray, "h w 3"]:
        """The view at `t_us` from a rig `left_m` metres to the left of the recorded one."""
        request = shifted_request(recorded_request(self.scene, self.camera, t_us), left_m)
        return np.round(self.renderer.render([request])[0].rgb * 255).astype(np.uint8)


def render_scene(path: Path, out: Path, *, clip: Path | None = None, camera: str | None = None) -> list[Path]:
    """Write the video `out` (.mp4) of the scene file `path` and a contact sheet (.png) of the same name.

    The video runs through the drive at 10 Hz: the recorded frame (held until the next one), the same view rendered,
    and the views from 2 m to the left and to the right; held-out frames are marked. The sheet has recorded and rendered
    frames, held-out ones where the scene has any, and renderings from 1, 2 and 4 m to each side. `clip` is the
    recording, by default the folder of the scene's name in `clips/` beside the scene's folder; without it recorded
    frames are left out. `camera`: by default the scene's first.

    Raises `InputError` when scene or clip do not read, do not belong together, or have no such camera.
    """
    if out.suffix != ".mp4":
        raise InputError(f"--render {out}: expected a file that ends with .mp4")
    shown = _open(path, clip, camera)
    sheet = save_picture(draw_contact_sheet(_sheet_rows(shown)), out.with_suffix(".png"))
    step_us = round(1e6 / _RATE_HZ)
    times_us = np.arange(shown.scene.expert.start_us, shown.scene.expert.end_us + 1, step_us)
    write_video(out, _video_frames(shown, times_us), _RATE_HZ)
    return [sheet, out]


def _open(path: Path, clip: Path | None, camera: str | None) -> _Shown:
    scene = read_scene(path)
    name = camera or next(iter(scene.cameras), "")
    if name not in scene.cameras:
        raise InputError(f"{path}: has no camera {name!r}; it has {', '.join(scene.cameras) or 'none'}")
    recorded_us = scene.camera_times_us[name]
    return _Shown(
        scene,
        SplatRenderer(scene),
        small_camera(scene.cameras[name]),
        recorded_us if len(recorded_us) else scene.expert.t_us,
        _recording(path, clip, name, len(recorded_us)),
        frozenset(held_out_indices(scene, name)),
    )


def _recording(path: Path, clip: Path | None, camera: str, count: int) -> CameraFrames | None:
    folder = clip or path.parent.parent / "clips" / path.stem
    if clip is None and not (folder / "clip.json").is_file():
        return None
    frames = read_clip(folder).cameras.get(camera)
    if frames is None or len(frames.t_us) != count:
        found = "has no such camera" if frames is None else f"has {len(frames.t_us)} frames of it"
        raise InputError(
            f"{folder}: {found}, but the scene {path.name} was made from {count} frames of camera {camera}; "
            "give the clip it was made from with --clip"
        )
    return frames


def _sheet_rows(shown: _Shown) -> list[SheetRow]:
    """Recorded and rendered frames, and a row a sideways shift, for up to five frames."""
    indices = np.array(sorted(shown.held_out) or range(len(shown.recorded_us)))
    indices = indices[spread(len(indices))]
    kind = "held out" if shown.held_out else "recorded"
    captions = [f"frame {index}, {kind}" for index in indices]
    times_us = [int(shown.recorded_us[index]) for index in indices]
    title = f"{shown.scene.scene_id}: {shown.camera.name}"
    rows = []
    images = [shown.recorded(int(index)) for index in indices]
    if shown.frames is not None:
        rows.append(SheetRow(f"{title}, recorded", [image for image in images if image is not None], captions))
    rows.append(SheetRow(f"{title}, rendered", [shown.rendered(t_us) for t_us in times_us], captions))
    for left_m in _SHEET_SHIFTS_M:
        rows.append(SheetRow(_side(left_m), [shown.rendered(t_us, left_m) for t_us in times_us], captions))
    return rows


def _video_frames(shown: _Shown, times_us: Int[np.ndarray, "t"]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    start_us = int(times_us[0])
    with Progress("render", len(times_us), "frame") as progress:
        for t_us in times_us.tolist():
            index = shown.nearest(t_us)
            recorded = shown.recorded(index)
            held_out = index in shown.held_out
            panels = [] if recorded is None else [_panel(recorded, f"recorded, frame {index}", held_out)]
            panels.append(_panel(shown.rendered(t_us), f"rendered, {(t_us - start_us) * 1e-6:.1f} s", held_out))
            panels += [_panel(shown.rendered(t_us, left_m), _side(left_m), False) for left_m in _VIDEO_SHIFTS_M]
            yield _tiled(panels)
            progress.advance()


def _side(left_m: float) -> str:
    return f"rendered from {abs(left_m):g} m to the {'left' if left_m > 0 else 'right'}"


def _panel(image: UInt8[np.ndarray, "h w 3"], caption: str, held_out: bool) -> Image.Image:
    """The image under its caption, which says when the frame was held out."""
    height, width = image.shape[:2]
    panel = Image.new("RGB", (width, height + _CAPTION_PX), _PANEL_COLOR)
    panel.paste(Image.fromarray(image), (0, _CAPTION_PX))
    text = f"{caption}, held out" if held_out else caption
    ImageDraw.Draw(panel).text((4, 2), text, _HELD_OUT_COLOR if held_out else _TEXT_COLOR, caption_font(12))
    return panel


def _tiled(panels: Sequence[Image.Image]) -> UInt8[np.ndarray, "h w 3"]:
    """Two columns where panels are upright, one where they are wide."""
    width, height = panels[0].size
    columns = 1 if width > 3 * height else 2
    rows = -(-len(panels) // columns)
    canvas = Image.new("RGB", (columns * width, rows * height), _PANEL_COLOR)
    for place, panel in enumerate(panels):
        canvas.paste(panel, (width * (place % columns), height * (place // columns)))
    return np.asarray(canvas)
