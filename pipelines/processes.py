"""Worker processes: units of work spread over the cores of one machine, with the same result for any number of them."""

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from neural_sim.errors import InputError
from neural_sim.progress import Progress

logger = logging.getLogger("roadloop")

Unit = TypeVar("Unit")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def default_workers() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, so that a killed run leaves nothing behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_units(
    work: Callable[[Unit], Result],
    units: Sequence[Unit],
    workers: int,
    title: str,
    *,
    retries: int = 0,
    on_lost: Callable[[Unit, int], Result] | None = None,
) -> Iterator[tuple[Unit, Result]]:
    """Run `work` on every unit in `workers` processes and yield (unit, result) as they finish.

    Each process computes on one thread, so that results do not depend on how many there are. `work` and the units
    travel by pickle between processes of this program, never through files. A `InputError` in a unit is raised here
    after the other running units have finished.

    A process that dies, for example killed for want of memory, takes the others with it. The units that were running
    are then tried again, one at a time so that the culprit is known, `retries` times each; `on_lost` makes the result
    of a unit that goes on dying from it and the number of attempts. Without `on_lost` the death is raised.
    """
    if not units:
        return
    with Progress(title, len(units), "unit") as progress:
        suspects = yield from _run_in_pool(work, units, min(workers, len(units)), progress)
        if suspects and on_lost is None:
            raise BrokenProcessPool(f"{title}: a worker process died; run the same command again to go on")
        for unit in suspects:
            for _ in range(retries):
                if not (yield from _run_in_pool(work, [unit], 1, progress)):
                    break
            else:
                assert on_lost is not None
                yield unit, on_lost(unit, retries + 1)
                progress.advance()


def _run_in_pool(
    work: Callable[[Unit], Result], units: Sequence[Unit], workers: int, progress: Progress
) -> Generator[tuple[Unit, Result], None, list[Unit]]:
    """Yield (unit, result) as they finish; returns the units whose processes died, again and again without them."""
    waiting, suspects = list(units), list[Unit]()
    while waiting:
        with _single_threaded_environment():
            pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker)
            running: dict[Future[Result], Unit] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < workers:
                        future = pool.submit(work, waiting[0])
                        running[future] = waiting.pop(0)
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        yield running.pop(future), result
                        progress.advance()
            except BrokenProcessPool:
                suspects += running.values()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            pool.shutdown(wait=True, cancel_futures=True)
    return suspects


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
    before: dict[str, str | None] = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
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

    The lock ends with the process, however it ends. Its file lies beside the artefact, which need not exist, and is
    deleted at the end; one that a killed process left does no harm.
    """
    artifact.parent.mkdir(parents=True, exist_ok=True)
    path = artifact.with_name(f".{artifact.name}.lock")
    while True:
        with path.open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"{artifact}: another running job writes here; wait for it or choose another --out"
                ) from error
            if _is_file_at(handle.fileno(), path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _is_file_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`: its last holder may have deleted it after it was opened here."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
