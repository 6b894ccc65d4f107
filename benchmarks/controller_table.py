"""How closely each controller follows recorded drives, how it feels, and what it costs.

    OMP_NUM_THREADS=1 python benchmarks/controller_table.py --root ../shared/data/scenarionet --json controllers.json

Every plan is the expert's own drive, delayed by 200 ms, without ego noise, over the whole log. Prints a markdown table
and writes flat {"figure": number}: for each controller and log the mean and worst cross-track error (m, from the
expert's path), the worst distance to the expert at the same time (m), the share of comfortable steps (bounds of
`eval.comfort`), solver failures, and the median time of one control step of one rollout (ms). For the default
controller also `batch/step_64_ms`, the time of one step of 64 rollouts, and `batch/gain`, how many times less that is
than 64 single steps.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from controllers.choice import make_controller
from controllers.config import ControllerConfig
from controllers.interface import ControlCommand, Controller, VehicleState
from controllers.reference import WorldPlan
from eval.results import Series
from eval.scorers import score_rollout
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.scenarionet import ingest_scenarionet
from neural_sim.frames import planar_to_local
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.blank import BLANK_IMAGES, BlankRenderer, blank_scene
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.ego_noise import EgoNoiseConfig
from neural_sim.simulation.simulator import Simulator

KINDS = ("tracking", "mpc", "pure_pursuit")
LOGS = ("scene-0061", "scene-0103", "scene-0553", "scene-0655", "scene-1077")
BATCH = 64


@dataclass(frozen=True)
class Row:
    """One controller on one log."""

    kind: str
    log: str
    mean_cross_m: float
    worst_cross_m: float
    worst_distance_m: float
    comfortable_share: float
    worst_jerk_mps3: float
    solver_failures: int
    step_ms: float


class TimedController:
    """Passes calls on and notes how long they take, and with what they were made."""

    def __init__(self, controller: Controller) -> None:
        self.seconds: list[float] = []
        self.last: tuple[VehicleState, WorldPlan, int, ControlCommand | None] | None = None
        self._controller = controller

    def command(
        self, state: VehicleState, plan: WorldPlan, t_us: int, previous: ControlCommand | None = None
    ) -> ControlCommand:
        """See `Controller`."""
        self.last = state, plan, t_us, previous
        started = time.perf_counter()
        answer = self._controller.command(state, plan, t_us, previous)
        self.seconds.append(time.perf_counter() - started)
        return answer


def settings(kind: str) -> SimulationConfig:
    """The default simulation with one controller, the whole log, no noise."""
    return replace(
        SimulationConfig(),
        controller=ControllerConfig(kind=kind),  # type: ignore[arg-type]
        ego_noise=EgoNoiseConfig(enabled=False),
        duration_us=60_000_000,
    )


def expert_drive(scene: Scene, config: SimulationConfig, rollouts: int = 1) -> tuple[Simulator, TimedController]:
    """Drive the log to its end with the expert's drive as every plan."""
    simulator = Simulator(scene, BlankRenderer(), config, BLANK_IMAGES)
    vehicle = config.vehicle_of(scene.ego_vehicle)
    timed = TimedController(make_controller(vehicle, config.controller, config.control_step_us))
    simulator.controller = timed
    simulator.reset(range(rollouts))
    timed.seconds.clear()
    while not simulator.is_done:
        future, _ = simulator.expert_future()
        simulator.step(planar_to_local(future[None], simulator.ego_planar[:, None]))
    return simulator, timed


def measure(kind: str, log: str, scene: Scene) -> Row:
    """Drive one log with one controller."""
    simulator, timed = expert_drive(scene, settings(kind))
    record = simulator.records()[0]
    series = score_rollout(record, scene, policy=kind).series
    kept = ~record.is_warmup

    def values(name: str) -> np.ndarray:
        found: Series = series[name]
        return found.values[kept & found.valid]

    return Row(
        kind,
        log.removeprefix("scene-"),
        float(values("dist_to_gt_trajectory").mean()),
        float(values("dist_to_gt_trajectory").max()),
        float(values("dist_to_gt_location").max()),
        float(values("comfort").mean()),
        float(values("abs_jerk_mps3").max()),
        sum(event.kind == "solver_failed" for event in record.events),
        1e3 * statistics.median(timed.seconds),
    )


def batch_gain(scene: Scene) -> tuple[float, float]:
    """Time of one default control step of 64 rollouts, ms, and 64 single steps over that."""
    medians = {}
    for rollouts in (1, BATCH):
        _, timed = expert_drive(scene, settings("tracking"), rollouts)
        medians[rollouts] = statistics.median(timed.seconds)
    return 1e3 * medians[BATCH], BATCH * medians[1] / medians[BATCH]


def table(rows: list[Row]) -> str:
    """Rows as a markdown table."""
    head = "|controller|log|mean cross-track m|worst m|worst distance m|comfortable|worst jerk m/s³|failures|step ms|"
    lines = [head, "|" + "---|" * 9]
    lines += [
        f"|{r.kind}|{r.log}|{r.mean_cross_m:.3f}|{r.worst_cross_m:.3f}|{r.worst_distance_m:.3f}|"
        f"{r.comfortable_share:.3f}|{r.worst_jerk_mps3:.1f}|{r.solver_failures}|{r.step_ms:.2f}|"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with the ScenarioNet logs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes = {
            log: blank_scene(ingest_scenarionet(IngestOptions(root=arguments.root, sequence=log), Path(folder) / log))
            for log in LOGS
        }
    rows = [measure(kind, log, scene) for kind in KINDS for log, scene in scenes.items()]
    step_ms, gain = batch_gain(scenes["scene-1077"])
    print(table(rows))
    print(f"\ndefault controller: {step_ms:.2f} ms for a batch of {BATCH}, {gain:.0f} times less than single steps")
    if arguments.json:
        figures = {f"batch/step_{BATCH}_ms": step_ms, "batch/gain": gain}
        for row in rows:
            numbers = {name: value for name, value in vars(row).items() if not isinstance(value, str)}
            figures |= {f"{row.kind}/{row.log}/{name}": value for name, value in numbers.items()}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
