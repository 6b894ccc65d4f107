"""The `roadloop` command."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from controllers.errors import ControlError
from eval.gate import Gate, gate_failures, parse_gates
from neural_sim.errors import InputError
from pipelines import commands
from pipelines.config import CheckpointEvaluation, RunConfig, load_config, load_shipped_config
from vla.errors import PolicyError

logger = logging.getLogger("roadloop")

USAGE = """\
usage: roadloop COMMAND [--help]

  ingest DATASET   a recorded drive becomes a clip
  reconstruct      clips become Gaussian scenes, or NeRFs to test policies in another world
  pretrain         clips become the base policy (behaviour cloning)
  rollout          the policy drives, guided by the expert; the drives become training shards
  finetune         shards improve the policy (DeepSpeed)
  evaluate         checkpoints drive in closed loop; a report compares them
  run              all stages of a configuration, resumable
  demo             `run` on a built-in synthetic street
  compare A B      is report B better than report A, on the same scenes and seeds
  transfer A B     do the policies keep their order in another renderer
  import GAUSSIANS with a clip, they become a scene
  export SCENE     its Gaussians as .ply or OpenUSD for other tools
  inspect PATH     what is this, and is it sound
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns the exit code: 0, 1 for an unsound artefact or a report that fails, 2 for a mistake the user can mend.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logger.setLevel(logging.INFO)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(USAGE)
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command not in _COMMANDS:
        print(f"roadloop: unknown command {command!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    try:
        return _COMMANDS[command]([_in_full(command, word) for word in rest])
    except (InputError, PolicyError, ControlError) as error:
        print(f"roadloop {command}: {error}", file=sys.stderr)
        return 2


def _in_full(command: str, word: str) -> str:
    name, separator, value = word.partition("=")
    return commands.SHORT_OPTIONS.get(command, {}).get(name, name) + separator + value


def _config_file(arguments: list[str]) -> Path | None:
    """The value of `--config`, which is needed before the other flags because it holds their defaults."""
    for index, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return Path(argument.removeprefix("--config="))
        if argument == "--config" and index + 1 < len(arguments):
            return Path(arguments[index + 1])
    return None


def _stage_arguments(kind: type[commands.Common], arguments: list[str]) -> Any:
    path = _config_file(arguments)
    run = load_config(path) if path else RunConfig()
    default = commands.with_defaults(kind, run)
    return tyro.cli(kind, args=arguments, default=default, prog=f"roadloop {kind.__name__.lower()}")


def _ingest(arguments: list[str]) -> int:
    from pipelines.ingest import ingest

    given = tyro.cli(commands.Ingest, args=arguments, prog="roadloop ingest")
    ingest(given.dataset, out=given.out, options=given.options, resume=given.resume)
    return 0


def _reconstruct(arguments: list[str]) -> int:
    from pipelines.reconstruct import reconstruct
    from pipelines.reconstruct_nerf import reconstruct_nerf

    given: commands.Reconstruct = _stage_arguments(commands.Reconstruct, arguments)
    if given.method == "nerf":
        reconstruct_nerf(
            given.clips, out=given.out, config=given.nerf, seed=given.seed, device=given.device, resume=given.resume
        )
        return 0
    reconstruct(
        given.clips, out=given.out, config=given.reconstruct, seed=given.seed, device=given.device, resume=given.resume
    )
    return 0


def _pretrain(arguments: list[str]) -> int:
    from pipelines.pretrain import pretrain

    given: commands.Pretrain = _stage_arguments(commands.Pretrain, arguments)
    pretrain(
        given.clips, given.shards, out=given.out, policy=given.policy, config=given.pretrain, seed=given.seed,
        device=given.device, resume=given.resume,
    )  # fmt: skip
    return 0


def _rollout(arguments: list[str]) -> int:
    from pipelines.rollout import rollout

    given: commands.Rollout = _stage_arguments(commands.Rollout, arguments)
    rollout(
        given.policy, given.scenes, out=given.out, config=given.rollout, simulation=given.simulation,
        round_index=given.round_index, seed=given.seed, device=given.device, workers=given.workers, resume=given.resume,
        execution=given.execution,
    )  # fmt: skip
    return _rollout_code([given.out], "rollout")


def _rollout_code(shards: Sequence[Path], command: str) -> int:
    """Say which rollouts failed: exit code 1 if any did, or if there is nothing to learn from."""
    from pipelines.rollout import job_problems

    problems = [problem for folder in shards for problem in job_problems(folder)]
    for problem in problems:
        print(f"roadloop {command}: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _finetune(arguments: list[str]) -> int:
    from pipelines.finetune import finetune
    from pipelines.training.train import preflight

    given: commands.Finetune = _stage_arguments(commands.Finetune, arguments)
    if given.preflight:
        preflight(given.policy, given.shards, given.out, given.finetune, seed=given.seed, device=given.device)
        return 0
    finetune(
        given.policy, given.shards, out=given.out, config=given.finetune, seed=given.seed, device=given.device,
        resume=given.resume, evaluation=given.evaluation,
    )  # fmt: skip
    return 0


def _evaluate(arguments: list[str]) -> int:
    from pipelines.evaluate import evaluate
    from pipelines.watch import watch

    given: commands.Evaluate = _stage_arguments(commands.Evaluate, arguments)
    gates = parse_gates(given.fail_if)
    if given.watch is None:
        if given.held_out:
            raise InputError("--held-out belongs to --watch; give these scenes with --scenes")
        report = evaluate(
            given.policies, given.scenes, out=given.out, config=given.evaluate, simulation=given.simulation,
            seed=given.seed, device=given.device, workers=given.workers, resume=given.resume,
        )  # fmt: skip
    else:
        report = watch(given.watch, given.policies, _judge(given, given.watch), until=given.watch_until)
    return _report_code(report, gates) if report else 0


def _judge(given: commands.Evaluate, folder: Path) -> Callable[[Sequence[Path]], Path]:
    """Evaluate checkpoints that appeared in `folder`, after the policies given."""
    from pipelines.training.evaluation import report_on_checkpoints

    evaluation = CheckpointEvaluation(
        given.scenes, given.held_out, best_by=given.best_by, config=given.evaluate, simulation=given.simulation,
        seed=given.seed, workers=given.workers,
    )  # fmt: skip
    count = len(given.policies)
    return lambda policies: report_on_checkpoints(
        policies[:count], policies[count:], evaluation, out=given.out, device=given.device, mark_in=folder
    )


def _report_code(report: Path, gates: Sequence[Gate] = ()) -> int:
    """Say where the report is and what is wrong with its numbers: exit code 1 for failed rollouts or conditions."""
    from eval.tables import read_summary

    summary = read_summary(report / "summary.json")
    failures = summary.get("failures", [])
    reasons = gate_failures(gates, summary)
    if failures:
        text = "{policy}, {scene_id}, rollout {rollout_index}: {reason}".format(**failures[0])
        reasons.append(f"{len(failures)} rollouts failed, the first: {text}")
    print(f"report: {(report / 'report.html').resolve()}")
    for reason in reasons:
        print(f"roadloop evaluate: {reason}", file=sys.stderr)
    return 1 if reasons else 0


def _compare(arguments: list[str]) -> int:
    from pipelines.compare import compare

    given = tyro.cli(commands.Compare, args=arguments, prog="roadloop compare")
    print(compare(given.first, given.second, out=given.out))
    return 0


def _transfer(arguments: list[str]) -> int:
    from pipelines.transfer import transfer

    given = tyro.cli(commands.Transfer, args=arguments, prog="roadloop transfer")
    print(transfer(given.reports, out=given.out))
    return 0


def _run(arguments: list[str]) -> int:
    path = _config_file(arguments)
    if path is None and not {"-h", "--help"} & set(arguments):
        raise InputError("--config FILE is required; `roadloop demo` has a configuration built in")
    return _run_all(load_config(path) if path else RunConfig(), arguments, "run")


def _demo(arguments: list[str]) -> int:
    return _run_all(load_shipped_config("demo"), arguments, "demo")


def _run_all(default: RunConfig, arguments: list[str], name: str) -> int:
    from pipelines.run import run

    given = tyro.cli(commands.Run, args=arguments, default=commands.Run.of(default), prog=f"roadloop {name}")
    out = given.out or Path("runs") / given.name
    report = run(given.run, out=out, device=given.device, workers=given.workers, resume=given.resume)
    rollouts = sorted(path.parent for path in (out / "rollouts").glob("*/index.json"))
    return max(_report_code(report.parent), _rollout_code(rollouts, name))


def _import(arguments: list[str]) -> int:
    from neural_sim.scenes.bare_gaussians import import_gaussians

    given = tyro.cli(commands.Import, args=arguments, prog="roadloop import")
    import_gaussians(given.gaussians, given.clip, given.out, given.frame)
    return 0


def _export(arguments: list[str]) -> int:
    from neural_sim.scenes.export import export_gaussians

    given = tyro.cli(commands.Export, args=arguments, prog="roadloop export")
    export_gaussians(given.scene, given.out)
    return 0


def _inspect(arguments: list[str]) -> int:
    from pipelines.inspect import inspect

    given = tyro.cli(commands.Inspect, args=arguments, prog="roadloop inspect")
    found = inspect(given.path)
    print(f"{found.kind}: {'sound' if not found.problems else 'unsound'}")
    print("\n".join([*found.facts, *(f"problem: {problem}" for problem in found.problems)]))
    if found.kind in ("clip", "scene", "shards"):
        _draw_pictures(found.kind, given.path, given.pictures)
    if given.render is not None:
        _render_scene(found.kind, given)
    return 1 if found.problems else 0


def _render_scene(kind: str, given: commands.Inspect) -> None:
    from pipelines.scene_video import render_scene

    if kind != "scene" or given.render is None:
        raise InputError(f"--render draws scenes (.usdz), and {given.path} is a {kind}")
    for written in render_scene(given.path, given.render, clip=given.clip, camera=given.camera):
        print(f"rendered: {written}")


def _draw_pictures(kind: str, path: Path, folder: Path | None) -> None:
    """Draw the clip, scene or shards and say where; what cannot be drawn is no reason to fail an inspection."""
    from pipelines.pictures import draw_pictures
    from pipelines.shards.contact_sheet import draw_examples

    try:
        for picture in draw_examples(path, folder) if kind == "shards" else draw_pictures(path, folder):
            print(f"picture: {picture}")
    except InputError as error:
        print(f"roadloop inspect: no pictures: {error}", file=sys.stderr)


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "ingest": _ingest,
    "reconstruct": _reconstruct,
    "pretrain": _pretrain,
    "rollout": _rollout,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "compare": _compare,
    "transfer": _transfer,
    "run": _run,
    "demo": _demo,
    "import": _import,
    "export": _export,
    "inspect": _inspect,
}

if __name__ == "__main__":
    sys.exit(main())
