"""Reports read back from their folders, and whether two of them may be compared."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results import RolloutFailure, RolloutScore
from eval.tables import read_scores, read_summary
from neural_sim.errors import InputError
from pipelines.config import differences

# Rules of the statistics alone: a comparison is made anew, with those of the first report.
_HARMLESS = tuple(
    f"protocol.{name}" for name in ("bootstrap_resamples", "permutations", "confidence", "power", "bootstrap_seed")
)


@dataclass(frozen=True)
class ReadReport:
    """A report as read from its folder; `tag` tells its policies from those of another one."""

    folder: Path
    tag: str
    summary: Mapping[str, Any]
    scores: list[RolloutScore]
    failures: list[RolloutFailure]

    @property
    def checkpoints(self) -> list[str]:
        """Policies that are no baselines, in their order."""
        return [name for name in self.summary["policies"] if name not in self.summary.get("baselines", ())]

    def label(self, policy: str) -> str:
        """Name of a policy where several reports are shown together."""
        return f"{policy} ({self.tag})"

    def means(self, policy: str) -> dict[str, float | None]:
        """Mean of each metric of a policy."""
        return {name: cell["mean"] for name, cell in self.summary["policies"][policy].items()}


def read_report(folder: Path, tag: str) -> ReadReport:
    """The report in `folder`. Raises `InputError` when it is none, or holds no checkpoint."""
    summary = read_summary(folder / "summary.json")
    failures = [RolloutFailure(**failure) for failure in summary.get("failures", ())]
    report = ReadReport(folder, tag, summary, read_scores(folder / "metrics.parquet"), failures)
    if not report.checkpoints:
        raise InputError(f"{folder}: holds no checkpoint to compare; evaluate one")
    return report


def refuse_incomparable(first: ReadReport, second: ReadReport, but_for: Collection[str] = ()) -> None:
    """Raise `InputError` naming what differs in format version, scenes, rollouts, protocol or conditions.

    `but_for`: dotted fields that may differ, with all below them.
    """
    names = ("format_version", "scenes", "rollouts", "protocol", "conditions")
    old, new = ({name: report.summary.get(name) for name in names} for report in (first, second))
    allowed = (*_HARMLESS, *but_for)
    changed = [line for line in differences(old, new) if not _is_below(line.split(": ")[0], allowed)]
    if changed:
        raise InputError(
            f"{first.folder} and {second.folder} cannot be compared: {'; '.join(changed[:5])}"
            f"{f'; and {len(changed) - 5} more' if len(changed) > 5 else ''}; evaluate both the same way"
        )


def _is_below(name: str, fields: Collection[str]) -> bool:
    """Whether a dotted field is one of `fields` or lies below one."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def changed_baselines(first: ReadReport, second: ReadReport) -> list[str]:
    """Baselines of both reports whose rollouts differ: something outside the policies changed between the two."""
    common = [name for name in first.summary.get("baselines", ()) if name in second.summary.get("baselines", ())]
    return [name for name in common if first.means(name) != second.means(name)]
