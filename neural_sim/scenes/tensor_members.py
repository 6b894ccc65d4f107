"""Gaussians and arrays as safetensors members, in full precision."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.numpy import load, save

from neural_sim.errors import InputError
from neural_sim.gaussians import Gaussians

_TENSOR_NAMES = ("means_m", "quaternions_xyzw", "log_scales", "opacity_logits", "sh")
_SH_SIZES = (1, 4, 9, 16)


def encode_arrays(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> bytes:
    """Serialise arrays by name; equal arrays give equal bytes."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def decode_arrays(content: bytes, where: str) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Inverse of `encode_arrays`. Raises `InputError` naming `where` when the bytes are not whole safetensors."""
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: not whole safetensors ({error}); write the scene again") from error


def take_array(
    arrays: dict[str, Shaped[np.ndarray, "..."]], name: str, dtype: type[np.generic], shape: tuple[int, ...], where: str
) -> Shaped[np.ndarray, "..."]:
    """`arrays[name]`, checked to be finite, of `dtype` and of `shape` (-1: any length).

    Raises `InputError` naming `where` and `name`.
    """
    if name not in arrays:
        raise InputError(f"{where}: array {name} is missing; write the scene again")
    array = arrays[name]
    fits = array.ndim == len(shape) and all(w in (-1, n) for w, n in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        expected = "x".join("n" if n == -1 else str(n) for n in shape)
        raise InputError(
            f"{where}: array {name} is {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} {expected}; "
            "write the scene again"
        )
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise InputError(f"{where}: array {name} has NaN or infinite values; reconstruct the scene again")
    return array


def gaussian_arrays(gaussians: Gaussians, prefix: str) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The five arrays of `gaussians` under `prefix`, float32."""
    tensors = gaussians.tensors()
    return {f"{prefix}{name}": tensors[name].detach().to("cpu", torch.float32).numpy() for name in _TENSOR_NAMES}


def take_gaussians(arrays: dict[str, Shaped[np.ndarray, "..."]], prefix: str, where: str) -> Gaussians:
    """Inverse of `gaussian_arrays`. Raises `InputError` when arrays are missing, of unequal length or not finite."""
    means = take_array(arrays, f"{prefix}means_m", np.float32, (-1, 3), where)
    shapes = {"means_m": (-1, 3), "quaternions_xyzw": (-1, 4), "log_scales": (-1, 3), "opacity_logits": (-1,)}
    shapes["sh"] = (-1, -1, 3)
    taken = {
        name: take_array(arrays, f"{prefix}{name}", np.float32, (len(means), *shape[1:]), where)
        for name, shape in shapes.items()
    }
    if taken["sh"].shape[1] not in _SH_SIZES:
        raise InputError(
            f"{where}: array {prefix}sh has {taken['sh'].shape[1]} coefficients, expected one of {_SH_SIZES}; "
            "write the scene again"
        )
    return Gaussians(**{name: torch.from_numpy(array.copy()) for name, array in taken.items()})
