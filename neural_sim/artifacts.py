"""Atomic writes: a file or folder under its final name is always whole."""

import contextlib
import ctypes
import glob
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _temporary_sibling(path)
    try:
        yield partial
        _flush_to_disk(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it replaces `path`, which is removed first if it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _temporary_sibling(path)
    partial.mkdir()
    try:
        yield partial
        flush_folder(partial)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, on the same disk, for what goes into it; it is deleted at the end.

    What a killed process left of it is deleted by `remove_partials`.
    """
    folder = _temporary_sibling(path)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises `ValueError` on NaN or infinity."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def remove_partials(artifact: Path) -> None:
    """Delete what a killed writer of the file or folder `artifact` left beside it and inside it.

    The caller makes sure that nobody is writing there now.
    """
    beside = artifact.parent.glob(f".{glob.escape(artifact.name)}.*.partial")
    inside = artifact.rglob(".*.partial") if artifact.is_dir() else ()
    for leftover in [*beside, *inside]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Wait until all that lies in `folder` is on its disk, by one call for the disk instead of one for every file."""
    if sys.platform != "linux":
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(descriptor)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
