"""Rollouts on a Ray cluster of two nodes on this machine, one of them killed."""

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rollout_fixtures import CONFIG, SIMULATION, files_of, make_scenes, make_small_policy

from neural_sim.errors import InputError
from pipelines import ray_units
from pipelines.execution import ExecutionConfig
from pipelines.rollout import read_summary, rollout

pytest.importorskip("ray", reason="needs the extra `ray`")

ON_RAY = ExecutionConfig(engine="ray")


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    # A dead node is noticed after seconds instead of half a minute.
    detection = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": detection})
    yield started
    started.shutdown()


@pytest.fixture
def job(tmp_path):
    return make_small_policy(tmp_path / "policy"), make_scenes(tmp_path / "scenes", 3)


@pytest.mark.slow
def test_a_killed_node_costs_only_what_it_was_doing(tmp_path, cluster, job, caplog):
    policy, scenes = job
    config = replace(CONFIG, rollouts_per_scene=4, batch_size=1)
    rollout(policy, scenes, out=tmp_path / "local", config=config, simulation=SIMULATION, workers=1)
    doomed = cluster.add_node(num_cpus=1)
    out = tmp_path / "on_ray"

    def kill_when_busy() -> None:
        while len(list(out.glob("*.unit.json"))) < 3:
            time.sleep(0.02)
        cluster.remove_node(doomed, allow_graceful=False)

    killer = threading.Thread(target=kill_when_busy)
    killer.start()
    execution = replace(ON_RAY, address=cluster.address)
    with caplog.at_level(logging.WARNING, logger="roadloop"):
        rollout(policy, scenes, out=out, config=config, simulation=SIMULATION, execution=execution)
    killer.join()
    assert "a worker was lost" in caplog.text
    assert read_summary(out).failures == ()
    assert files_of(out) == files_of(tmp_path / "local")
    assert sum(name.endswith(".tar") for name in files_of(out)) == 12


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_without_a_cluster_the_message_says_what_to_do(tmp_path, job, address, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    policy, scenes = job
    with pytest.raises(
        InputError, match=rf"execution\.address '{address}': no Ray cluster there .* `ray start --head`"
    ):
        rollout(
            policy, scenes, out=tmp_path / "out", config=CONFIG, simulation=SIMULATION,
            execution=replace(ON_RAY, address=address),
        )  # fmt: skip


def test_results_are_installed_with_the_record_last(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(Path, "replace", lambda self, target: order.append(Path(target).name) or self.unlink())
    ray_units._install([("u.unit.json", b"{}"), ("u-00000.tar", b"x"), ("records/u-000.npz", b"y")], tmp_path)
    assert order[-1] == "u.unit.json"
    assert sorted(order) == ["u-000.npz", "u-00000.tar", "u.unit.json"]


def test_a_worker_gets_the_scene_it_has_or_the_one_that_fewest_have(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    crew = ray_units._Crew(ExecutionConfig(engine="ray", gpus_per_worker=0.25), 0, 100)
    assert crew._size == 4
    scenes = [Path(name) for name in "aabbc"]
    crew._scenes = {1: Path("a"), 2: Path("b")}
    assert crew._choose(Path("b"), scenes, [0, 2, 3, 4]) == 2
    assert crew._choose(None, scenes, [0, 2, 3, 4]) == 4
    assert crew._choose(Path("c"), scenes, [0, 2]) == 0


def test_a_cluster_without_room_is_named(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    with pytest.raises(InputError, match=r"has 8 processors and 0 GPUs, too little for a worker of 1 and 0\.5"):
        ray_units._Crew(ExecutionConfig(engine="ray", gpus_per_worker=0.5), 0, 100)
