"""Closed-loop evaluation of the checkpoints of a training run: one report that grows, and the best of them marked.

The trainer does it between two steps (`roadloop finetune --evaluate-every`), a watcher beside it or on another machine
(`roadloop evaluate --watch`). Both call `report_on_checkpoints`.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from neural_sim.errors import InputError
from pipelines.config import CheckpointEvaluation
from pipelines.shards.example import safe_name
from pipelines.training.checkpoints import BestCheckpoint, mark_best, step_name
from pipelines.training.job import TrainingJob
from vla.checkpoint import POLICY_FILE

logger = logging.getLogger("roadloop")

_STEP_NAME = re.compile(r"step_(\d+)")


def step_of(name: str) -> int | None:
    """Steps behind a checkpoint that a trainer saved on the way, from its name; None for other names."""
    found = _STEP_NAME.fullmatch(name)
    return int(found[1]) if found else None


def finished_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders directly in `folder` that are whole, in the order of their names, numbers by value.

    A checkpoint appears under its final name only when it is whole; names that begin with a dot are being written.
    """
    found = [path.parent for path in folder.glob(f"*/{POLICY_FILE}") if not path.parent.name.startswith(".")]
    return sorted(found, key=_natural_order)


def report_on_checkpoints(
    first: Sequence[Path],
    saved: Sequence[Path],
    evaluation: CheckpointEvaluation,
    *,
    out: Path,
    device: str,
    mark_in: Path | None = None,
    steps: Mapping[str, int] | None = None,
    resume: bool = True,
) -> Path:
    """Evaluate checkpoints in one report, and mark the best of them.

    Args:
        first: what comes before the run in the report, the policy that it started from; step 0.
        saved: checkpoints of the run. Those that the report has from earlier and that are gone stay in it.
        evaluation: scenes, protocol, and what is best.
        out: folder of the report.
        device: "auto", "cpu" or "cuda".
        mark_in: folder of checkpoints in which a trainer keeps the best; None to mark none.
        steps: steps behind checkpoints whose names do not tell, by name.
        resume: grow the report that is there.

    Returns:
        `out`.

    Raises:
        InputError: as `pipelines.evaluate.evaluate`, or a metric that does not rank.
    """
    # Rendering and scoring are imported where they are needed: a trainer that does not evaluate starts without them.
    from eval.learning import require_metric
    from eval.results import TrainingProgress
    from pipelines.evaluate import evaluate
    from pipelines.units import read_scene_ids

    require_metric(evaluation.best_by)
    saved = _with_recorded(first, saved, out if resume else None)
    known = dict.fromkeys(_names(first), 0) | {name: step for name in _names(saved) if (step := step_of(name))}
    held_out = tuple(read_scene_ids(evaluation.held_out)) if evaluation.held_out else ()
    report = evaluate(
        [*first, *saved], [*evaluation.scenes, *evaluation.held_out], out=out, config=evaluation.config,
        simulation=evaluation.simulation, seed=evaluation.seed, device=device, workers=evaluation.workers,
        resume=resume, progress=TrainingProgress({**known, **(steps or {})}, held_out, evaluation.best_by),
    )  # fmt: skip
    if mark_in is not None:
        _mark_best(report, mark_in)
    return report


def check_evaluation(job: TrainingJob) -> None:
    """Raise `InputError` for what would stop the evaluations of a training run later."""
    evaluation = job.evaluation
    if evaluation is None:
        return
    from eval.learning import require_metric
    from pipelines.evaluation_units import drivers_of
    from pipelines.units import read_scene_ids

    require_metric(evaluation.best_by)
    if evaluation.every < 0 or evaluation.every % job.config.save_every:
        raise InputError(
            f"evaluate_every: found {evaluation.every}, expected a multiple of save_every, {job.config.save_every}: "
            "only saved checkpoints are evaluated"
        )
    read_scene_ids([*evaluation.scenes, *evaluation.held_out])
    steps = range(evaluation.every, job.config.steps, evaluation.every) if evaluation.every else ()
    drivers_of([job.policy, job.out, *(job.steps / step_name(n) for n in steps)], evaluation.config.baselines)


def is_due(job: TrainingJob, step: int) -> bool:
    """Whether the checkpoint after `step` steps is to be evaluated."""
    every = 0 if job.evaluation is None else job.evaluation.every
    return every > 0 and step > 0 and step % every == 0


def evaluate_saved(job: TrainingJob, step: int) -> None:
    """Evaluate the checkpoint after `step` steps, with all before it in one report; a failure stops no training."""
    try:
        _report(job)
    except Exception as error:  # whatever goes wrong with an evaluation, the training is worth more
        reason = str(error).strip() or type(error).__name__
        logger.warning("evaluation after step %d failed, training goes on: %s", step, reason, exc_info=True)


def evaluate_result(job: TrainingJob) -> None:
    """Put the result of a finished run into the report. Raises `InputError` as `report_on_checkpoints`."""
    if job.evaluation is not None:
        _report(job, job.out)


def _report(job: TrainingJob, *result: Path) -> None:
    assert job.evaluation is not None
    due = [path for path in finished_checkpoints(job.steps) if is_due(job, step_of(path.name) or 0)]
    report_on_checkpoints(
        [job.policy], [*due, *result], job.evaluation, out=job.report, device=job.device, mark_in=job.steps,
        steps=dict.fromkeys(_names(result), job.config.steps),
    )  # fmt: skip


def _names(checkpoints: Sequence[Path]) -> list[str]:
    """Names of checkpoints in a report."""
    return [safe_name(path.resolve().name) for path in checkpoints]


def _with_recorded(first: Sequence[Path], saved: Sequence[Path], out: Path | None) -> list[Path]:
    """`saved` and what else the report has, in the order of steps; a trainer deletes all but its newest checkpoints."""
    from pipelines.evaluate import recorded_policies

    recorded = recorded_policies(out) if out else {}
    gone = {name: Path(".gone") / name for name in recorded if name not in _names(first)}
    named = {n: path for n, path in zip(_names(saved), saved, strict=True) if path.exists() or n in recorded}
    return sorted(({**gone, **named}).values(), key=_natural_order)


def _mark_best(report: Path, steps: Path) -> None:
    """Hand the best checkpoint on to the trainer, which then keeps it."""
    path = report / "learning_curves.json"
    curves = json.loads(path.read_text()) if path.is_file() else {}
    best = curves.get("best")
    if best:
        step = curves["steps"][curves["checkpoints"].index(best["policy"])]
        mark_best(steps, BestCheckpoint(step, best["metric"], best["value"]))


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """`step_9` before `step_10`, and both before other names."""
    parts = re.split(r"(\d+)", path.name)
    return [(0 if step_of(path.name) else 1, ""), *((int(p), "") if p.isdigit() else (-1, p) for p in parts)]
