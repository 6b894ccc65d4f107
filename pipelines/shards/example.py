"""One training example, and its members in a tar."""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from neural_sim.errors import InputError
from neural_sim.simulation.observation import HISTORY_STEPS, PLAN_STEPS
from vla.policy import ROUTE_POINTS

EXAMPLE_FORMAT_VERSION = 1
JPEG_QUALITY = 95

SAFE_NAME = re.compile(r"[A-Za-z0-9_-]+")
"""Keys, camera names and unit names: no dot, because WebDataset ends a key at the first one, and no path separator."""

_ARRAY_SHAPES: dict[str, tuple[int | None, ...]] = {
    "ego_history": (HISTORY_STEPS, 4),
    "target": (PLAN_STEPS, 3),
    "plan": (PLAN_STEPS, 3),
    "candidate_distances": (None,),
}
_ROUTE_MEMBER = "route.npy"
_ROUTE_SHAPE = (ROUTE_POINTS, 2)


@dataclass(frozen=True)
class ShardExample:
    """One observation with the plan to imitate.

    Attributes:
        key: unique name of the example; letters, digits, `_` and `-`.
        t_us: time of the observation, us.
        images: uint8 [F, H, W, 3] by camera name, oldest first.
        image_times_us: int64 [F] by camera name.
        ego_history: float32 [16, 4], (x, y, yaw, speed) every 0.1 s up to `t_us`, rig frame at `t_us`, m, rad, m/s.
        navigation: instruction, may be empty.
        target: float32 [64, 3], the plan to imitate, (x, y, yaw) at 0.1 s to 6.4 s, rig frame at `t_us`, m and rad.
        plan: float32 [64, 3], the plan that was driven (RoaD Algorithm 1: a_t, blended where recovered), as `target`.
        candidate_distances: float32 [K], d^g of each sampled plan, m; empty where no plans were sampled.
        recovered: whether the plan was blended towards the expert.
        meta: where the example comes from, plain JSON values: `scene_id`, `rollout_index`, `step`, `seed`,
            `policy_hash`, `round`, `source` ("rollout", "clip", ...).
        route: float32 [20, 2], points (x, y) of the route over 80 m ahead, rig frame at `t_us`, m, NaN after its end;
            None where it is not known.
        reasoning: chain-of-causation text for this moment, empty where there is none.
    """

    key: str
    t_us: int
    images: Mapping[str, UInt8[np.ndarray, "f h w 3"]]
    image_times_us: Mapping[str, Int[np.ndarray, "f"]]
    ego_history: Float[np.ndarray, "16 4"]
    navigation: str
    target: Float[np.ndarray, "64 3"]
    plan: Float[np.ndarray, "64 3"]
    candidate_distances: Float[np.ndarray, "k"]
    recovered: bool
    meta: Mapping[str, Any]
    route: Float[np.ndarray, "20 2"] | None = None
    reasoning: str = ""

    def __post_init__(self) -> None:
        _check_name(self.key, f"example {self.key!r}: key")
        if self.route is not None:
            _check_shape(self.route, _ROUTE_SHAPE, f"example {self.key}: route")
        for name, shape in _ARRAY_SHAPES.items():
            _check_array(getattr(self, name), shape, f"example {self.key}: {name}")
        if not self.images or set(self.images) != set(self.image_times_us):
            raise InputError(
                f"example {self.key}: images of {sorted(self.images)} but image times of "
                f"{sorted(self.image_times_us)}; expected the same cameras, at least one"
            )
        for camera in self.images:
            self._check_images(camera)

    @property
    def speed_mps(self) -> float:
        """Speed at `t_us`, m/s."""
        return float(self.ego_history[-1, 3])

    @property
    def image_shapes(self) -> dict[str, list[int]]:
        """[F, H, W] by camera name, cameras sorted."""
        return {camera: list(self.images[camera].shape[:3]) for camera in sorted(self.images)}

    def _check_images(self, camera: str) -> None:
        _check_name(camera, f"example {self.key}: camera name {camera!r}")
        images, times_us = self.images[camera], self.image_times_us[camera]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[0] == 0 or images.shape[3] != 3:
            raise InputError(
                f"example {self.key}: images of {camera} are {images.dtype} {images.shape}, expected uint8 [F, H, W, 3]"
            )
        if times_us.dtype != np.int64 or times_us.shape != images.shape[:1]:
            raise InputError(
                f"example {self.key}: image times of {camera} are {times_us.dtype} {times_us.shape}, "
                f"expected int64 [{images.shape[0]}]"
            )


