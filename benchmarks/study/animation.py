"""The animation that opens the README: two policies side by side on the same new street, in the true world."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from eval.aggregate import reduce_rollout
from eval.context import box_center_planar
from eval.drawing import COLOR_CONTACT, COLOR_PANEL, COLOR_TEXT, BirdsEyeContent, draw_birds_eye
from eval.scorers import score_rollout
from neural_sim.artifacts import atomic_file
from neural_sim.drawing.top_view import caption_font
from neural_sim.errors import InputError
from neural_sim.scenes.scene import Scene
from neural_sim.scenes.storage import read_scene
from neural_sim.simulation.record import RolloutRecord, read_record
from neural_sim.town.town import Town, town_from_source
from neural_sim.trajectory import Trajectory

from .arms import BASE, find_arm
from .stages import Study

ANIMATION_NAME = "study.webp"
MAX_BYTES = 2_000_000
_FRAME_MS = 200
_STEPS_PER_FRAME = 2
_QUALITIES = (70, 50, 35, 20)
_WIDTH_PX, _CAMERA_HEIGHT_PX, _MAP_HEIGHT_PX, _TITLE_PX = 320, 192, 150, 24
_HELD_FRAMES = 8


@dataclass(frozen=True)
class Side:
    """One half of the picture: a rollout with its title.

    Attributes:
        title: above the camera.
        record: what was driven.
        end: index of the last counted step.
        incident: what ended it, or "".
    """

    title: str
    record: RolloutRecord
    end: int
    incident: str

    @property
    def start(self) -> int:
        """Index of the first step that the policy drove."""
        return int(np.flatnonzero(~self.record.is_warmup)[0])


def write_animation(study: Study, path: Path, arm: str = "road") -> Path:
    """Write an animated WebP below 2 MB: the base and `arm`, where the base fails and the other gets on best.

    Raises `InputError` when one of them has not been evaluated in the true world, or the base never fails there.
    """
    seed, index = _most_telling(study, arm)
    scene = read_scene(study.scene(seed))
    town = town_from_source(scene.metadata["source"])
    sides = [_side(study, name, seed, index) for name in (BASE, arm)]
    frames = [Image.fromarray(frame) for frame in _frames(scene, town, sides)]
    encoded = (_encoded(frames, quality) for quality in _QUALITIES)
    data = next((item for item in encoded if len(item) < MAX_BYTES), None)
    if data is None:
        raise InputError(
            f"{path}: the animation takes {MAX_BYTES} bytes or more at the lowest quality; shorten the clips"
        )
    with atomic_file(path) as partial:
        partial.write_bytes(data)
    return path


def _encoded(frames: Sequence[Image.Image], quality: int) -> bytes:
    stream = io.BytesIO()
    frames[0].save(
        stream, format="WEBP", save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0, quality=quality,
        method=4,
    )  # fmt: skip
    return stream.getvalue()


def _most_telling(study: Study, arm: str) -> tuple[int, int]:
    """Street and rollout where the base fails and the other arm gets farthest beyond it."""
    best: tuple[float, int, int] | None = None
    for seed in study.config.held_out.seeds:
        for index in range(study.config.evaluate.rollouts_per_scene):
            base, other = (_side(study, name, seed, index) for name in (BASE, arm))
            if base.incident and not other.incident:
                found = (float(other.end - base.end), seed, index)
                best = max(best, found) if best else found
    if best is None:
        raise InputError(
            f"{study.out}: no street where the base fails and {arm} does not; nothing to show side by side"
        )
    return best[1], best[2]


def _side(study: Study, arm: str, seed: int, index: int) -> Side:
    size = study.config.evaluate.batch_size
    unit = f"{arm}-town_{seed}-r{index // size * size:03d}"
    path = study.report(arm, "town") / "rollouts" / unit / f"{index:03d}.npz"
    if not path.is_file():
        raise InputError(f"{path}: no such rollout; evaluate arm {arm} in the world `town` first")
    record = read_record(path)
    protocol = study.config.evaluate.protocol
    reduced = reduce_rollout(score_rollout(record, read_scene(study.scene(seed)), protocol, policy=arm), protocol)
    end = int(np.searchsorted(record.t_us, reduced.cut_us))
    return Side(find_arm(arm).label, record, end, reduced.incident.replace("_", " ").upper())


def _frames(scene: Scene, town: Town, sides: Sequence[Side]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Both sides over the same time; one that has ended stands still."""
    last = max(side.end for side in sides)
    steps = list(range(sides[0].start, last + 1, _STEPS_PER_FRAME))
    kept: dict[tuple[int, int], np.ndarray] = {}
    for step in steps + [steps[-1]] * _HELD_FRAMES:
        halves = []
        for place, side in enumerate(sides):
            shown = min(step, side.end)
            if (place, shown) not in kept:
                kept[place, shown] = _half(scene, town, side, shown)
            halves.append(kept[place, shown])
        yield np.concatenate(halves, axis=1)


