"""Writing shards: unit by unit, each all or nothing, so that a killed job resumes with what is missing."""

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from neural_sim.artifacts import atomic_file, write_json
from neural_sim.errors import InputError
from pipelines.shards.example import SAFE_NAME, ShardExample, encode_example
from pipelines.shards.index import (
    INDEX_NAME,
    ExampleStatistics,
    ShardFile,
    ShardIndex,
    common_image_shapes,
    shard_from_json,
)

MAX_SHARD_BYTES = 256 * 1024 * 1024
UNIT_SUFFIX = ".unit.json"
UNIT_FORMAT_VERSION = 1


class ShardWriter:
    """Writes the examples of one unit of work (a chunk of rollouts of one scene, one clip) to `<unit>-NNNNN.tar`.

    Use as a context manager. The unit counts as finished when the block ends without an exception: then
    `<unit>.unit.json` appears, last. The same examples give byte-identical files.

    Attributes:
        summary: facts about the unit for the job's summary, plain JSON values; fill it inside the block.
    """

    def __init__(self, folder: Path, unit: str, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        if not SAFE_NAME.fullmatch(unit):
            raise InputError(f"unit {unit!r}: only letters, digits, '_' and '-' may appear in the name of a unit")
        self.folder, self.unit, self.max_shard_bytes = folder, unit, max_shard_bytes
        self.summary: dict[str, Any] = {}
        self._shards: list[ShardFile] = []
        self._statistics = ExampleStatistics()
        self._image_shapes: dict[str, list[int]] = {}
        self._keys: set[str] = set()
        self._open_part = contextlib.ExitStack()
        self._part: _OpenPart | None = None

    def __enter__(self) -> Self:
        _forget_unit(self.folder, self.unit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._open_part.__exit__(kind, error, trace)
            _forget_unit(self.folder, self.unit)
            return
        self._close_part()
        sidecar = {
            "format_version": UNIT_FORMAT_VERSION,
            "unit": self.unit,
            "statistics": asdict(self._statistics),
            "image_shapes": self._image_shapes,
            "summary": self.summary,
            "shards": [asdict(shard) for shard in self._shards],
        }
        write_json(_sidecar(self.folder, self.unit), sidecar)

    def write(self, example: ShardExample) -> None:
        """Append one example. Raises `InputError` on a repeated key or on images of another shape than before."""
        if example.key in self._keys:
            raise InputError(f"unit {self.unit}: example {example.key} is written twice")
        named = [(f"example {key}", shapes) for key, shapes in self._known_shapes(example)]
        self._image_shapes = common_image_shapes(named)
        blocks = _tar_blocks(example)
        if self._part is not None and self._part.size + len(blocks) > self.max_shard_bytes:
            self._close_part()
        if self._part is None:
            path = self.folder / f"{self.unit}-{len(self._shards):05d}.tar"
            self._part = self._open_part.enter_context(_open_part(path))
        self._part.append(blocks)
        self._keys.add(example.key)
        self._statistics = self._statistics.merged(ExampleStatistics.of(example))

    def _known_shapes(self, example: ShardExample) -> list[tuple[str, Mapping[str, list[int]]]]:
        return [("before", self._image_shapes), (example.key, example.image_shapes)]

    def _close_part(self) -> None:
        part, self._part = self._part, None
        if part is None:
            return
        part.append(bytes(tarfile.BLOCKSIZE * 2), is_example=False)
        self._open_part.close()
        self._shards.append(
            ShardFile(part.name, self.unit, len(part.offsets), part.size, part.hash.hexdigest(), tuple(part.offsets))
        )


def finished_units(folder: Path) -> dict[str, dict[str, Any]]:
    """Summary of each finished unit in `folder` by name, sorted; a unit whose tars are gone or cut is not finished."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"*{UNIT_SUFFIX}")):
        sidecar = _read_sidecar(path)
        if all(_has_size(folder / shard.name, shard.bytes) for shard in _shards_of(sidecar, path)):
            found[sidecar["unit"]] = sidecar["summary"]
    return found


def finalize(folder: Path, units: Sequence[str], summary: Mapping[str, Any]) -> ShardIndex:
    """Write `index.json` over the finished `units`, atomically, and return it.

    `summary`: facts about the whole job, plain JSON values. Raises `InputError` when a unit is not finished, or when
    units have images of different shapes.
    """
    missing = sorted(set(units) - set(finished_units(folder)))
    if missing:
        raise InputError(f"{folder}: {len(missing)} of {len(units)} units are not finished ({missing[0]}, ...); rerun")
    paths = [_sidecar(folder, unit) for unit in sorted(units)]
    sidecars = [_read_sidecar(path) for path in paths]
    statistics = ExampleStatistics()
    for sidecar in sidecars:
        statistics = statistics.merged(ExampleStatistics(**sidecar["statistics"]))
    index = ShardIndex(
        folder,
        tuple(shard for sidecar, path in zip(sidecars, paths, strict=True) for shard in _shards_of(sidecar, path)),
        statistics,
        common_image_shapes((f"unit {sidecar['unit']}", sidecar["image_shapes"]) for sidecar in sidecars),
        summary,
    )
    write_json(folder / INDEX_NAME, index.to_json())
    return index


def move_unit(unit: str, source: Path, target: Path) -> None:
    """Move a finished unit from one folder to another, its record last; what lies at `target` is replaced.

    Does nothing when it is not in `source`, as after an interrupted move that reached its end.
    """
    record = _sidecar(source, unit)
    if not record.is_file():
        return
    _forget_unit(target, unit)
    for shard in _shards_of(_read_sidecar(record), record):
        (source / shard.name).replace(target / shard.name)
    record.replace(_sidecar(target, unit))


class _OpenPart:
    """A tar being written: counts bytes, hashes them, remembers where each example starts."""

    def __init__(self, name: str, stream: io.BufferedWriter) -> None:
        self.name, self.size, self.offsets = name, 0, list[int]()
        self.hash = hashlib.sha256()
        self._stream = stream

    def append(self, blocks: bytes, is_example: bool = True) -> None:
        if is_example:
            self.offsets.append(self.size)
        self._stream.write(blocks)
        self.hash.update(blocks)
        self.size += len(blocks)


@contextlib.contextmanager
def _open_part(path: Path) -> Iterator[_OpenPart]:
    with atomic_file(path) as partial, partial.open("wb") as stream:
        yield _OpenPart(path.name, stream)


def _tar_blocks(example: ShardExample) -> bytes:
    """The example as tar blocks without the end-of-archive mark; owner, mode and time are fixed."""
    blocks = bytearray()
    for suffix, content in encode_example(example).items():
        member = tarfile.TarInfo(f"{example.key}.{suffix}")
        member.size = len(content)
        blocks += member.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    return bytes(blocks)


def _sidecar(folder: Path, unit: str) -> Path:
    return folder / f"{unit}{UNIT_SUFFIX}"


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        sidecar = json.loads(path.read_text())
        if sidecar["format_version"] != UNIT_FORMAT_VERSION or path.name != sidecar["unit"] + UNIT_SUFFIX:
            raise InputError(f"{path}: not the record of a unit of shards of this version; delete it and rerun")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the record of a unit of shards ({error}); delete it and rerun") from error
    return sidecar


def _shards_of(sidecar: dict[str, Any], where: Path) -> list[ShardFile]:
    return [shard_from_json(value, where) for value in sidecar["shards"]]


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _forget_unit(folder: Path, unit: str) -> None:
    """Remove what an earlier, unfinished or abandoned writer of this unit left, its record first."""
    folder.mkdir(parents=True, exist_ok=True)
    _sidecar(folder, unit).unlink(missing_ok=True)
    tars = f"{unit}-[0-9][0-9][0-9][0-9][0-9].tar"
    for pattern in (tars, f".{tars}.*.partial", f".{unit}{UNIT_SUFFIX}.*.partial"):
        for leftover in folder.glob(pattern):
            leftover.unlink()
