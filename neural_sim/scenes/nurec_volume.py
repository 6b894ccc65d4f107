"""`volume.nurec` and 3dgrut's `.nurec` in: Gaussians of all nodes, the sky, and what cannot be evaluated here.

The payload is gzip of msgpack; tensors are raw little-endian bytes with their shapes beside them, pre-activation, half
precision, quaternions wxyz, higher harmonics coefficient by coefficient with RGB fastest. Nodes: `background`, `road`
and any other static one in the world of the volume ("NRE"); `dynamic_rigids` in the frames of their boxes, told apart
by `gaussian_cuboid_ids`; `dynamic_deformables` likewise, moved rigidly because their network cannot be evaluated here.
"""

import gzip
import io
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from neural_sim.errors import InputError
from neural_sim.gaussians import Gaussians

MAX_PAYLOAD_BYTES = 8 * 2**30
_PREFIX = ".gaussians_nodes."
_DYNAMIC = ("dynamic_rigids", "dynamic_deformables")
_FLOATS = {2: np.dtype("<f2"), 4: np.dtype("<f4")}


@dataclass(frozen=True)
class NurecVolume:
    """What a payload holds that can be drawn here.

    Attributes:
        static: Gaussians in the volume's world by node name, m.
        actors: Gaussians by track id, in the frames of their boxes, m.
        sky: float32 [6, S, S, 3], RGB as stored, in layout "nurec" of `sky_layouts`; None without one.
        approximations: one line for each thing that is drawn otherwise than its maker would.
    """

    static: dict[str, Gaussians]
    actors: dict[str, Gaussians]
    sky: Float[torch.Tensor, "6 s s 3"] | None
    approximations: tuple[str, ...]


def decode_volume(content: bytes, where: str) -> NurecVolume:
    """Read a payload. Raises `InputError` naming `where` and the tensor on anything damaged, huge or malformed."""
    state = _state(content, where)
    nodes = sorted({key[len(_PREFIX) :].split(".")[0] for key in state if key.startswith(_PREFIX)})
    static: dict[str, Gaussians] = {}
    actors: dict[str, Gaussians] = {}
    for node in nodes:
        gaussians = _node(state, node, where)
        if node in _DYNAMIC:
            actors |= _split_by_cuboid(gaussians, state, node, actors, where)
        else:
            static[node] = gaussians
    return NurecVolume(static, actors, _sky(state, where), tuple(_approximations(state, nodes)))


