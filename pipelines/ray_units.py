"""Units of work on a Ray cluster: the same results as `pipelines.processes`, on many machines.

Each worker is a Ray actor that keeps policy and scene in memory. It writes into a folder of its own and sends the files
back, so that only the driver writes to the artefact and a node that comes back from the dead cannot. A lost node costs
the units that were running on it, which other workers then do.
"""

import logging
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from neural_sim.artifacts import atomic_file
from neural_sim.errors import InputError
from neural_sim.progress import Progress
from pipelines.execution import ExecutionConfig
from pipelines.processes import THREAD_VARIABLES
from pipelines.shards.writer import UNIT_SUFFIX

logger = logging.getLogger("roadloop")

_LOOK_S = 5.0
_CONNECT_S = 10.0


class PlacedUnit(Protocol):
    """A unit that belongs to a scene and writes into a folder; a frozen dataclass."""

    @property
    def scene(self) -> Path:
        """The scene; a worker keeps the last ones in memory."""
        ...

    @property
    def out(self) -> Path:
        """Where the unit writes."""
        ...


Unit = TypeVar("Unit", bound=PlacedUnit)
Result = TypeVar("Result")
Files = list[tuple[str, bytes]]


class UnitWorker:
    """What runs in a Ray actor."""

    def __init__(self) -> None:
        """Compute on one thread, so that results do not depend on where a unit runs."""
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
        import torch

        torch.set_num_threads(1)

    def ready(self) -> str:
        """Name of the machine."""
        return os.uname().nodename

    def run(self, work: Callable[[Any], Any], unit: Any) -> tuple[Any, Files]:
        """Result of `work` on `unit`, and the files that it wrote, by path below `unit.out`."""
        with tempfile.TemporaryDirectory(prefix="roadloop-unit-") as folder:
            result = work(replace(unit, out=Path(folder)))
            paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            return result, [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths]


def run_units_on_ray(
    work: Callable[[Unit], Result],
    units: Sequence[Unit],
    workers: int,
    title: str,
    execution: ExecutionConfig,
    on_lost: Callable[[Unit, int], Result],
) -> Iterator[tuple[Unit, Result]]:
    """Run `work` on every unit in workers of a Ray cluster and yield (unit, result) as they finish.

    Args:
        work: a function of an importable module; it writes below `unit.out` and nowhere else.
        units: the units; each goes to a worker that has its scene in memory, if there is one without work.
        workers: how many; 0 for as many as the cluster has room for.
        title: for the progress bar.
        execution: cluster, share of it for each worker, retries.
        on_lost: result of a unit whose workers were lost `execution.retries` + 1 times.

    Raises:
        InputError: Ray is not installed, there is no cluster, it has no room for a worker, all its nodes are gone for
            `execution.patience_s`, or a unit raised one.
    """
    if not units:
        return
    attempts: Counter[int] = Counter()
    waiting = list(range(len(units)))
    with _cluster(execution), _Crew(execution, workers, len(units)) as crew, Progress(title, len(units), "unit") as bar:
        while waiting or crew.num_busy:
            crew.assign(work, units, waiting)
            for number, answer in crew.finished():
                if isinstance(answer, _Lost):
                    attempts[number] += 1
                    logger.warning("%s: a worker was lost (%s); its unit is tried again", title, answer.reason)
                    if attempts[number] <= execution.retries:
                        waiting.append(number)
                        continue
                    yield units[number], on_lost(units[number], attempts[number])
                else:
                    result, files = answer
                    _install(files, units[number].out)
                    yield units[number], result
                bar.advance()


def _install(files: Files, out: Path) -> None:
    """Write the files of a unit under `out`, each atomically, the record that says it is whole last."""
    for name, content in sorted(files, key=lambda file: file[0].endswith(UNIT_SUFFIX)):
        with atomic_file(out / name) as partial:
            partial.write_bytes(content)


