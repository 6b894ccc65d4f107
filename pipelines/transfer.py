"""Stage `transfer`: the same evaluation in several renderers side by side (RoaD section 5.2, Table 5)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report_tables import format_number, format_signed, metric_text
from neural_sim.artifacts import atomic_file, write_json
from neural_sim.errors import InputError
from pipelines.evaluate import recorded_policies
from pipelines.reports import ReadReport, changed_baselines, read_report, refuse_incomparable

TRANSFER_FORMAT_VERSION = 1
_METRICS = ("driving_score", "incidents_per_km", "collision_at_fault", "offroad", "dist_to_gt_trajectory")
_HEADLINE = "incidents_per_km"
# What may differ between the reports: what draws the pictures.
_RENDERER = ("conditions.renderer", "conditions.nerfs")


def transfer(reports: Sequence[Path], *, out: Path) -> str:
    """Put reports that differ in `evaluate.renderer` alone side by side: a table of policies by renderers a metric.

    Says for each checkpoint whether it gained on the first one in every renderer: a gain that only the renderer of its
    training data shows is overfitting to that renderer.

    Returns:
        The tables for a person; the same lies in `out/transfer.md`, and in `out/transfer.json` for machines.

    Raises:
        InputError: fewer than two reports, two with the same renderer, no checkpoint in all of them, a checkpoint that
            is another one under the same name, or reports that differ in more than the renderer.
    """
    read = _read(reports)
    policies = _common_policies(read)
    checkpoints = [name for name in policies if name in read[0].checkpoints]
    lines = [f"# {', '.join(report.tag for report in read)}: the same evaluation", ""]
    for other in read[1:]:
        lines += [
            f"The baseline {name} did not drive alike in {read[0].tag} and {other.tag}: something besides the renderer "
            "changed." for name in changed_baselines(read[0], other)
        ]  # fmt: skip
    gains = [_gain(read, checkpoints[0], name) for name in checkpoints[1:]]
    lines += [_gain_text(gain) for gain in gains]
    for metric in _METRICS:
        lines += ["", *_table(read, policies, metric)]
    text = "\n".join(lines)
    write_json(out / "transfer.json", {
        "format_version": TRANSFER_FORMAT_VERSION,
        "reports": {report.tag: str(report.folder) for report in read},
        "policies": {
            name: {report.tag: {metric: _cell(report, name, metric) for metric in _METRICS} for report in read}
            for name in policies
        },
        "gains": gains,
    })  # fmt: skip
    with atomic_file(out / "transfer.md") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return text


def _read(folders: Sequence[Path]) -> list[ReadReport]:
    if len(folders) < 2:
        raise InputError(f"transfer got {len(folders)} report, expected at least two; evaluate with another renderer")
    read = [read_report(folder, "") for folder in folders]
    tags = [str(report.summary.get("conditions", {}).get("renderer", "splat")) for report in read]
    read = [ReadReport(**{**vars(report), "tag": tag}) for report, tag in zip(read, tags, strict=True)]
    for report, other in ((report, other) for i, report in enumerate(read) for other in read[:i]):
        if report.tag == other.tag:
            raise InputError(
                f"{other.folder} and {report.folder} both show {report.tag}; give one report a renderer, and use "
                "`roadloop compare` for two of the same"
            )
    for report in read[1:]:
        refuse_incomparable(read[0], report, but_for=_RENDERER)
    return read


def _common_policies(read: Sequence[ReadReport]) -> list[str]:
    """Policies of all reports, in the order of the first. Raises `InputError` as `transfer` says."""
    common = [name for name in read[0].summary["policies"] if all(name in each.summary["policies"] for each in read)]
    if not any(name in read[0].checkpoints for name in common):
        raise InputError(f"no checkpoint is in all of {', '.join(str(report.folder) for report in read)}")
    first = recorded_policies(read[0].folder)
    for report in read[1:]:
        recorded = recorded_policies(report.folder)
        for name in common:
            if name in first and name in recorded and first[name] != recorded[name]:
                raise InputError(f"{read[0].folder} and {report.folder}: {name} is not the same checkpoint in both")
    return common


def _cell(report: ReadReport, policy: str, metric: str) -> dict[str, Any]:
    return dict(report.summary["policies"][policy].get(metric, {"mean": None, "std": None}))


def _gain(read: Sequence[ReadReport], first: str, candidate: str) -> dict[str, Any]:
    """Difference in incidents per km of a checkpoint and the first one, in every renderer."""
    found: dict[str, float | None] = {}
    for report in read:
        before, after = (_cell(report, name, _HEADLINE)["mean"] for name in (first, candidate))
        found[report.tag] = None if before is None or after is None else after - before
    values = [value for value in found.values() if value is not None]
    alike = len(values) == len(found) and (all(v < 0 for v in values) or all(v > 0 for v in values))
    return {"baseline": first, "candidate": candidate, "metric": _HEADLINE, "differences": found, "transfers": alike}


def _gain_text(gain: dict[str, Any]) -> str:
    each = ", ".join(f"{format_signed(value, 2)} in {tag}" for tag, value in gain["differences"].items())
    head = f"{gain['candidate']} minus {gain['baseline']}: {each} incidents per km"
    if gain["transfers"]:
        better = "better" if all(value < 0 for value in gain["differences"].values()) else "worse"
        return f"{head}; {better} in every renderer."
    if all(value == 0 for value in gain["differences"].values()):
        return f"{head}; nothing that could transfer."
    return f"{head}; not the same in every renderer."


def _table(read: Sequence[ReadReport], policies: Sequence[str], metric: str) -> list[str]:
    text = metric_text(metric)
    unit = f" ({text.unit})" if text.unit else ""
    lines = [
        f"| {text.label}{unit} | {' | '.join(report.tag for report in read)} |",
        "|---" + "|---:" * len(read) + "|",
    ]
    for name in policies:
        cells = (_cell(report, name, metric) for report in read)
        lines.append(f"| {name} | {' | '.join(_cell_text(cell, text.decimals) for cell in cells)} |")
    return lines


def _cell_text(cell: dict[str, Any], decimals: int) -> str:
    if cell["mean"] is None:
        return cell.get("note") or format_number(None)
    spread = "" if cell.get("std") is None else f" ± {format_number(cell['std'], decimals)}"
    return f"{format_number(cell['mean'], decimals)}{spread}"
