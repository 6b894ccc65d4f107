"""A disk that fills up: one line for the user, nothing lost."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from neural_sim.errors import InputError

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FullDiskError(InputError):
    """There is no space left for an artefact."""


@contextlib.contextmanager
def disk_may_fill(folder: Path) -> Iterator[None]:
    """Turn a full disk (or an exceeded quota) inside the block into `FullDiskError`; what is finished stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_DISK:
            raise
        raise FullDiskError(
            f"{folder}: no space left ({error.strerror}); what is finished is safe: free some space and run the same "
            "command again to go on"
        ) from error
