"""The file of a NeRF: one `.nerf.safetensors`, the weights as they are and everything else as JSON in its header."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from neural_sim.artifacts import atomic_file
from neural_sim.clips.json_input import check_format_version, field, parse_json_object
from neural_sim.errors import InputError
from neural_sim.nerf.config import NerfConfig
from neural_sim.nerf.world import NerfWorld

NERF_FORMAT_VERSION = 1
SUFFIX = ".nerf.safetensors"
_RECORD = "roadloop_nerf"
_BYTES_PER_ROW = 8


def nerf_path(scene: Path) -> Path:
    """Where the NeRF of a scene file lies: beside it, with its name."""
    return scene.with_name(scene.name.removesuffix(".usdz") + SUFFIX)


def write_nerf(world: NerfWorld, path: Path) -> None:
    """Write `world` to `path`, atomically; two writes of one NeRF are byte-identical."""
    record = {
        "format_version": NERF_FORMAT_VERSION,
        "clip_id": world.clip_id,
        "config": asdict(world.config),
        "num_images": world.num_images,
        "center_m": [float(value) for value in world.center_m],
        "unit_m": float(world.unit_m),
        "metadata": dict(world.metadata),
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in world.weights.items()}
    with atomic_file(path) as partial:
        partial.write_bytes(save(arrays, metadata={_RECORD: json.dumps(record, allow_nan=False)}))


def read_nerf(path: Path) -> NerfWorld:
    """Read what `write_nerf` wrote.

    Raises `InputError` naming the file when it is missing or damaged, when the format version is not known, or when
    values are malformed.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such NeRF; make one with `roadloop reconstruct --method nerf`")
    try:
        with safe_open(path, framework="numpy") as archive:
            header = archive.metadata() or {}
            weights = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not whole safetensors ({error}); train it again") from error
    if _RECORD not in header:
        raise InputError(f"{path}: holds no NeRF of ours; make one with `roadloop reconstruct --method nerf`")
    record = parse_json_object(header[_RECORD].encode(), str(path))
    check_format_version(record, (NERF_FORMAT_VERSION,), str(path))
    return _world(record, weights, path)


def _world(record: dict[str, Any], weights: dict[str, np.ndarray], path: Path) -> NerfWorld:
    where = str(path)
    center_m = np.array(field(record, "center_m", list, where), float)
    unit_m, num_images = field(record, "unit_m", float, where), field(record, "num_images", int, where)
    if center_m.shape != (3,) or not np.isfinite(center_m).all() or not 0 < unit_m < float("inf") or num_images < 1:
        raise InputError(
            f"{where}: center_m is {center_m.tolist()}, unit_m {unit_m}, num_images {num_images}; expected a point, a "
            "length and a count above zero; train it again"
        )
    for name, array in weights.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{where}: array {name} has NaN or infinite values; train it again")
    config = _config(field(record, "config", dict, where), where)
    rows = config.hash_levels << config.log2_hash_size
    # Building the networks takes as much memory as their settings say, so those must fit what is there.
    if rows * _BYTES_PER_ROW > path.stat().st_size:
        raise InputError(f"{where}: its settings want a hash grid of {rows} rows, which the file cannot hold")
    metadata = field(record, "metadata", dict, where)
    return NerfWorld(field(record, "clip_id", str, where), config, num_images, center_m, unit_m, weights, metadata)


def _config(value: dict[str, Any], where: str) -> NerfConfig:
    unknown = sorted(set(value) - set(NerfConfig.__dataclass_fields__))
    if unknown:
        raise InputError(f"{where}: unknown settings {', '.join(unknown)}; read it with the version that wrote it")
    try:
        return TypeAdapter(NerfConfig).validate_python(value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: setting {place} is {first['input']!r}; {first['msg'].lower()}") from error
