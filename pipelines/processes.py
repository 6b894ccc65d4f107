"""Worker processes: units of work spread over the cores of one machine, with the same result for any number of them."""

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from neural_sim.errors import InputError
from neural_sim.progress import Progress

logger = logging.getLogger("roadloop")

Unit = TypeVar("Unit")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def default_workers() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, so that a killed run leaves nothing behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_units(
    work: Callable[[Unit], Result], units: Sequence[Unit], workers: int, title: str
) -> Iterator[tuple[Unit, Result]]:
    """Run `work` on every unit in `workers` processes and yield (unit, result) as they finish.

    Each process computes on one thread, so that results do not depend on how many there are. `work` and the units
    travel by pickle between processes of this program, never through files. A `InputError` in a unit is raised here
    after the other running units have finished.
    """
    if not units:
        return
    with _single_threaded_environment():
        pool = ProcessPoolExecutor(min(workers, len(units)), get_context("spawn"), initializer=_start_worker)
        with pool, Progress(title, len(units), "unit") as progress:
            futures: dict[Future[Result], Unit] = {pool.submit(work, unit): unit for unit in units}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
                    progress.advance()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _start_worker() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("roadloop").setLevel(logging.WARNING)
    import torch

    torch.set_num_threads(1)


@contextlib.contextmanager
def _single_threaded_environment() -> Iterator[None]:
    """Children started inside inherit thread limits of one."""
    before: dict[str, str | None] = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def exclusive(artifact: Path) -> Iterator[None]:
    """Hold a file or folder for this process; raises `InputError` when another running job holds it.

    The lock ends with the process, however it ends. It lies beside the artefact, which need not exist.
    """
    artifact.parent.mkdir(parents=True, exist_ok=True)
    handle: Any = artifact.with_name(f".{artifact.name}.lock").open("a+")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{artifact}: another running job writes here; wait for it or choose another --out"
            ) from error
        yield
