"""A picture of some examples of a folder of shards: what the policy saw, where it drove, what it should learn."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from neural_sim.artifacts import atomic_file
from neural_sim.drawing.contact_sheet import SheetRow, draw_contact_sheet
from neural_sim.errors import InputError
from pipelines.shards.example import ShardExample
from pipelines.shards.index import ShardIndex, read_index
from pipelines.shards.reader import read_example

SHEET = "contact_sheet.jpg"
_COLUMNS = 3
_FRAME_WIDTH_PX = 320
_MAP_WIDTH_PX = 110
_AHEAD_M = 60.0
_BEHIND_M = 15.0

_PANEL, _CAR = (39, 39, 42), (228, 228, 231)
_HISTORY, _PLAN, _TARGET, _ROUTE = (161, 161, 170), (251, 146, 60), (74, 222, 128), (82, 82, 91)


def draw_examples(shards: Path, folder: Path | None = None, count: int = 24) -> list[Path]:
    """Draw up to `count` examples of the folder `shards`, evenly spaced over them; returns the picture written.

    It lies in `folder`, by default in `shards` themselves. Each example shows the newest frame of every camera and a
    map (15 m back, 60 m ahead, forward is up): the past in gray, the route in dark gray, the plan that was driven in
    orange with the target in green over it.

    Raises `InputError` when there is no example, a shard is unsound, or the folder cannot be written.
    """
    index = read_index(shards)
    if not index.examples:
        raise InputError(f"{shards}: holds no examples to show")
    numbers = np.unique(np.linspace(0, index.examples - 1, min(count, index.examples)).astype(int))
    examples = [_read(index, int(number)) for number in numbers]
    rows = [examples[start : start + _COLUMNS] for start in range(0, len(examples), _COLUMNS)]
    sheet = draw_contact_sheet(
        [SheetRow(_title(row[0]), [_picture(each) for each in row], [_caption(each) for each in row]) for row in rows],
        _FRAME_WIDTH_PX + _MAP_WIDTH_PX,
    )
    path = (folder or shards) / SHEET
    try:
        with atomic_file(path) as partial:
            Image.fromarray(sheet).save(partial, "JPEG", quality=90)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); pass --pictures FOLDER") from error
    return [path]


def _read(index: ShardIndex, number: int) -> ShardExample:
    for shard in index.shards:
        if number < shard.examples:
            return read_example(index.folder, shard, number)
        number -= shard.examples
    raise IndexError(number)


def _picture(example: ShardExample) -> UInt8[np.ndarray, "h w 3"]:
    frames = [_scaled(example.images[camera][-1]) for camera in sorted(example.images)]
    height = max(sum(frame.height for frame in frames), 120)
    picture = Image.new("RGB", (_FRAME_WIDTH_PX + _MAP_WIDTH_PX, height), _PANEL)
    top = 0
    for frame in frames:
        picture.paste(frame, (0, top))
        top += frame.height
    picture.paste(_map(example, height), (_FRAME_WIDTH_PX, 0))
    return np.asarray(picture)


def _scaled(frame: np.ndarray) -> Image.Image:
    image = Image.fromarray(frame)
    return image.resize((_FRAME_WIDTH_PX, round(image.height * _FRAME_WIDTH_PX / image.width)))


def _map(example: ShardExample, height_px: int) -> Image.Image:
    image = Image.new("RGB", (_MAP_WIDTH_PX, height_px), _PANEL)
    draw, scale = ImageDraw.Draw(image), height_px / (_AHEAD_M + _BEHIND_M)
    if example.route is not None:
        _line(draw, example.route, scale, _ROUTE, 5)
    _line(draw, example.ego_history[:, :2], scale, _HISTORY, 2)
    _line(draw, np.vstack([[0.0, 0.0], example.plan[:, :2]]), scale, _PLAN, 3)
    _line(draw, np.vstack([[0.0, 0.0], example.target[:, :2]]), scale, _TARGET, 1)
    x_px, y_px = _MAP_WIDTH_PX / 2, _AHEAD_M * scale
    draw.polygon([(x_px, y_px - 5), (x_px - 3, y_px + 3), (x_px + 3, y_px + 3)], fill=_CAR)
    return image


def _line(
    draw: ImageDraw.ImageDraw, points_m: Float[np.ndarray, "n 2"], scale: float, color: tuple[int, int, int], width: int
) -> None:
    """A path in the rig frame, m, drawn with forward up and left to the left."""
    known = points_m[np.isfinite(points_m).all(axis=1)]
    pixels = np.column_stack([_MAP_WIDTH_PX / 2 - scale * known[:, 1], scale * (_AHEAD_M - known[:, 0])])
    draw.line([(float(x), float(y)) for x, y in pixels], fill=color, width=width)


def _title(example: ShardExample) -> str:
    meta = example.meta
    return f"{meta.get('scene_id', '?')} from rollout {meta.get('rollout_index', '?')}, round {meta.get('round', '?')}"


def _caption(example: ShardExample) -> str:
    meta, distances = example.meta, example.candidate_distances
    distance = f", d^g {distances.min():.2f} m" if distances.size else ""
    recovered = ", recovered" if example.recovered else ""
    weight = f", weight {meta['weight']:.2f}" if meta.get("weight", 1) != 1 else ""
    place = f"rollout {meta.get('rollout_index', '?')} step {meta.get('step', '?')}"
    return f"{place}: {example.speed_mps:.1f} m/s{distance}{recovered}{weight}"