def safe_name(text: str) -> str:
    """`text` with every character that may not stand in a key replaced by `-`."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", text) or "-"


def encode_example(example: ShardExample) -> dict[str, bytes]:
    """Bytes of each tar member by its suffix (the member is `<key>.<suffix>`), sorted by suffix.

    Images become `<camera>.<i>.jpg`, arrays `<name>.npy`, everything else `meta.json`. The same example always gives
    the same bytes.
    """
    members = {f"{name}.npy": _encode_array(getattr(example, name)) for name in _ARRAY_SHAPES}
    if example.route is not None:
        members[_ROUTE_MEMBER] = _encode_array(example.route)
    for camera, images in example.images.items():
        for i, image in enumerate(images):
            members[f"{camera}.{i}.jpg"] = _encode_jpeg(image)
    facts = {
        "format_version": EXAMPLE_FORMAT_VERSION,
        "t_us": int(example.t_us),
        "image_times_us": {camera: times.tolist() for camera, times in example.image_times_us.items()},
        "navigation": example.navigation,
        "recovered": bool(example.recovered),
        "meta": dict(example.meta),
        **({"reasoning": example.reasoning} if example.reasoning else {}),
    }
    members["meta.json"] = json.dumps(facts, sort_keys=True, allow_nan=False).encode()
    return dict(sorted(members.items()))


def decode_example(key: str, members: Mapping[str, bytes]) -> ShardExample:
    """Inverse of `encode_example` up to JPEG loss. Raises `InputError` naming the example and the bad member."""
    facts = _decode_facts(key, members)
    times_us = {camera: np.asarray(times, np.int64) for camera, times in facts["image_times_us"].items()}
    arrays = {name: _decode_array(key, f"{name}.npy", members) for name in _ARRAY_SHAPES}
    return ShardExample(
        key=key,
        t_us=int(facts["t_us"]),
        images={camera: _decode_images(key, camera, len(times), members) for camera, times in times_us.items()},
        image_times_us=times_us,
        navigation=str(facts["navigation"]),
        recovered=bool(facts["recovered"]),
        meta=facts["meta"],
        route=_decode_array(key, _ROUTE_MEMBER, members) if _ROUTE_MEMBER in members else None,
        reasoning=str(facts.get("reasoning", "")),
        **arrays,
    )


@dataclass(frozen=True)
class ShardExampleFacts:
    """What decides the weight of an example: `meta`, `recovered` and `candidate_distances` of `ShardExample`."""

    meta: Mapping[str, Any]
    recovered: bool
    candidate_distances: Float[np.ndarray, "k"]

    @property
    def least_distance_m(self) -> float:
        """d^g of the best sampled plan, m; 0 where none were sampled."""
        return float(self.candidate_distances.min()) if self.candidate_distances.size else 0.0


def decode_facts(key: str, members: Mapping[str, bytes]) -> ShardExampleFacts:
    """The part of `decode_example` that needs no image. Raises `InputError` naming the example and the bad member."""
    facts = _decode_facts(key, members)
    distances = _decode_array(key, "candidate_distances.npy", members)
    _check_array(distances, _ARRAY_SHAPES["candidate_distances"], f"example {key}: candidate_distances")
    return ShardExampleFacts(facts["meta"], bool(facts["recovered"]), distances)


def _check_name(name: str, what: str) -> None:
    if not SAFE_NAME.fullmatch(name):
        raise InputError(f"{what}: only letters, digits, '_' and '-' may appear in it")


def _check_array(array: np.ndarray, shape: tuple[int | None, ...], what: str) -> None:
    _check_shape(array, shape, what)
    if not np.isfinite(array).all():
        raise InputError(f"{what} is not finite; drop the window it comes from")


def _check_shape(array: np.ndarray, shape: tuple[int | None, ...], what: str) -> None:
    fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if array.dtype != np.float32 or not fits:
        expected = [n or "K" for n in shape]
        raise InputError(f"{what} is {array.dtype} {list(array.shape)}, expected float32 {expected}")


def _encode_array(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _encode_jpeg(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    # Full chroma resolution: at policy sizes a lamp or a lane line is a pixel or two wide.
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _member(key: str, suffix: str, members: Mapping[str, bytes]) -> bytes:
    if suffix not in members:
        raise InputError(f"example {key}: member {key}.{suffix} is missing (found {sorted(members)})")
    return members[suffix]


def _decode_facts(key: str, members: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        facts = json.loads(_member(key, "meta.json", members))
        version = facts["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"example {key}: meta.json does not decode ({error})") from error
    if version != EXAMPLE_FORMAT_VERSION:
        raise InputError(f"example {key}: format version {version!r}, this reader knows {EXAMPLE_FORMAT_VERSION}")
    missing = {"t_us", "image_times_us", "navigation", "recovered", "meta"} - set(facts)
    if missing:
        raise InputError(f"example {key}: meta.json lacks {sorted(missing)}")
    return facts


def _decode_array(key: str, suffix: str, members: Mapping[str, bytes]) -> np.ndarray:
    try:
        return np.load(io.BytesIO(_member(key, suffix, members)), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise InputError(f"example {key}: {suffix} does not decode ({error})") from error


def _decode_images(key: str, camera: str, count: int, members: Mapping[str, bytes]) -> UInt8[np.ndarray, "f h w 3"]:
    images = [_decode_jpeg(key, f"{camera}.{i}.jpg", members) for i in range(count)]
    if not images or any(image.shape != images[0].shape for image in images):
        raise InputError(
            f"example {key}: images of {camera} have sizes {[image.shape for image in images]}, expected one size"
        )
    return np.stack(images)


def _decode_jpeg(key: str, suffix: str, members: Mapping[str, bytes]) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(io.BytesIO(_member(key, suffix, members)), formats=("JPEG",)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"example {key}: {suffix} does not decode ({error})") from error
