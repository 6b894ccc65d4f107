"""Stage `compare`: two reports made at different times, compared on the same scenes and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from eval.aggregate import aggregate
from eval.protocol import EvaluationProtocol
from eval.report_tables import difference_row, format_number, format_signed, pairs_text
from eval.results import Comparison, RolloutFailure, RolloutScore, Summary
from eval.tables import comparison_json, read_scores, read_summary
from eval.verdict import comparison_line
from neural_sim.artifacts import atomic_file, write_json
from neural_sim.errors import InputError
from pipelines.config import differences

COMPARISON_FORMAT_VERSION = 1


@dataclass(frozen=True)
class _Report:
    """A report as read from its folder; `tag` tells its policies from those of the other one."""

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
        """Name of a policy where both reports are shown together."""
        return f"{policy} ({self.tag})"


def compare(first: Path, second: Path, *, out: Path) -> str:
    """Compare every checkpoint of the report `second` with the last checkpoint of the report `first`.

    Baselines that both hold are compared with themselves: they must drive alike, or something outside the policies
    changed between the reports, which is said.

    Returns:
        The comparison for a person; the same lies in `out/comparison.md`, and in `out/comparison.json` for machines.

    Raises:
        InputError: a folder is no report, or the two differ in format version, scenes, rollouts, protocol or anything
            else that `conditions` of their summaries names.
    """
    same_name = first.resolve().name == second.resolve().name
    labels = ("first", "second") if same_name else (first.resolve().name, second.resolve().name)
    reports = _read(first, labels[0]), _read(second, labels[1])
    _refuse_incomparable(*reports)
    summary = _joined(*reports)
    wanted = {reports[1].label(name) for name in reports[1].checkpoints}
    shown = [item for item in summary.comparisons if item.candidate in wanted]
    changed = _changed_baselines(*reports)
    text = _text(reports, shown, changed, summary.protocol.confidence)
    write_json(out / "comparison.json", {
        "format_version": COMPARISON_FORMAT_VERSION,
        "reports": [str(report.folder) for report in reports],
        "comparisons": [comparison_json(item) for item in shown],
        "changed_baselines": changed,
    })  # fmt: skip
    with atomic_file(out / "comparison.md") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return text


def _read(folder: Path, tag: str) -> _Report:
    summary = read_summary(folder / "summary.json")
    failures = [RolloutFailure(**failure) for failure in summary.get("failures", ())]
    report = _Report(folder, tag, summary, read_scores(folder / "metrics.parquet"), failures)
    if not report.checkpoints:
        raise InputError(f"{folder}: holds no checkpoint to compare; evaluate one")
    return report


def _refuse_incomparable(first: _Report, second: _Report) -> None:
    names = ("format_version", "scenes", "rollouts", "protocol", "conditions")
    old, new = ({name: report.summary.get(name) for name in names} for report in (first, second))
    changed = [line for line in differences(old, new) if line.split(": ")[0] not in _HARMLESS]
    if changed:
        raise InputError(
            f"{first.folder} and {second.folder} cannot be compared: {'; '.join(changed[:5])}"
            f"{f'; and {len(changed) - 5} more' if len(changed) > 5 else ''}; evaluate both the same way"
        )


# Rules of the statistics alone: the comparison is made anew, with those of the first report.
_HARMLESS = tuple(
    f"protocol.{name}" for name in ("bootstrap_resamples", "permutations", "confidence", "power", "bootstrap_seed")
)


def _joined(first: _Report, second: _Report) -> Summary:
    """Both reports aggregated as one, the last checkpoint of the first report in front."""
    reports = first, second
    given = first.summary["protocol"]
    known = {item.name for item in fields(EvaluationProtocol)}
    protocol = EvaluationProtocol(**{name: value for name, value in given.items() if name in known})
    scores = [replace(score, policy=report.label(score.policy)) for report in reports for score in report.scores]
    failures = [replace(item, policy=report.label(item.policy)) for report in reports for item in report.failures]
    reference = first.label(first.checkpoints[-1])
    ordered = [reference, *(report.label(name) for report in reports for name in report.summary["policies"])]
    return aggregate(scores, protocol, failures, policies=ordered)


def _changed_baselines(first: _Report, second: _Report) -> list[str]:
    """Baselines of both reports whose rollouts differ."""
    common = [name for name in first.summary.get("baselines", ()) if name in second.summary.get("baselines", ())]
    means = [{name: _means(report, name) for name in common} for report in (first, second)]
    return [name for name in common if means[0][name] != means[1][name]]


def _means(report: _Report, policy: str) -> dict[str, float | None]:
    return {name: cell["mean"] for name, cell in report.summary["policies"][policy].items()}


def _text(
    reports: tuple[_Report, _Report], shown: Sequence[Comparison], changed: Sequence[str], confidence: float
) -> str:
    lines = [f"# {reports[1].folder} compared with {reports[0].folder}", ""]
    lines += [
        f"The baseline {name} did not drive alike in both: something outside the policies changed, "
        "so a difference need not be the policy's." for name in changed
    ]  # fmt: skip
    for item in shown:
        lines += [
            f"{comparison_line(item, confidence)}.",
            "",
            *_table(item, confidence),
            "",
            f"{pairs_text(item)}.",
            "",
        ]
    return "\n".join(lines).rstrip()


def _table(item: Comparison, confidence: float) -> list[str]:
    lines = ["| metric | before | after | difference | interval | p |", "|---|---:|---:|---:|---:|---:|"]
    for difference in item.differences.values():
        row = difference_row(difference, confidence)
        value, decimals = row["difference"], row["text"].decimals
        interval = " to ".join(format_signed(end, decimals) for end in (value.low, value.high))
        lines.append(
            f"| {row['text'].label} | {format_number(value.baseline, decimals)} | "
            f"{format_number(value.candidate, decimals)} | {format_signed(value.difference, decimals)} | {interval} | "
            f"{format_number(value.p_value, 3)} |"
        )
    return lines
