"""The one progress reporter: a bar on a terminal, a log line every 30 s elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

logger = logging.getLogger("roadloop")

LOG_INTERVAL_S = 30.0


class Progress:
    """Reports how far a long task is, at what rate, with its key figures.

    Use as a context manager and call `advance` after each unit of work.
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._started_s = self._logged_s = time.monotonic()
        self._bar = tqdm(total=total, desc=title, unit=unit, leave=False) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, amount: int = 1, **figures: float | str) -> None:
        """Count `amount` finished units; `figures` (name=value) appear beside the rate."""
        self.done += amount
        shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in figures.items()}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(amount)
        elif time.monotonic() - self._logged_s > LOG_INTERVAL_S:
            self._log(shown)

    def _log(self, shown: dict[str, str]) -> None:
        self._logged_s = time.monotonic()
        rate = self.done / (self._logged_s - self._started_s)
        left_s = (self.total - self.done) / rate if rate > 0 else float("inf")
        figures = " ".join(f"{name}={value}" for name, value in shown.items())
        logger.info(
            "%s %d/%d %s, %.3g/s, %.0f s left %s",
            self.title,
            self.done,
            self.total,
            self.unit,
            rate,
            left_s,
            figures,
        )
