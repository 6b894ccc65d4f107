"""Columns of Feather and Parquet files that datasets bring."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as parquet
from jaxtyping import Shaped

from neural_sim.errors import InputError

Columns = dict[str, Shaped[np.ndarray, "..."]]


def read_columns(path: Path, kinds: Mapping[str, type[np.generic]]) -> Columns:
    """Columns `kinds` (name to `np.int64`, `np.float64` or `np.str_`) of a `.feather` or `.parquet` file.

    Raises `InputError` naming the file when it is missing or damaged, or a column is missing, of another kind, has
    empty rows, or has NaN.
    """
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; restore it from the download")
    return parse_columns(path.read_bytes(), kinds, str(path))


def parse_columns(content: bytes, kinds: Mapping[str, type[np.generic]], where: str) -> Columns:
    """As `read_columns`, of the bytes of a file that `where` names (the name tells Feather from Parquet)."""
    read = feather.read_table if where.endswith(".feather") else parquet.read_table
    try:
        table = read(BytesIO(content))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{where}: not a readable table ({error}); download the file again") from error
    missing = [name for name in kinds if name not in table.column_names]
    if missing:
        raise InputError(
            f"{where}: columns {', '.join(missing)} are missing; found {', '.join(table.column_names) or 'none'}"
        )
    return {name: _column(table[name], name, kind, where) for name, kind in kinds.items()}


def _column(column: pa.ChunkedArray, name: str, kind: type[np.generic], where: str) -> Shaped[np.ndarray, "n"]:
    target = {np.str_: pa.string(), np.int64: pa.int64(), np.float64: pa.float64()}[kind]
    numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if column.null_count or (kind is np.str_) == numeric or (kind is np.int64 and pa.types.is_floating(column.type)):
        raise InputError(
            f"{where}: column {name} is {column.type} with {column.null_count} empty rows, expected {target} without; "
            "download the file again"
        )
    try:
        values = column.cast(target).to_numpy()
    except pa.ArrowException as error:
        raise InputError(f"{where}: column {name} ({column.type}) is no {target} ({error})") from error
    if kind is np.float64 and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"{where}: column {name} is {values[row]} in row {row}, expected finite numbers; restore it")
    return values
