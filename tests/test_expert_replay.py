"""The expert's drive as every plan on the logs with maps: tracking of each controller, and a clean score."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from eval.scorers import score_rollout
from neural_sim.clips.argoverse2 import ingest_argoverse2
from neural_sim.clips.options import IngestOptions
from neural_sim.clips.scenarionet import ingest_scenarionet
from neural_sim.frames import planar_to_local
from neural_sim.scenes.scene import Scene
from neural_sim.simulation.blank import BLANK_IMAGES, BlankRenderer, blank_scene
from neural_sim.simulation.config import SimulationConfig
from neural_sim.simulation.ego_noise import EgoNoiseConfig
from neural_sim.simulation.record import RolloutRecord
from neural_sim.simulation.simulator import Simulator

SHARED = Path(__file__).parents[2] / "shared" / "data"
DATA, ARGOVERSE = SHARED / "scenarionet", SHARED / "argoverse2"
pytestmark = [pytest.mark.shared_data, pytest.mark.skipif(not DATA.is_dir(), reason="needs the real drives")]
MOVING = ("0061", "0103", "0655", "1077")
LOGS = (*MOVING, "0553", "argoverse2")


@lru_cache(maxsize=len(LOGS))
def scene_of(log: str, folder: Path) -> Scene:
    if log == "argoverse2":
        return blank_scene(ingest_argoverse2(IngestOptions(root=ARGOVERSE), folder / log))
    return blank_scene(ingest_scenarionet(IngestOptions(root=DATA, sequence=f"scene-{log}"), folder / log))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenarionet")


def replayed(scene: Scene, kind: str = "tracking", traffic: str = "replay") -> RolloutRecord:
    config = SimulationConfig()
    config = replace(
        config, controller=replace(config.controller, kind=kind), traffic=traffic, ego_noise=EgoNoiseConfig(False)
    )
    simulator = Simulator(scene, BlankRenderer(), config, BLANK_IMAGES)
    simulator.reset([0])
    while not simulator.is_done:
        future, _ = simulator.expert_future()
        simulator.step(planar_to_local(future[None], simulator.ego_planar[:, None]))
    return simulator.records()[0]


@pytest.mark.parametrize("log", LOGS)
def test_the_expert_neither_collides_nor_leaves_the_road(log, folder):
    scene = scene_of(log, folder)
    assert scene.road_map.source == "recorded"
    record = replayed(scene)
    score = score_rollout(record, scene, policy="expert")
    kept = ~record.is_warmup
    assert record.events == ()
    for name in ("collision_any", "offroad", "stopped_too_long", "time_to_collision_critical", "wrong_lane"):
        assert np.nanmax(score.series[name].values[kept], initial=0.0) == 0.0, name
    assert score.series["comfort"].reduce(kept) == 1.0
    assert score.series["scene_score"].reduce(kept) == 1.0
    assert score.series["dist_to_gt_trajectory"].values[kept].mean() < 0.05
    assert score.series["dist_to_gt_trajectory"].values[kept].max() < 0.3
    # No limits in these maps: not the same as keeping them.
    assert not score.series["speed_over_limit_mps"].valid.any()


@pytest.mark.parametrize("kind", ["mpc", "pure_pursuit"])
@pytest.mark.parametrize("log", ["0061", "1077"])
def test_the_other_controllers_track_real_drives(log, kind, folder):
    scene = scene_of(log, folder)
    record = replayed(scene, kind)
    assert record.events == ()
    series = score_rollout(record, scene, policy=kind).series["dist_to_gt_trajectory"].values[~record.is_warmup]
    assert series.mean() < 0.1
    assert series.max() < 0.3


def test_reactive_traffic_leaves_the_expert_alone(folder):
    scene = scene_of("0103", folder)
    score = score_rollout(replayed(scene, traffic="idm"), scene, policy="expert")
    assert not score.series["collision_any"].values.any()