def _half(scene: Scene, town: Town, side: Side, step: int) -> UInt8[np.ndarray, "h w 3"]:
    """Title, camera and bird's-eye view of one side at one step."""
    failed = bool(side.incident) and step == side.end
    height_px = _TITLE_PX + _CAMERA_HEIGHT_PX + _MAP_HEIGHT_PX
    picture = Image.new("RGB", (_WIDTH_PX, height_px), COLOR_PANEL)
    picture.paste(Image.fromarray(_camera_image(town, side.record, step)), (0, _TITLE_PX))
    picture.paste(Image.fromarray(_map_image(scene, side, step, failed)), (0, _TITLE_PX + _CAMERA_HEIGHT_PX))
    draw = ImageDraw.Draw(picture)
    draw.text((8, 4), side.title, COLOR_TEXT, caption_font(13, bold=True))
    if failed:
        draw.rectangle((0, _TITLE_PX, _WIDTH_PX - 1, height_px - 1), outline=COLOR_CONTACT, width=4)
        draw.text((12, _TITLE_PX + 8), side.incident, COLOR_CONTACT, caption_font(19, bold=True))
    return np.asarray(picture)


def _camera_image(town: Town, record: RolloutRecord, step: int) -> UInt8[np.ndarray, "h w 3"]:
    """What the first camera sees in the true world, without sensor noise that would only cost bytes."""
    camera = next(iter(town.cameras.values())).resized(_WIDTH_PX, _CAMERA_HEIGHT_PX)
    request = town.request(camera, int(record.t_us[step]))
    pose = record.T_world_rig[step] @ camera.T_rig_camera
    image = town.renderer.render([replace(request, T_world_camera_open=pose, T_world_camera_close=pose)])[0]
    return np.round(image.rgb * 255).astype(np.uint8)


def _map_image(scene: Scene, side: Side, step: int, failed: bool) -> UInt8[np.ndarray, "h w 3"]:
    record, vehicle = side.record, scene.ego_vehicle
    sizes = {track.track_id: track.size_m[:2] for track in scene.tracks}
    driven = box_center_planar(Trajectory(record.t_us, record.T_world_rig).planar, vehicle.center_x_m)
    content = BirdsEyeContent(
        ego_planar=driven[step],
        ego_size_m=(vehicle.length_m, vehicle.width_m),
        expert_xy=_expert_path_m(scene),
        driven_xy=driven[: step + 1, :2],
        actor_planar=record.actor_planar[step],
        actor_sizes_m=np.array([sizes[name] for name in record.actor_ids]).reshape(-1, 2),
        in_contact=failed,
    )
    return draw_birds_eye(content, scene.road_map, _WIDTH_PX, _MAP_HEIGHT_PX, 0.16)


def _expert_path_m(scene: Scene) -> Float[np.ndarray, "m 2"]:
    return box_center_planar(scene.expert.planar, scene.ego_vehicle.center_x_m)[:, :2]
