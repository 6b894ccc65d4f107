"""How long each unit of work of a study took, and on which machine."""

import json
import os
import platform
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Timings:
    """The file `timings.jsonl` of a study: a line for each time that a unit of work was taken up."""

    path: Path

    @contextmanager
    def measure(self, unit: str) -> Iterator[None]:
        """Note how long the block took, however it ended."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            wall_s = round(time.perf_counter() - started_s, 2)
            entry = {"unit": unit, "wall_s": wall_s, "load": round(os.getloadavg()[0], 2), "machine": machine()}
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def seconds(self, units: Collection[str] | None = None) -> float:
        """Time that these units, or all, took together, interrupted attempts included, s."""
        return sum(entry["wall_s"] for entry in self._entries() if units is None or entry["unit"] in units)

    def machines(self) -> list[str]:
        """The machines that worked on the study, each once."""
        return list(dict.fromkeys(entry["machine"] for entry in self._entries()))

    def _entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


@cache
def machine() -> str:
    """This machine in words: processor, cores, memory."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {(models or [platform.machine()])[0]}, {memory_gib:.0f} GiB"
