"""The page of the study: written from its rows, never by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.report_tables import format_number, format_signed
from eval.results import Comparison
from neural_sim.artifacts import atomic_file
from neural_sim.errors import InputError

from .arms import ABLATION, ALTERNATIVE, BASE, MAIN
from .config import StudyConfig
from .figures import WORLD_NAMES
from .results import Row

SCORE_CLAIM, COLLISION_CLAIM = 0.41, -0.54
_MARKS = "<!-- study: table begins -->", "<!-- study: table ends -->"
_HEAD = (
    "| policy | driving score, km/incident | at-fault collisions | off-road | driven, m | incidents per km minus base |"
    " p |\n|---|---:|---:|---:|---:|---:|---:|"
)

_HOW_TO = """\
## Do it again

    {command}                                # the main four arms
    {command} --arm k_16 twice               # further arms, and what they start from
    {command} --arm all --publish docs       # all of them; this page, its table and its figures

Started again, it continues where it was stopped. `--streets FOLDER` keeps clips and scenes where further studies find
them. `{command} animate --publish docs` films the base and RoaD on one street of the true world."""


@dataclass(frozen=True)
class Origin:
    """What made the results.

    Attributes:
        command: that made them.
        machines: on which it ran.
        seconds: that all work took, s.
    """

    command: str
    machines: tuple[str, ...]
    seconds: float


def study_page(
    config: StudyConfig, rows: Sequence[Row], rivals: Sequence[Comparison], figures: Sequence[str], origin: Origin
) -> str:
    """The page in Markdown.

    Args:
        config: of the study.
        rows: its results.
        rivals: RoaD compared with the other main arms in the first world.
        figures: paths of the figures as the page links them.
        origin: what made the rows.
    """
    parts = ["# Results of the study", _conditions(config, rows, origin)]
    if not rows:
        return "\n\n".join([*parts, "No arm is finished yet."]) + "\n"
    first = [row for row in rows if row.world == rows[0].world]
    parts.append(_claims(first, rivals))
    for title, group in (("Main arms", MAIN), ("Ablations", ABLATION), ("Alternatives", ALTERNATIVE)):
        own = [row for row in first if row.group == group]
        if own:
            parts += [f"## {title}, in the {WORLD_NAMES[first[0].world]}", closed_loop_table(own)]
    parts += ["## From the reconstruction to the true world", _worlds_table(rows)]
    parts += ["## Open loop and cost", _open_loop_note(first), _open_loop_table(first)]
    parts.append(_HOW_TO.format(command=origin.command))
    parts += ["## Figures", *(f"![{Path(figure).stem}]({figure})" for figure in figures)]
    return "\n\n".join(parts) + "\n"


def closed_loop_table(rows: Sequence[Row]) -> str:
    """The closed-loop metrics of some rows as a table."""
    return "\n".join([_HEAD, *(_closed_loop_line(row) for row in rows)])


def insert_table(readme: Path, rows: Sequence[Row]) -> None:
    """Replace what stands between the study's marks in `readme` by the table of the main arms in the first world.

    Raises `InputError` when the marks are not there.
    """
    text = readme.read_text(encoding="utf-8")
    begin, end = text.find(_MARKS[0]), text.find(_MARKS[1])
    if begin < 0 or end < begin:
        raise InputError(f"{readme}: has no lines {_MARKS[0]!r} and {_MARKS[1]!r}; put them where the table shall be")
    table = closed_loop_table([row for row in rows if row.group == MAIN and row.world == rows[0].world])
    with atomic_file(readme) as partial:
        partial.write_text(f"{text[: begin + len(_MARKS[0])]}\n\n{table}\n\n{text[end:]}", encoding="utf-8")


def _conditions(config: StudyConfig, rows: Sequence[Row], origin: Origin) -> str:
    commits = ", ".join(dict.fromkeys(row.commit for row in rows if row.commit)) or "unknown"
    made_on = "".join(f"; {machine}" for machine in origin.machines)
    recorded_s = config.recordings_clip.duration_s or 20.0
    return (
        f"Written by `{origin.command}` from `results.csv`; do not edit. Commit {commits}{made_on}.\n\n"
        f"{config.training.count} streets of the synthetic town to drive and learn in, {config.held_out.count} others "
        f"to be judged in, {config.clip.duration_s or 20:g} s each. The base policy learned by behaviour cloning from "
        f"the drives on the former and on {config.recordings.count} further streets of {recorded_s:g} s. "
        f"{config.evaluate.rollouts_per_scene} rollouts per street, the same seeds for every policy. All fine-tuning "
        "starts from the base and, but for the ablation of it, takes the same number of steps "
        f"({config.finetune.steps}) with the same learning rate ({config.finetune.learning_rate:g}). A rollout ends at "
        f"its first incident, and is not counted farther than {config.evaluate.protocol.max_distance_to_log_m} m from "
        "the log. Intervals are over scenes; the difference to the base is paired, its p-value of swapping scenes. "
        f"All of it took {origin.seconds / 3600:.1f} h."
    )


def _claims(rows: Sequence[Row], rivals: Sequence[Comparison]) -> str:
    """What the paper claims, and what was found."""
    road = next((row for row in rows if row.arm == "road"), None)
    base = next((row for row in rows if row.arm == BASE), None)
    if road is None or base is None:
        return "RoaD and the base are not both finished yet."
    lines = [
        f"- Driving score, RoaD against base: {_percent(road.score_gain)} (the paper: {_percent(SCORE_CLAIM)}).",
        f"- At-fault collisions: {_percent(road.collision_change)} (the paper: {_percent(COLLISION_CLAIM)}).",
        f"- The intervals of the driving scores {_touching(base.driving_score_high, road.driving_score_low)}, those of "
        f"the collisions {_touching(road.collision_at_fault_high, base.collision_at_fault_low)}.",
    ]
    for item in rivals:
        found = item.headline
        if found.difference is not None:
            ends = " to ".join(format_signed(end, 2) for end in (found.low, found.high))
            lines.append(
                f"- RoaD minus {item.baseline}: {format_signed(found.difference, 2)} incidents per km, "
                f"interval {ends}, p = {format_number(found.p_value, 3)}."
            )
    return "\n".join(lines)


def _touching(end_of_lower: float | None, start_of_upper: float | None) -> str:
    if end_of_lower is None or start_of_upper is None:
        return "are open at one end"
    return "do not touch" if end_of_lower < start_of_upper else "touch"


def _closed_loop_line(row: Row) -> str:
    score = _with_interval(row.driving_score, row.driving_score_low, row.driving_score_high, 3)
    collisions = _with_interval(row.collision_at_fault, row.collision_at_fault_low, row.collision_at_fault_high, 3)
    against = _with_interval(row.difference, row.difference_low, row.difference_high, 2, signed=True)
    cells = (
        row.label, score, collisions, format_number(row.offroad), format_number(row.dist_traveled_m, 1), against,
        format_number(row.p_value, 4),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _with_interval(
    value: float | None, low: float | None, high: float | None, decimals: int, signed: bool = False
) -> str:
    shown = format_signed if signed else format_number
    if low is None and high is None:
        return shown(value, decimals)
    ends = (shown(low, decimals), "open" if high is None else shown(high, decimals))
    return f"{shown(value, decimals)} ({ends[0]} to {ends[1]})"


def _worlds_table(rows: Sequence[Row]) -> str:
    worlds = {row.world: row.scenes for row in rows}
    places = {(row.arm, row.world): row for row in rows}
    arms = {row.arm: row.label for row in rows if row.group == MAIN}
    titles = [f"driving score, {WORLD_NAMES[world]}, {count} streets | against base" for world, count in worlds.items()]
    lines = [f"| policy | {' | '.join(titles)} |", "|---|" + "---:|---:|" * len(worlds)]
    for arm, label in arms.items():
        cells = [label]
        for world in worlds:
            row = places.get((arm, world))
            cells += [format_number(row.driving_score), _percent(row.score_gain)] if row else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _open_loop_note(rows: Sequence[Row]) -> str:
    by_arm = {row.arm: row for row in rows}
    base, road = by_arm.get(BASE), by_arm.get("road")
    if base is None or road is None or base.ade_m is None or road.ade_m is None:
        return "Open loop, along the recorded drive: displacement of the plans from what the expert did next."
    better = "the base is as good as RoaD or better" if base.ade_m <= road.ade_m else "the base is worse than RoaD"
    return f"Open loop, along the recorded drive, {better}: ADE {base.ade_m:.2f} m against {road.ade_m:.2f} m."


def _open_loop_table(rows: Sequence[Row]) -> str:
    lines = ["| policy | minADE 6.4 s, m | ADE 6.4 s, m | windows learned | time, min |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        cells = (
            row.label, format_number(row.min_ade_m, 2), format_number(row.ade_m, 2), str(row.examples or ""),
            format_number((row.wall_s or 0.0) / 60, 1),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return format_number(None) if value is None else f"{value:+.0%}".replace("-", "\u2212")
