"""Stage `compare`: two reports made at different times, compared on the same scenes and seeds."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from eval.aggregate import aggregate
from eval.protocol import EvaluationProtocol
from eval.report_tables import difference_row, format_number, format_signed, pairs_text
from eval.results import Comparison, Summary
from eval.tables import comparison_json
from eval.verdict import comparison_line
from neural_sim.artifacts import atomic_file, write_json
from pipelines.reports import ReadReport, changed_baselines, read_report, refuse_incomparable

COMPARISON_FORMAT_VERSION = 1


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
    reports = read_report(first, labels[0]), read_report(second, labels[1])
    refuse_incomparable(*reports)
    summary = _joined(*reports)
    wanted = {reports[1].label(name) for name in reports[1].checkpoints}
    shown = [item for item in summary.comparisons if item.candidate in wanted]
    changed = changed_baselines(*reports)
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


def _joined(first: ReadReport, second: ReadReport) -> Summary:
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


def _text(
    reports: tuple[ReadReport, ReadReport], shown: Sequence[Comparison], changed: Sequence[str], confidence: float
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