@contextmanager
def _cluster(execution: ExecutionConfig) -> Iterator[None]:
    """A connection to the cluster; one that is open already is used and stays open."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "execution.engine is ray, but Ray is not installed; install the extra `ray` of roadloop"
        ) from error
    if ray.is_initialized():
        yield
        return
    try:
        _require_listener(execution.address)
        ray.init(address=execution.address, logging_level=logging.WARNING)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"execution.address {execution.address!r}: no Ray cluster there ({reason}); start one with `ray start "
            "--head`, or pass `local`"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raise `OSError` at once when nothing listens at HOST:PORT; Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), _CONNECT_S).close()


@dataclass(frozen=True)
class _Lost:
    """A worker that will not answer."""

    reason: str


class _Crew:
    """The workers: actors that are starting, idle or at work."""

    def __init__(self, execution: ExecutionConfig, workers: int, units: int) -> None:
        self._execution = execution
        self._size = min(workers or self._room(), units)
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, int]] = {}
        self._scenes: dict[Any, Path] = {}
        self._alone_since_s: float | None = None
        self._failed_starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        for actor in [*self._starting.values(), *self._idle, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)

    @property
    def num_busy(self) -> int:
        """Units that are being worked on."""
        return len(self._busy)

    def assign(self, work: Callable[[Unit], Any], units: Sequence[Unit], waiting: list[int]) -> None:
        """Start missing workers and give waiting units to idle ones; what is given is taken off `waiting`."""
        while len(self._starting) + len(self._idle) + len(self._busy) < self._size:
            actor = self._new_actor()
            self._starting[actor.ready.remote()] = actor
        while waiting and self._idle:
            actor = self._idle.pop(0)
            number = self._choose(self._scenes.get(actor), [unit.scene for unit in units], waiting)
            waiting.remove(number)
            self._scenes[actor] = units[number].scene
            self._busy[actor.run.remote(work, units[number])] = (actor, number)

    def finished(self) -> Iterator[tuple[int, tuple[Any, Files] | _Lost]]:
        """Wait for something to happen, and yield the units that were answered, or whose worker was lost."""
        import ray
        from ray.exceptions import RayError, RaySystemError, RayTaskError

        ready, _ = ray.wait([*self._starting, *self._busy], num_returns=1, timeout=_LOOK_S)
        self._require_someone()
        for reference in ready:
            actor, number = self._busy.pop(reference, (self._starting.pop(reference, None), None))
            try:
                answer = ray.get(reference)
                self._idle.append(actor)
                self._failed_starts = 0
            except RayTaskError as error:
                raise error.cause from error
            except (RaySystemError, RayError) as error:
                self._scenes.pop(actor, None)
                answer = _Lost(" ".join(str(error).split()))
            if number is not None:
                yield number, answer
            elif isinstance(answer, _Lost):
                self._count_failed_start(answer.reason)

    def _count_failed_start(self, reason: str) -> None:
        """Raise `InputError` when workers die again and again before they are ready."""
        self._failed_starts += 1
        if self._failed_starts > self._size + self._execution.retries:
            raise InputError(f"Ray workers do not start: {reason}; is roadloop installed on every node?")

    def _choose(self, scene: Path | None, scenes: Sequence[Path], waiting: Sequence[int]) -> int:
        """A unit of the scene that the worker has, or else of the scene that the fewest others have."""
        held = Counter(self._scenes.values())
        return min(waiting, key=lambda number: (scenes[number] != scene, held[scenes[number]], number))

    def _new_actor(self) -> Any:
        import ray

        options = {"num_cpus": self._execution.cpus_per_worker, "num_gpus": self._execution.gpus_per_worker}
        return ray.remote(UnitWorker).options(max_restarts=0, scheduling_strategy="SPREAD", **options).remote()

    def _room(self) -> int:
        """How many workers the cluster holds. Raises `InputError` when it is none."""
        import ray

        resources, wanted = ray.cluster_resources(), self._execution
        room = resources.get("CPU", 0.0) / wanted.cpus_per_worker
        if wanted.gpus_per_worker:
            room = min(room, resources.get("GPU", 0.0) / wanted.gpus_per_worker)
        if room < 1:
            raise InputError(
                f"the Ray cluster has {resources.get('CPU', 0.0):g} processors and {resources.get('GPU', 0.0):g} GPUs, "
                f"too little for a worker of {wanted.cpus_per_worker:g} and {wanted.gpus_per_worker:g}; lower "
                "execution.cpus_per_worker or execution.gpus_per_worker"
            )
        return int(room)

    def _require_someone(self) -> None:
        """Raise `InputError` when for a long time no worker has come up."""
        if self._idle or self._busy:
            self._alone_since_s = None
            return
        now_s = time.monotonic()
        self._alone_since_s = self._alone_since_s or now_s
        if now_s - self._alone_since_s > self._execution.patience_s:
            raise InputError(
                f"no Ray worker for {self._execution.patience_s:g} s: nodes are gone or busy; run the same command "
                "again once they are back, what is finished is safe"
            )
