"""The `roadloop` command."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from controllers.errors import ControlError
from neural_sim.errors import InputError
from pipelines import commands
from pipelines.config import RunConfig, load_config, load_shipped_config
from vla.errors import PolicyError

logger = logging.getLogger("roadloop")

USAGE = """\
usage: roadloop COMMAND [--help]

  ingest DATASET   a recorded drive becomes a clip
  reconstruct      clips become Gaussian scenes
  pretrain         clips become the base policy (behaviour cloning)
  rollout          the policy drives, guided by the expert; the drives become training shards
  finetune         shards improve the policy (DeepSpeed)
  evaluate         checkpoints drive in closed loop; a report compares them
  run              all stages of a configuration, resumable
  demo             `run` on a built-in synthetic street
  inspect PATH     what is this, and is it sound
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 for an unsound artefact, 2 for a mistake the user can mend."""
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
        return _COMMANDS[command](rest)
    except (InputError, PolicyError, ControlError) as error:
        print(f"roadloop {command}: {error}", file=sys.stderr)
        return 2


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

    given: commands.Reconstruct = _stage_arguments(commands.Reconstruct, arguments)
    reconstruct(
        given.clips, out=given.out, config=given.reconstruct, seed=given.seed, device=given.device, resume=given.resume
    )
    return 0


def _pretrain(arguments: list[str]) -> int:
    from pipelines.pretrain import pretrain

    given: commands.Pretrain = _stage_arguments(commands.Pretrain, arguments)
    pretrain(
        given.clips, out=given.out, policy=given.policy, config=given.pretrain, seed=given.seed,
        device=given.device, resume=given.resume,
    )  # fmt: skip
    return 0


def _rollout(arguments: list[str]) -> int:
    from pipelines.rollout import rollout

    given: commands.Rollout = _stage_arguments(commands.Rollout, arguments)
    rollout(
        given.policy, given.scenes, out=given.out, config=given.rollout, simulation=given.simulation,
        round_index=given.round_index, seed=given.seed, device=given.device, workers=given.workers, resume=given.resume,
    )  # fmt: skip
    return 0


def _finetune(arguments: list[str]) -> int:
    from pipelines.finetune import finetune

    given: commands.Finetune = _stage_arguments(commands.Finetune, arguments)
    finetune(
        given.policy, given.shards, out=given.out, config=given.finetune, seed=given.seed, device=given.device,
        resume=given.resume,
    )  # fmt: skip
    return 0


def _evaluate(arguments: list[str]) -> int:
    from pipelines.evaluate import evaluate

    given: commands.Evaluate = _stage_arguments(commands.Evaluate, arguments)
    report = evaluate(
        given.policies, given.scenes, out=given.out, config=given.evaluate, simulation=given.simulation,
        seed=given.seed, device=given.device, workers=given.workers, resume=given.resume,
    )  # fmt: skip
    print(f"report: {(report / 'report.html').resolve()}")
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
    print(f"report: {report.resolve()}")
    return 0


def _inspect(arguments: list[str]) -> int:
    from pipelines.inspect import inspect

    found = inspect(tyro.cli(commands.Inspect, args=arguments, prog="roadloop inspect").path)
    print(f"{found.kind}: {'sound' if not found.problems else 'unsound'}")
    print("\n".join([*found.facts, *(f"problem: {problem}" for problem in found.problems)]))
    return 1 if found.problems else 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "ingest": _ingest,
    "reconstruct": _reconstruct,
    "pretrain": _pretrain,
    "rollout": _rollout,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "run": _run,
    "demo": _demo,
    "inspect": _inspect,
}

if __name__ == "__main__":
    sys.exit(main())
