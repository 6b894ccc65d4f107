"""The same work on every frame of a drive, on all cores, in memory that does not grow with the drive."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

# Frames handed out at once: enough to keep the threads busy, few enough not to show in memory.
FRAMES_AT_ONCE = 128


def over_frames(work: Callable[[int], Result], count: int) -> Iterator[Result]:
    """`work(0)` to `work(count - 1)`, in order; an exception ends it once the running ones are done.

    Threads are enough: reading, writing, decoding and checksums release the interpreter lock.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for start in range(0, count, FRAMES_AT_ONCE):
            yield from threads.map(work, range(start, min(start + FRAMES_AT_ONCE, count)))