def _state(content: bytes, where: str) -> Mapping[str, Any]:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            payload = file.read(MAX_PAYLOAD_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{where}: not whole gzip ({error}); get the file again") from error
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InputError(f"{where}: unpacks to more than {MAX_PAYLOAD_BYTES} bytes; do not trust this file")
    try:
        value = msgpack.unpackb(payload, raw=False, strict_map_key=True)
        state = value["nre_data"]["state_dict"]
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise InputError(f"{where}: no nre_data.state_dict in msgpack ({error}); expected a NuRec volume") from error
    if not isinstance(state, dict):
        raise InputError(f"{where}: state_dict is {type(state).__name__}, expected a map; get the file again")
    return state


def _tensor(state: Mapping[str, Any], key: str, where: str) -> Shaped[np.ndarray, "..."]:
    """A float tensor as float32; its precision follows from its bytes."""
    content, shape = state.get(key), state.get(f"{key}.shape")
    if not isinstance(content, bytes) or not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise InputError(f"{where}: tensor {key} or its shape is missing; get the file again")
    count = int(np.prod(shape, dtype=object)) if shape else 1
    size = len(content) // count if count > 0 else 2
    if min(shape, default=0) < 0 or size not in _FLOATS or len(content) != count * size:
        raise InputError(f"{where}: tensor {key} has {len(content)} bytes for shape {shape}; get the file again")
    array = np.frombuffer(content, _FLOATS[size]).reshape(shape).astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{where}: tensor {key} has NaN or infinite values; get the file again")
    return array


def _node(state: Mapping[str, Any], node: str, where: str) -> Gaussians:
    names = ("positions", "rotations", "scales", "densities", "features_albedo", "features_specular")
    parts = {name: _tensor(state, f"{_PREFIX}{node}.{name}", where) for name in names}
    count = parts["positions"].shape[0] if parts["positions"].ndim else 0
    for name, width in (("positions", 3), ("rotations", 4), ("scales", 3), ("densities", 1)):
        shape = parts[name].shape
        if shape[:1] != (count,) or math.prod(shape[1:]) != width:
            raise InputError(f"{where}: node {node}: {name} is {list(shape)}, expected {[count, width]}")
    albedo, specular = parts["features_albedo"], parts["features_specular"]
    # Fourier colours in time: only the constant term has a documented meaning.
    albedo = albedo[:, 0] if albedo.ndim == 3 and albedo.shape[1] else albedo
    columns = math.prod(specular.shape[1:])
    bands = columns // 3
    if albedo.shape != (count, 3) or specular.shape[:1] != (count,) or columns % 3 or bands not in (0, 3, 8, 15):
        raise InputError(
            f"{where}: node {node}: colours are {list(albedo.shape)} and {list(specular.shape)}, expected [{count}, 3] "
            "and 0, 9, 24 or 45 columns"
        )
    degree = min(_integer(state, f"{_PREFIX}{node}.n_active_features", 3, where), round((bands + 1) ** 0.5) - 1)
    sh = np.concatenate([albedo[:, None], specular.reshape(count, bands, 3)], axis=1)[:, : (degree + 1) ** 2]
    return Gaussians(
        means_m=torch.from_numpy(parts["positions"]),
        quaternions_xyzw=torch.from_numpy(parts["rotations"][:, [1, 2, 3, 0]].copy()),
        log_scales=torch.from_numpy(parts["scales"]),
        opacity_logits=torch.from_numpy(parts["densities"].reshape(count)),
        sh=torch.from_numpy(np.ascontiguousarray(sh)),
    )


def _integer(state: Mapping[str, Any], key: str, default: int, where: str) -> int:
    content = state.get(key)
    if content is None:
        return default
    if not isinstance(content, bytes) or len(content) != 8:
        raise InputError(f"{where}: {key} should be one int64; get the file again")
    return max(0, int.from_bytes(content, "little", signed=True))


def _split_by_cuboid(
    gaussians: Gaussians, state: Mapping[str, Any], node: str, taken: Mapping[str, Gaussians], where: str
) -> dict[str, Gaussians]:
    """Gaussians of each box by its track id; a track in both dynamic nodes gets the parts joined."""
    if len(gaussians) == 0:
        return {}
    ids = _cuboid_ids(state, node, len(gaussians), where)
    extra = state.get("._extra_state")
    names = extra.get("obj_track_ids", {}).get(node, []) if isinstance(extra, dict) else []
    if not isinstance(names, list) or not 0 <= ids.min() <= ids.max() < len(names):
        raise InputError(f"{where}: node {node}: cuboid ids {ids.min()} to {ids.max()} for {len(names)} track ids")
    actors: dict[str, Gaussians] = {}
    for index in np.unique(ids):
        rows = torch.from_numpy(np.flatnonzero(ids == index))
        part = Gaussians(**{name: tensor[rows] for name, tensor in gaussians.tensors().items()})
        name = str(names[index])
        same = taken.get(name)
        joinable = same is not None and same.sh_degree == part.sh_degree
        actors[name] = Gaussians.concatenate([same, part]) if joinable and same is not None else part
    return actors


def _cuboid_ids(state: Mapping[str, Any], node: str, count: int, where: str) -> Int[np.ndarray, "n"]:
    key = f"{_PREFIX}{node}.gaussian_cuboid_ids"
    content = state.get(key)
    if not isinstance(content, bytes) or len(content) not in (4 * count, 8 * count):
        raise InputError(f"{where}: tensor {key} is missing or not {count} integers; get the file again")
    return np.frombuffer(content, "<i4" if len(content) == 4 * count else "<i8").astype(np.int64)


def _sky(state: Mapping[str, Any], where: str) -> Float[torch.Tensor, "6 s s 3"] | None:
    if ".background.textures" not in state:
        return None
    sky = _tensor(state, ".background.textures", where)
    if sky.ndim != 5 or sky.shape[:2] != (1, 6) or sky.shape[2] != sky.shape[3] or sky.shape[4] != 3:
        raise InputError(f"{where}: sky is {list(sky.shape)}, expected [1, 6, S, S, 3]; get the file again")
    return torch.from_numpy(sky[0].copy())


def _approximations(state: Mapping[str, Any], nodes: list[str]) -> list[str]:
    found = []
    for node in nodes:
        shape = state.get(f"{_PREFIX}{node}.features_albedo.shape", [])
        if len(shape) == 3 and shape[1] > 1:
            found.append(
                f"node {node}: colours change in time by {shape[1]} Fourier terms; drawn with the constant one"
            )
    if "dynamic_deformables" in nodes and state.get(f"{_PREFIX}dynamic_deformables.positions.shape", [0])[0]:
        found.append(
            "node dynamic_deformables: deformed by a network that is not evaluated; drawn rigid in their boxes"
        )
    if any(".ppisp." in key for key in state):
        found.append("exposure, vignetting, colour and response correction (PPISP) are not applied")
    return found
