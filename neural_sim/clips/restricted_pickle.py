"""Pickles of plain values and number arrays, read without running anything from the file.

ScenarioNet stores scenarios as pickles. The unpickler here knows three names, those of a NumPy array, and gives them
inert stand-ins, so that neither NumPy's own state setters nor anything else is called with what the file says.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from neural_sim.errors import InputError

MAX_PICKLE_BYTES = 2**30
_ARRAY_NAMES = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_NUMBER_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class PickledType:
    """What a pickle says about an array's element type."""

    def __init__(self, name: Any = "", align: Any = False, copy: Any = False) -> None:
        self.name = name
        self.byte_order = "="

    def __setstate__(self, state: Any) -> None:
        self.byte_order = state[1] if isinstance(state, tuple) and len(state) > 1 else "?"


class PickledArray:
    """What a pickle says about an array; `to_numpy` makes it one."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_numpy(self, where: str) -> Shaped[np.ndarray, "..."]:
        """The array. Raises `InputError` when elements are no plain numbers or bytes and shape disagree."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise InputError(f"{where}: not a whole array; download the file again")
        _, shape, kind, fortran, content = self.state
        name = kind.name if isinstance(kind, PickledType) else None
        if not isinstance(name, str) or name not in _NUMBER_TYPES or kind.byte_order not in ("<", "|", "="):
            raise InputError(f"{where}: array of {name!r}, expected plain numbers; do not trust this file")
        dtype = np.dtype(f"<{name}")
        sound = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not sound or not isinstance(content, bytes) or len(content) != _product(shape) * dtype.itemsize:
            raise InputError(f"{where}: array of shape {shape} does not fit its bytes; download the file again")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAY_NAMES:
            return PickledArray
        if (module, name) == ("numpy", "dtype"):
            return PickledType
        if (module, name) == ("numpy", "ndarray"):
            return None
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only NumPy arrays are allowed")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def load_restricted(path: Path) -> Any:
    """The value pickled in `path`, with `PickledArray` for arrays.

    Raises `InputError` when the file is missing, over 1 GiB, damaged, or names anything but NumPy's plain arrays.
    """
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; restore it")
    if path.stat().st_size > MAX_PICKLE_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes, more than the {MAX_PICKLE_BYTES} allowed for one log")
    try:
        return _Unpickler(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise InputError(f"{path}: not loaded as a pickle: {error}; do not trust this file, get it again") from error
    except (MemoryError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: the pickle asks for too much memory; do not trust this file") from error


def as_array(value: Any, where: str) -> Shaped[np.ndarray, "..."]:
    """An array or nested list of numbers as a float64 array. Raises `InputError` on anything else or on NaN."""
    try:
        array = value.to_numpy(where) if isinstance(value, PickledArray) else np.asarray(value)
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: not an array of numbers ({error}); download the file again") from error
    if not np.isfinite(array).all():
        raise InputError(f"{where}: has NaN or infinite values; download the file again")
    return array


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product
