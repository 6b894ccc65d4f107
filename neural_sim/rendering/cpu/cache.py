"""Keeps the compiled kernels on disk in step with their sources.

Numba recompiles a cached kernel when its own file changes, but not when a kernel or constant that it inlines from
another file does; the old machine code would then go on running beside the new.
"""

import contextlib
import hashlib
from pathlib import Path

from neural_sim.artifacts import atomic_file

KERNELS = Path(__file__).parent
SHARED = ("views.py", "harmonics.py", "motion.py")
SOURCES = (*sorted(KERNELS.glob("*.py")), *(KERNELS.parent / name for name in SHARED))


def discard_stale_kernels(sources: tuple[Path, ...] = SOURCES, cache: Path = KERNELS / "__pycache__") -> bool:
    """Delete numba's files in `cache` if any of `sources` changed since they were made; true if so.

    A cache that cannot be written is left alone: numba then keeps its files elsewhere or compiles anew.
    """
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    stamp = cache / "kernels.sha256"
    if stamp.exists() and stamp.read_text() == digest:
        return False
    with contextlib.suppress(OSError):
        for pattern in ("*.nbi", "*.nbc"):
            for stale in cache.glob(pattern):
                stale.unlink(missing_ok=True)
        with atomic_file(stamp) as partial:
            partial.write_text(digest)
    return True
