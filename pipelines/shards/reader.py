"""Reading shards back: in order with checksums, or any example by its place."""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from neural_sim.errors import InputError
from pipelines.shards.example import SAFE_NAME, ShardExample, ShardExampleFacts, decode_example, decode_facts
from pipelines.shards.index import ShardFile, common_image_shapes, read_index
from vla.policy import ROUTE_POINTS, TrainingBatch

Decoded = TypeVar("Decoded")

MAX_MEMBER_BYTES = 64 * 1024 * 1024
_REMEDY = "restore the file, or delete it and run the job that writes these shards again"


def iterate_examples(folder: Path, verify: bool = True) -> Iterator[ShardExample]:
    """Yield every example of a folder of shards, in the order of the index.

    `verify`: compare the checksum of each shard first. Raises `InputError` naming the shard when it is missing, cut
    short, changed, or holds a member that may not be there.
    """
    index = read_index(folder)
    for shard in index.shards:
        check_shard(folder, shard, checksum=verify)
        for place in range(shard.examples):
            yield read_example(folder, shard, place)


def check_shard(folder: Path, shard: ShardFile, checksum: bool) -> None:
    """Raise `InputError` unless the shard is there with the size and, if `checksum`, the SHA-256 of the index."""
    path = folder / shard.name
    if not path.is_file():
        raise InputError(f"{path}: the shard is missing; {_REMEDY}")
    size = path.stat().st_size
    if size != shard.bytes:
        cut = "cut short" if size < shard.bytes else "changed"
        raise InputError(f"{path}: the shard is {cut}: {size} bytes, the index says {shard.bytes}; {_REMEDY}")
    if checksum and file_sha256(path) != shard.sha256:
        raise InputError(f"{path}: the checksum differs from the index, so bytes have changed; {_REMEDY}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_example(folder: Path, shard: ShardFile, place: int) -> ShardExample:
    """Decode example number `place` of a shard without reading the others.

    Nothing is extracted to disk. Raises `InputError` naming the shard when the bytes there are not one whole example.
    """
    return _decode_at(folder, shard, place, decode_example)


def read_facts(folder: Path, shard: ShardFile, place: int) -> ShardExampleFacts:
    """What is known of example number `place` of a shard without decoding its images; raises as `read_example`."""
    return _decode_at(folder, shard, place, decode_facts)


def _decode_at(
    folder: Path, shard: ShardFile, place: int, decode: Callable[[str, Mapping[str, bytes]], Decoded]
) -> Decoded:
    path = folder / shard.name
    start = shard.offsets[place]
    end = shard.offsets[place + 1] if place + 1 < shard.examples else shard.bytes
    try:
        with path.open("rb") as stream:
            blocks = os.pread(stream.fileno(), end - start, start)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
    if len(blocks) != end - start:
        raise InputError(f"{path}: the shard is cut short inside example {place}; {_REMEDY}")
    try:
        return decode(*_members(blocks))
    except (InputError, tarfile.TarError, EOFError) as error:
        raise InputError(f"{path}, example {place}: {error}; {_REMEDY}") from error


def stack_examples(examples: Sequence[ShardExample], weights: Sequence[float] | None = None) -> TrainingBatch:
    """Join B examples into one batch for the policy; `weights` of the examples in the loss are 1 by default.

    Raises `InputError` when the examples have not the same cameras, frame counts and image sizes.
    """
    common_image_shapes((f"example {example.key}", example.image_shapes) for example in examples)
    cameras = sorted(examples[0].images)
    return TrainingBatch(
        t_us=np.array([example.t_us for example in examples], np.int64),
        images={camera: np.stack([example.images[camera] for example in examples]) for camera in cameras},
        image_times_us={
            camera: np.stack([example.image_times_us[camera] for example in examples]) for camera in cameras
        },
        ego_history=np.stack([example.ego_history for example in examples]),
        navigation=tuple(example.navigation for example in examples),
        target=np.stack([example.target for example in examples]),
        weight=np.asarray(weights if weights is not None else np.ones(len(examples)), np.float32),
        reasoning=tuple(texts) if any(texts := [example.reasoning for example in examples]) else None,
        route=_stacked_routes(examples),
    )


def _stacked_routes(examples: Sequence[ShardExample]) -> Float[np.ndarray, "b 20 2"] | None:
    """Routes of the examples, all NaN where one has none; None when no example has one."""
    if all(example.route is None for example in examples):
        return None
    unknown = np.full((ROUTE_POINTS, 2), np.nan, np.float32)
    return np.stack([unknown if example.route is None else example.route for example in examples])


def _members(blocks: bytes) -> tuple[str, dict[str, bytes]]:
    """Key and member bytes by suffix of one example. Raises `InputError` on a member that may not be there."""
    keys: set[str] = set()
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(blocks), mode="r:") as archive:
        for member in archive:
            key, _, suffix = member.name.partition(".")
            _check_member(member, key, suffix)
            stream = archive.extractfile(member)
            content = stream.read() if stream is not None else b""
            if len(content) != member.size or suffix in members:
                raise InputError(f"member {member.name!r} is cut short or doubled")
            keys.add(key)
            members[suffix] = content
    if len(keys) != 1:
        raise InputError(f"expected the members of one example, found keys {sorted(keys)}")
    return keys.pop(), members


def _check_member(member: tarfile.TarInfo, key: str, suffix: str) -> None:
    is_safe_name = SAFE_NAME.fullmatch(key) and all(SAFE_NAME.fullmatch(part) for part in suffix.split("."))
    if not is_safe_name or not member.isreg() or member.issparse():
        raise InputError(f"unsafe member {member.name!r} (type {member.type!r}); expected plain files <key>.<suffix>")
    if member.size > MAX_MEMBER_BYTES:
        raise InputError(f"member {member.name!r} has {member.size} bytes, more than the limit of {MAX_MEMBER_BYTES}")
