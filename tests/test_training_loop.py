"""The trainer between its neighbours: on shards that `rollout` wrote, with its checkpoints evaluated in closed loop."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_scene import make_scene, make_track
from training_fixtures import alone_under_torchrun, weights

import pipelines.evaluate
from neural_sim.errors import InputError
from neural_sim.scenes.storage import write_scene
from neural_sim.simulation.config import SimulationConfig
from pipelines import rollout as rollout_stage
from pipelines.cli import main
from pipelines.config import CheckpointEvaluation, EvaluationConfig, PretrainConfig, RolloutConfig
from pipelines.finetune import finetune
from pipelines.guidance import GuidanceConfig
from pipelines.pretrain import pretrain
from pipelines.rollout import rollout
from pipelines.shards.reader import iterate_examples
from pipelines.training import worker
from pipelines.training.checkpoints import read_best
from pipelines.training.config import TrainingConfig
from pipelines.training.evaluation import finished_checkpoints, report_on_checkpoints
from pipelines.training.log import read_log
from vla.checkpoint import from_pretrained, save_pretrained
from vla.config import REGRESSOR, PolicyConfig
from vla.errors import PolicyError
from vla.model import build_policy

CAMERA = "camera_front_wide_120fov"
POLICY = PolicyConfig(
    cameras=(CAMERA,), num_frames=1, image_width_px=64, image_height_px=32, history_tokens=1, route_tokens=1,
    expert_hidden=64, expert_ffn=64, training_draws=1, euler_steps=1,
)  # fmt: skip
SIMULATION = SimulationConfig(duration_us=9_500_000)
SHORT = SimulationConfig(duration_us=3_000_000)
TRAINING = TrainingConfig(
    steps=4, batch_size=2, micro_batch_size=2, learning_rate=1e-3, warmup_steps=1, save_every=1, log_every=1, keep=1,
    wandb_project="",
)  # fmt: skip
EVALUATION = EvaluationConfig(rollouts_per_scene=1, baselines=(), videos=False, open_loop=False)
ROLLOUTS = RolloutConfig(
    rollouts_per_scene=1, window_stride_s=0.2, guidance=GuidanceConfig(num_samples=2), max_distance_to_log_m=100.0
)


class Inputs:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.scenes = []
        for scene in (make_scene(0.0, 6.0, 12.0), make_scene(0.03, 6.0, 12.0, [make_track("a", (30.0, 4.0, 0.0))])):
            self.scenes.append(root / f"{scene.scene_id}.usdz")
            write_scene(scene, self.scenes[-1])
        self.policies = {}
        for kind in ("tiny", REGRESSOR):
            self.policies[kind] = root / f"base_{kind}"
            save_pretrained(build_policy(replace(POLICY, backbone=kind), seed=0), self.policies[kind])
        self.shards = rollout(
            self.policies["tiny"], self.scenes[:1], out=root / "shards", config=ROLLOUTS, simulation=SIMULATION
        )

    def evaluation(self, every: int = 2) -> CheckpointEvaluation:
        return CheckpointEvaluation(
            tuple(self.scenes[:1]), tuple(self.scenes[1:]), every, config=EVALUATION, simulation=SHORT
        )

    def finetune(self, name: str, config: TrainingConfig = TRAINING, policy: str = "tiny", **options: object) -> Path:
        folder = self.policies.get(policy, self.root / policy)
        return finetune(folder, [self.shards], out=self.root / name, config=config, device="cpu", **options)


@pytest.fixture(scope="module", autouse=True)
def _in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        one_by_one = lambda work, units, *_, **__: ((unit, work(unit)) for unit in units)  # noqa: E731
        patch.setattr(rollout_stage, "run_units", one_by_one)
        patch.setattr(pipelines.evaluate, "run_units", one_by_one)
        alone_under_torchrun(patch)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("loop"))


def curves_of(report: Path) -> dict:
    return json.loads((report / "learning_curves.json").read_text())


def test_rollouts_carry_the_route_that_the_simulator_showed(inputs: Inputs) -> None:
    examples = list(iterate_examples(inputs.shards))
    assert len(examples) >= TRAINING.batch_size
    for example in examples:
        assert example.route is not None
        # The recorded drive goes straight on at y = 0, 12 s at 6 m/s: the route ends with it.
        known = np.isfinite(example.route[:, 0])
        assert known[:2].all()
        np.testing.assert_allclose(np.diff(example.route[known], axis=0)[:, 0], 80 / 19, atol=0.05)


@pytest.mark.parametrize("policy", ["tiny", REGRESSOR])
@pytest.mark.parametrize("mode", ["all", "freeze_vision", "freeze_backbone", "lora"])
def test_every_mode_trains_on_rollouts(inputs: Inputs, mode: str, policy: str) -> None:
    if (policy, mode) == (REGRESSOR, "lora"):
        with pytest.raises(PolicyError, match="mode lora: this policy has no language model"):
            inputs.finetune("never", replace(TRAINING, mode="lora"), policy)
        return
    config = replace(TRAINING, mode=mode, lora_rank=2, steps=3)
    out = inputs.finetune(f"{policy}_{mode}", config, policy)
    parts = {
        name: row["trained"] > 0 for name, row in json.loads((out / "training.json").read_text())["parameters"].items()
    }
    assert parts["expert"]
    assert parts["vision"] == (mode == "all")
    assert parts["lora"] == (mode == "lora")
    before, after = (from_pretrained(folder).state_dict() for folder in (inputs.policies[policy], out))
    moved = {name for name, value in before.items() if name in after and not torch.equal(value, after[name])}
    assert any(name.startswith("expert.") for name in moved)
    assert any(name.startswith("route_encoder.") for name in moved) == (mode != "freeze_backbone")


@pytest.mark.parametrize("kind", ["tiny", REGRESSOR])
def test_every_policy_is_pretrained_on_shards(inputs: Inputs, kind: str) -> None:
    config = PretrainConfig(training=replace(TRAINING, mode="all", fit_action_statistics=True, steps=2))
    policy = replace(POLICY, backbone=kind)
    out = pretrain(shards=[inputs.shards], out=inputs.root / f"pre_{kind}", policy=policy, config=config, device="cpu")
    made = from_pretrained(out)
    assert made.config == policy
    assert made.statistics.to_json() != from_pretrained(inputs.policies[kind]).statistics.to_json()


def test_training_continues_from_a_trained_checkpoint(inputs: Inputs) -> None:
    first = inputs.finetune("first", replace(TRAINING, mode="lora", lora_rank=2, steps=2))
    again = inputs.finetune("second", replace(TRAINING, mode="lora", lora_rank=2, steps=2), "first")
    merged = inputs.finetune("merged", replace(TRAINING, mode="all", steps=2), "first")
    heads = [weights(folder)["expert.action_out_proj.weight"] for folder in (first, again, merged)]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert (again / "adapter").is_dir()


def test_checkpoints_are_evaluated_in_one_report_and_the_best_is_marked(inputs: Inputs) -> None:
    out = inputs.finetune("judged", evaluation=inputs.evaluation(every=1))
    report = inputs.root / "judged.report"
    curves = curves_of(report)
    assert curves["checkpoints"] == ["base_tiny", "step_00000001", "step_00000002", "step_00000003", "judged"]
    assert curves["steps"] == [0, 1, 2, 3, 4]
    # The trainer has kept the newest and the best of them only.
    assert len(finished_checkpoints(inputs.root / "judged.steps")) <= 2
    assert list(curves["curves"]) == ["training scenes", "held-out scenes"]
    best = read_best(inputs.root / "judged.steps")
    assert best is not None
    assert best.by == "incidents_per_km"
    assert best.step == curves["steps"][curves["checkpoints"].index(curves["best"]["policy"])]
    page = (report / "report.html").read_text()
    assert "over the training" in page
    assert "held-out scenes" in page
    assert f"The best checkpoint is {curves['best']['policy']}" in page
    # Evaluations change nothing of the training.
    silent = inputs.finetune("silent")
    expected = weights(silent)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(out).items())


def test_a_run_killed_in_an_evaluation_finishes_the_report(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(job, step):
        raise Killed

    with monkeypatch.context() as here:
        here.setattr(worker, "evaluate_saved", kill)
        with pytest.raises(Killed):
            inputs.finetune("killed", evaluation=inputs.evaluation())
    assert not (inputs.root / "killed.report").exists()
    inputs.finetune("killed", evaluation=inputs.evaluation())
    assert curves_of(inputs.root / "killed.report")["steps"] == [0, 2, 4]
    # Asked once more, a report that was lost is made again; pruned checkpoints are not in it.
    shutil.rmtree(inputs.root / "killed.report")
    inputs.finetune("killed", evaluation=inputs.evaluation())
    assert curves_of(inputs.root / "killed.report")["steps"][-1] == 4


def test_a_watcher_makes_the_same_report(inputs: Inputs) -> None:
    out = inputs.finetune("alone", replace(TRAINING, keep=4))
    options = {"first": [inputs.policies["tiny"]], "evaluation": inputs.evaluation(), "device": "cpu"}
    steps = inputs.root / "alone.steps"
    for count in (1, 3):
        saved = finished_checkpoints(steps)[:count]
        report = report_on_checkpoints(saved=saved, out=inputs.root / "watched", mark_in=steps, **options)
    assert curves_of(report)["steps"] == [0, 1, 2, 3]
    assert read_best(steps).by == "incidents_per_km"
    arguments = ["evaluate", "--watch", steps, "--watch-until", 3, "--policies", inputs.policies["tiny"]]
    arguments += ["--scenes", inputs.scenes[0], "--held-out", inputs.scenes[1], "--out", inputs.root / "by_command"]
    arguments += ["--device", "cpu", "--evaluate.rollouts-per-scene", 1, "--evaluate.no-videos"]
    arguments += ["--evaluate.no-open-loop", "--evaluate.baselines", "--simulation.duration-us", SHORT.duration_us]
    assert main([str(argument) for argument in arguments]) == 0
    assert curves_of(inputs.root / "by_command") == curves_of(report)
    assert out.is_dir()


def test_an_evaluation_that_fails_stops_no_training(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pipelines.training import evaluation

    def fail(*_, mark_in=None, steps=None, **__):
        if not steps:
            raise RuntimeError("the renderer is gone")

    monkeypatch.setattr(evaluation, "report_on_checkpoints", fail)
    with caplog.at_level(logging.WARNING, "roadloop"):
        assert inputs.finetune("brave", evaluation=inputs.evaluation()).is_dir()
    assert "evaluation after step 2 failed, training goes on: the renderer is gone" in caplog.text


def test_bad_evaluations_are_refused_before_the_first_step(inputs: Inputs) -> None:
    evaluation = inputs.evaluation()
    config = replace(TRAINING, save_every=2)
    for change, message in (
        ({"every": 3}, "evaluate_every: found 3, expected a multiple of save_every, 2"),
        ({"best_by": "beauty"}, "best_by: found 'beauty', expected a metric with a better side: driving_score"),
        ({"scenes": (inputs.root / "gone.usdz",)}, r"gone\.usdz"),
        ({"scenes": evaluation.held_out}, "two scene files hold a scene named"),
    ):
        with pytest.raises(InputError, match=message):
            inputs.finetune("refused", config, evaluation=replace(evaluation, **change))
    assert not (inputs.root / "refused.steps").exists()
    arguments = ["finetune", "--policy", inputs.policies["tiny"], "--shards", inputs.shards, "--evaluate-every", "2"]
    assert main([str(argument) for argument in (*arguments, "--out", inputs.root / "no")]) == 2


@pytest.mark.parametrize("policy", ["tiny", REGRESSOR])
def test_reasoning_in_shards_trains_the_text_and_its_absence_is_no_text(inputs: Inputs, policy: str) -> None:
    from pipelines.shards.writer import ShardWriter, finalize

    told = inputs.root / f"told_{policy}"
    with ShardWriter(told, "told") as writer:
        for number, example in enumerate(iterate_examples(inputs.shards)):
            writer.write(replace(example, reasoning="follow the bend" if number % 2 else ""))
    finalize(told, ["told"], {})
    texts = {example.reasoning for example in iterate_examples(told)}
    assert texts == {"", "follow the bend"}
    base = inputs.root / f"talking_{policy}"
    save_pretrained(build_policy(replace(POLICY, backbone=policy, reasoning_loss_weight=0.5), seed=0), base)
    out = inputs.root / f"told_by_{policy}"
    config = replace(TRAINING, steps=12, learning_rate=1e-2, mode="all", save_every=12, micro_batch_size=1)
    finetune(base, [told], out=out, config=config, device="cpu")
    entries = read_log(out / "log.jsonl")
    if policy == REGRESSOR:
        assert "reasoning_loss" not in entries[0]
        return
    means = [np.mean([entry["reasoning_loss"] for entry in part]) for part in (entries[:4], entries[-4:])]
    assert means[1] < 0.8 * means[0]
    assert entries[0]["loss"] == pytest.approx(entries[0]["flow_loss"] + 0.5 * entries[0]["reasoning_loss"], rel=1e-4)
