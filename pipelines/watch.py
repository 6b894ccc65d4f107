"""Evaluation of checkpoints as they appear: one report that grows with a training run."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.training.evaluation import finished_checkpoints

logger = logging.getLogger("roadloop")

POLL_INTERVAL_S = 5.0


def watch(
    folder: Path,
    policies: Sequence[Path],
    evaluate: Callable[[Sequence[Path]], Path],
    *,
    until: int = 0,
    poll_interval_s: float = POLL_INTERVAL_S,
    wait: Callable[[float], None] = time.sleep,
) -> Path | None:
    """Evaluate `policies` and each checkpoint that appears in `folder`, all in one report that grows.

    Args:
        folder: where checkpoints appear; it need not exist yet.
        policies: checkpoints that come first in the report, the first is compared with.
        evaluate: evaluates checkpoints and returns the report; those it has done before cost nothing.
        until: stop once so many checkpoints of `folder` are in the report; 0 for never.
        poll_interval_s: time between two looks, s.
        wait: sleeps for so many seconds.

    Returns:
        The report; None when it was stopped with Ctrl-C before there was a whole one.
    """
    seen: list[Path] = []
    report: Path | None = None
    try:
        while not until or len(seen) < until:
            new = [path for path in finished_checkpoints(folder) if path not in seen]
            new = new[: until - len(seen) if until else None]
            if new:
                seen += new
                logger.info("watch: evaluating %s from %s", ", ".join(path.name for path in new), folder)
                report = evaluate([*policies, *seen])
            else:
                wait(poll_interval_s)
    except KeyboardInterrupt:
        logger.info("watch: stopped; the same command continues")
    return report if report is not None and (report / "summary.json").exists() else None
