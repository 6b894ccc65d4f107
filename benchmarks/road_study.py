"""The study on the synthetic town: does RoaD make a policy drive better, on new streets, and in the true world?

    python benchmarks/road_study.py --config configs/study/main.yaml             # the main four arms
    python benchmarks/road_study.py --config configs/study/main.yaml --arm k_16  # one arm and what it starts from
    python benchmarks/road_study.py --config configs/study/main.yaml --arm all
    python benchmarks/road_study.py results --config configs/study/main.yaml --publish docs
    python benchmarks/road_study.py animate --config configs/study/main.yaml --publish docs

Started again, it continues where it was stopped. Results: `results.csv`, figures and `results.md` in its folder.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from study.animation import ANIMATION_NAME, write_animation
from study.arms import ARMS, MAIN_ARMS, find_arm, with_drivers
from study.config import claim_folder, load_study
from study.figures import write_figures
from study.page import Origin, insert_table, study_page
from study.results import collect, compare_arms, read_csv, write_csv
from study.stages import Study

from neural_sim.artifacts import atomic_file
from neural_sim.errors import InputError
from pipelines.processes import default_workers, exclusive
from pipelines.run import log_file
from vla.errors import PolicyError

logger = logging.getLogger("roadloop")


def run_arms(study: Study, names: Sequence[str]) -> None:
    """Make and evaluate these arms and those they start from; the results are written after each."""
    for arm in with_drivers(names):
        study.make_policy(arm)
        for world in study.config.worlds:
            study.evaluate_arm(arm, world)
        write_results(study, study.out)


def write_results(study: Study, folder: Path) -> None:
    """Write `results.csv`, `figures/` and `results.md` of what is finished into `folder`."""
    write_csv(collect(study), folder / "results.csv")
    rows = read_csv(folder / "results.csv")
    figures = [f"figures/{path.name}" for path in write_figures(rows, folder / "figures")]
    world = study.config.worlds[0]
    rivals = [
        item
        for name in MAIN_ARMS
        if name != "road"
        for item in compare_arms(study, world, name, ["road"])
    ]  # fmt: skip
    command = f"python benchmarks/road_study.py --config configs/study/{study.config.name}.yaml"
    origin = Origin(command, tuple(study.timings.machines()), study.timings.seconds())
    page = study_page(study.config, rows, rivals, figures, origin)
    with atomic_file(folder / "results.md") as partial:
        partial.write_text(page, encoding="utf-8")
    logger.info("study: %d rows -> %s", len(rows), folder / "results.md")


def main(arguments: list[str] | None = None) -> int:
    """Run the study. Returns the exit code: 0, or 2 for a mistake the user can mend."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logger.setLevel(logging.INFO)
    try:
        _act(given)
    except (InputError, PolicyError) as error:
        print(f"road_study: {error}", file=sys.stderr)
        return 2
    return 0


def _act(given: argparse.Namespace) -> None:
    config = load_study(given.config)
    out = given.out or Path("runs") / f"study_{config.name}"
    names = [arm.name for arm in ARMS] if given.arm == ["all"] else given.arm or list(MAIN_ARMS)
    for name in names:
        find_arm(name)
    with exclusive(out):
        claim_folder(config, out)
        streets = (given.streets or out).resolve()
        study = Study(config, out.resolve(), streets, given.device, given.jobs or default_workers())
        with log_file(out / "study.log"):
            logger.info("study: %s", shlex.join(sys.argv))
            if given.action in ("streets", "run"):
                study.make_streets()
                study.make_nerfs()
            if given.action == "run":
                run_arms(study, names)
            if given.action == "animate":
                write_animation(study, (given.publish or out) / ANIMATION_NAME)
            elif given.action != "streets":
                _publish(study, given.publish, given.readme)


def _publish(study: Study, folder: Path | None, readme: Path | None) -> None:
    if folder is not None:
        write_results(study, folder)
    if readme is not None:
        insert_table(readme, collect(study))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "action", nargs="?", default="run", choices=("run", "streets", "results", "animate"),
        help="run arms (default), only make the streets, only write the results so far, or make the animation",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, required=True, help="study configuration, see configs/study/")
    parser.add_argument("--arm", nargs="+", metavar="ARM", help=f"{', '.join(arm.name for arm in ARMS)}; or all")
    parser.add_argument("--out", type=Path, help="folder of the study; default runs/study_NAME")
    parser.add_argument("--streets", type=Path, help="folder of clips and scenes, to share with other studies")
    parser.add_argument("--jobs", type=int, default=0, help="worker processes; 0 for one per processor")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--publish", type=Path, metavar="FOLDER", help="write the results or the animation here too")
    parser.add_argument("--readme", type=Path, help="put the table of the main arms between the marks of this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
