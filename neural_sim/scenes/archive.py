"""The `.usdz` container: a stored zip with 64-byte aligned members, written reproducibly and read with suspicion."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from neural_sim.artifacts import atomic_file
from neural_sim.errors import InputError

# Members of a zip without the 64-bit extension, which USD readers do not accept.
MAX_MEMBER_BYTES = 2**32 - 1
_ALIGNMENT_BYTES = 64
_LOCAL_HEADER_BYTES = 30
_EXTRA_HEADER_BYTES = 4
# Extra-field id that USD's own zip writer uses for its padding.
_PADDING_ID = 0x1986
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)


def write_archive(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write `members` (name, content) in order, atomically; equal members give equal bytes.

    Raises `InputError` when a member, or the place where it starts, is beyond 4 GiB.
    """
    with atomic_file(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for name, content in members:
            start = archive.start_dir
            if len(content) > MAX_MEMBER_BYTES or start > MAX_MEMBER_BYTES:
                raise InputError(
                    f"{path}: member {name} ({len(content)} bytes from byte {start}) passes the 4 GiB of a .usdz; "
                    "reconstruct with fewer Gaussians"
                )
            archive.writestr(_member_info(name, start), content)


def member_names(path: Path) -> list[str]:
    """Names of the members of the archive at `path`. Raises `InputError` as `read_members` does."""
    with _opened(path) as archive:
        return archive.namelist()


def read_members(path: Path, names: Iterable[str], maker: str) -> dict[str, bytes]:
    """Contents of the members `names` of the archive at `path`.

    Raises `InputError` when the file is missing, not a zip or damaged, when any member's name leaves the archive, is
    repeated, compressed, encrypted or too large, or when one of `names` is missing; `maker` says what would write it.
    """
    with _opened(path) as archive:
        present = set(archive.namelist())
        for name in names:
            if name not in present:
                raise InputError(f"{path}: member {name} is missing; {maker}")
        return {name: archive.read(name) for name in names}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise InputError(f"{path}: no such scene file; make one with `roadloop reconstruct`")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: not a whole .usdz (zip) file ({error}); write or download it again") from error


def _member_info(name: str, start: int) -> zipfile.ZipInfo:
    """Header of a stored member whose content starts on a multiple of 64 bytes, as the USDZ format requires."""
    info = zipfile.ZipInfo(name, _FIXED_DATE)
    info.compress_type = zipfile.ZIP_STORED
    info.external_attr = 0o644 << 16
    info.create_system = 3
    content_start = start + _LOCAL_HEADER_BYTES + len(name.encode()) + _EXTRA_HEADER_BYTES
    padding = -content_start % _ALIGNMENT_BYTES
    info.extra = _PADDING_ID.to_bytes(2, "little") + padding.to_bytes(2, "little") + bytes(padding)
    return info


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    seen: set[str] = set()
    for info in archive.infolist():
        problem = _member_problem(info)
        if info.filename in seen:
            problem = "appears twice"
        if problem:
            raise InputError(f"{path}: member {info.filename!r} {problem}; do not trust this file, get it again")
        seen.add(info.filename)


def _member_problem(info: zipfile.ZipInfo) -> str:
    name = PurePosixPath(info.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in info.filename or ":" in info.filename:
        return "leaves the archive"
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        return "is compressed, but .usdz members are stored"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.file_size > MAX_MEMBER_BYTES:
        return f"has {info.file_size} bytes, more than the {MAX_MEMBER_BYTES} allowed"
    return ""
