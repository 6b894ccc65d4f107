"""Says which process the others wait for, and what it was doing, instead of a silent hang."""

import json
import logging
import os
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from pipelines.training.ranks import Ranks

logger = logging.getLogger("roadloop")

PHASES = ("start", "data", "forward and backward", "optimiser step", "average", "save", "evaluate", "export")
"""What a process does, in order within a step; in `data` and `start` it waits for no other process."""


@dataclass(frozen=True)
class Beat:
    """What is known of one process.

    Attributes:
        name: rank, host and process id.
        step: optimiser step it is in, from 1; 0 before the first.
        phase: index into `PHASES`.
        in_phase_s: how long it has been there, s.
        silent_s: how long ago its last sign of life came, s.
    """

    name: str
    step: int
    phase: int
    in_phase_s: float
    silent_s: float

    def __str__(self) -> str:
        return f"{self.name} in {PHASES[self.phase]!r} of step {self.step}"


def stall_report(beats: list[Beat], stall_s: float) -> str | None:
    """What is wrong when nothing has moved for `stall_s` seconds, one line; None when all is well.

    A process that gives no sign of life is named first. Otherwise the ones that are least far in step and phase: the
    others wait for them in a collective. An evaluation takes as long as it takes, while the others wait.
    """
    silent = [beat for beat in beats if beat.silent_s > stall_s]
    if silent:
        longest = max(beat.silent_s for beat in silent)
        return f"no sign of life for {longest:.0f} s from {_listed(silent)}; it is stopped, or its host is unreachable"
    if any(PHASES[beat.phase] == "evaluate" for beat in beats):
        return None
    waited_s = min(beat.in_phase_s for beat in beats)
    if waited_s <= stall_s:
        return None
    least = min((beat.step, beat.phase) for beat in beats)
    behind = [beat for beat in beats if (beat.step, beat.phase) == least]
    if len(behind) == len(beats):
        return f"no progress for {waited_s:.0f} s: every process is in {PHASES[least[1]]!r} of step {least[0]}"
    return f"no progress for {waited_s:.0f} s: the others wait for {_listed(behind)}"


def _listed(beats: list[Beat]) -> str:
    return ", ".join(map(str, beats[:4])) + (f" and {len(beats) - 4} more" if len(beats) > 4 else "")


class Heartbeat:
    """Tells the other processes what this one does; the first one watches them all.

    Use as a context manager and call `enter` at every phase, which costs nothing.
    """

    def __init__(self, ranks: Ranks, stall_s: float) -> None:
        self._ranks, self._stall_s = ranks, stall_s
        self._interval_s = min(stall_s / 4, 5.0)
        # Its own connection: a store serves one thread at a time, and the main one may wait in it.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = TCPStore(address, port, is_master=False, wait_for_workers=False)
        self._place = (0, 0, time.monotonic())
        self._count = 0
        self._heard: dict[int, tuple[int, float]] = {}
        self._said_s = -stall_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(self._interval_s)

    def enter(self, step: int, phase: str) -> None:
        """This process is now in `phase` (one of `PHASES`) of `step` (from 1)."""
        self._place = (step, PHASES.index(phase), time.monotonic())

    def _run(self) -> None:
        try:
            while not self._ended.wait(self._interval_s):
                self._beat()
                if self._ranks.is_first:
                    self._watch()
        except RuntimeError:
            # The store goes away with the process that serves it, whose end the launcher reports.
            return

    def _beat(self) -> None:
        self._count += 1
        step, phase, since_s = self._place
        beat = [self._count, self._ranks.name, step, phase, time.monotonic() - since_s]
        self._store.set(f"heartbeat/{self._ranks.rank}", json.dumps(beat))

    def _watch(self) -> None:
        keys = [f"heartbeat/{rank}" for rank in range(self._ranks.world_size)]
        if not self._store.check(keys):
            return
        now_s = time.monotonic()
        report = stall_report([self._heard_of(rank, key, now_s) for rank, key in enumerate(keys)], self._stall_s)
        if report is not None and now_s - self._said_s >= self._stall_s:
            self._said_s = now_s
            logger.warning("training hangs: %s", report)

    def _heard_of(self, rank: int, key: str, now_s: float) -> Beat:
        """Ages are measured on this machine's clock alone."""
        count, name, step, phase, in_phase_s = json.loads(self._store.get(key))
        before = self._heard.get(rank)
        if before is None or before[0] != count:
            self._heard[rank] = before = (count, now_s)
        silent_s = now_s - before[1]
        return Beat(name, step, phase, in_phase_s + silent_s, silent_s)
