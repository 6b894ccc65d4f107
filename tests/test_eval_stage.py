"""The stage `evaluate`: failing policies, baselines, repeatability, growing reports; with scripted policies."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_scene import CAMERAS, make_scene, make_track

import pipelines.evaluate as stage
import pipelines.provenance
from eval import plots
from neural_sim.errors import InputError
from neural_sim.scenes.storage import write_scene
from neural_sim.simulation.blank import BlankRenderer
from neural_sim.simulation.config import SimulationConfig
from pipelines import evaluation_units
from pipelines.cli import main
from pipelines.compare import compare
from pipelines.config import EvaluationConfig
from pipelines.evaluate import evaluate
from pipelines.evaluation_units import drivers_of
from pipelines.shards.example import safe_name
from pipelines.watch import finished_checkpoints, watch
from vla.checkpoint import POLICY_FILE
from vla.config import PolicyConfig
from vla.errors import PolicyError
from vla.policy import PlanSamples

SIGHT = PolicyConfig(cameras=CAMERAS[:1], num_frames=1, image_width_px=32, image_height_px=32)
FULL = EvaluationConfig(rollouts_per_scene=2, batch_size=2, videos=False, open_loop_samples=2, open_loop_stride_s=1.0)
LEAN = replace(FULL, baselines=(), open_loop=False)
SIMULATION = SimulationConfig(duration_us=4_500_000)
CURVED, STRAIGHT = "synthetic-c0.04-v6", "synthetic-c0-v8"


class Weaver:
    """Keeps its speed, turns at random within `spread` (1/m), and fails where it is told to."""

    def __init__(self, spread, crash=None):
        self.spread, self.crash = spread, crash

    def sample(self, observation, num_samples, temperature, generators):
        if self.crash is not None:
            self.crash(observation)
        speed = torch.from_numpy(observation.ego_history[:, -1, 3].copy())
        turns = torch.stack([torch.randn(num_samples, generator=generator) for generator in generators])
        arc_m = speed[:, None, None] * 0.1 * torch.arange(1, 65)
        yaw = self.spread * temperature * turns[..., None] * arc_m
        step_m = torch.diff(arc_m, dim=-1, prepend=torch.zeros_like(arc_m[..., :1]))
        x, y = (step_m * yaw.cos()).cumsum(-1), (step_m * yaw.sin()).cumsum(-1)
        return PlanSamples(torch.stack([x, y, yaw], dim=-1))


POLICIES = {"calm": Weaver(0.001), "wild": Weaver(0.05)}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    made = make_scene(0.0, 8.0, 10.0, [make_track("lead", (45.0, 0.0, 0.0), 5.0)]), make_scene(0.04, 6.0, 10.0)
    folder = tmp_path_factory.mktemp("scenes")
    paths = [folder / f"{scene.scene_id}.usdz" for scene in made]
    for scene, path in zip(made, paths, strict=True):
        write_scene(scene, path)
    return paths


@pytest.fixture(scope="module", autouse=True)
def scripted():
    """Policies by folder name, nothing drawn, and units one after the other in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_units, "read_policy_config", lambda _: SIGHT)
        patch.setattr(evaluation_units, "cached_policy", lambda folder, _: POLICIES[folder.name])
        patch.setattr(evaluation_units, "make_renderer", lambda *_: BlankRenderer())
        patch.setattr(stage, "policy_hash", lambda folder: f"hash of {folder.name}")
        patch.setattr(stage, "run_units", lambda work, units, *_: ((unit, work(unit)) for unit in units))
        patch.setattr(pipelines.provenance, "source_commit", lambda: "0123abc")
        patch.setattr(plots, "_figure", lambda *_: "<svg></svg>")
        yield


@pytest.fixture(scope="module")
def reports(tmp_path_factory, scenes):
    """Whole reports: on Monday calm, on Tuesday wild, and both of them."""
    folder = tmp_path_factory.mktemp("reports")
    names = {"monday": ["calm"], "tuesday": ["wild"], "both": ["calm", "wild"]}
    return {out: run(folder, scenes, *each, config=FULL, out=out) for out, each in names.items()}


def run(tmp_path, scenes, *names, config=LEAN, out="report", **options):
    folders = [tmp_path / name for name in names or POLICIES]
    return evaluate(folders, scenes, out=tmp_path / out, config=config, simulation=SIMULATION, workers=1, **options)


def summary_of(report):
    return json.loads((report / "summary.json").read_text())


def crashing(monkeypatch, crash):
    monkeypatch.setitem(POLICIES, "wild", Weaver(0.05, crash))


def crash_in_the_bend(observation):
    history = observation.ego_history
    if abs(history[0, -1, 2] - history[0, 0, 2]) > 0.1:
        raise PolicyError("plan: sample 0 of rollout 0 is not finite")


def test_scenes_without_a_true_world_are_refused_before_anything_is_driven(tmp_path, scenes):
    config = replace(LEAN, renderer="town")
    with pytest.raises(InputError, match=r"scene .*: the clip is of dataset .*; expected 'town' with its settings"):
        run(tmp_path, scenes, "calm", config=config)
    assert not (tmp_path / "report").exists()


def test_baselines_frame_the_checkpoints(reports):
    report = reports["both"]
    summary = summary_of(report)
    assert list(summary["policies"]) == ["calm", "wild", "expert", "constant_velocity"]
    assert summary["baselines"] == ["expert", "constant_velocity"]
    assert summary["failures"] == []
    assert summary["policies"]["expert"]["offroad_or_collision"]["mean"] == 0
    assert summary["policies"]["expert"]["dist_to_gt_trajectory"]["mean"] < 0.5
    assert summary["policies"]["constant_velocity"]["offroad_or_collision"]["mean"] == 0.5  # in the bend
    page = (report / "report.html").read_text()
    assert "Derived corridor" in page
    assert "open loop" in page.lower()
    assert not list(report.rglob("*.mp4"))


def test_open_loop_metrics_of_a_straight_line(reports):
    straight, bend = (
        json.loads((reports["both"] / "open_loop" / f"constant_velocity-{safe_name(scene)}.json").read_text())
        for scene in (STRAIGHT, CURVED)
    )
    assert straight["num_windows"] == bend["num_windows"] == 2
    assert straight["metrics"]["ade_6.4s_m"] == pytest.approx(0, abs=0.05)
    # After 6.4 s at 6 m/s: the chord of an arc of 25 m radius and 1.536 rad against 38.4 m straight ahead.
    end = 25 * np.array([np.sin(1.536), 1 - np.cos(1.536)])
    assert bend["metrics"]["fde_6.4s_m"] == pytest.approx(np.hypot(*(end - [38.4, 0])), rel=0.02)
    policies = summary_of(reports["both"])["policies"]
    mean = (straight["metrics"]["ade_6.4s_m"] + bend["metrics"]["ade_6.4s_m"]) / 2
    assert policies["constant_velocity"]["open_loop_ade_6.4s_m"]["mean"] == pytest.approx(mean)
    assert "open_loop_ade_6.4s_m" not in policies["expert"]


def test_a_policy_that_crashes_in_one_scene_is_counted_named_and_the_rest_is_finished(tmp_path, scenes, monkeypatch):
    crashing(monkeypatch, crash_in_the_bend)
    summary = summary_of(run(tmp_path, scenes, config=replace(FULL, baselines=())))
    assert [(f["policy"], f["scene_id"], f["rollout_index"]) for f in summary["failures"]] == [
        ("wild", CURVED, 0), ("wild", CURVED, 1),
    ]  # fmt: skip
    assert "is not finite" in summary["failures"][0]["reason"]
    assert summary["policies"]["wild"]["failure_rate"]["mean"] == 0.5
    assert summary["policies"]["calm"]["failure_rate"]["mean"] == 0
    assert summary["scenes"] == [STRAIGHT, CURVED]
    assert summary["comparisons"][0]["num_left_out"] == 2
    page = (tmp_path / "report" / "report.html").read_text()
    assert "wild failed in 2 of its 4 rollouts" in page
    assert "Open-loop metrics leave out wild in" in page
    assert list((tmp_path / "report").glob("rollouts/wild-*/000.error.txt"))


def test_only_the_rollout_that_fails_in_a_batch_is_lost(tmp_path, scenes, monkeypatch):
    def crash(observation):
        if len(observation.t_us) == 2:
            raise RuntimeError("out of memory")

    crashing(monkeypatch, crash)
    assert summary_of(run(tmp_path, scenes, config=LEAN))["failures"] == []


def test_failed_rollouts_are_tried_again_and_nothing_else(tmp_path, scenes, monkeypatch):
    run(tmp_path, scenes, out="whole")
    with monkeypatch.context() as patch:
        crashing(patch, crash_in_the_bend)
        report = run(tmp_path, scenes)
    before = {path: path.stat().st_mtime_ns for path in report.rglob("*.npz")}
    run(tmp_path, scenes)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items() if "wild" not in str(path))
    for name in ("summary.json", "metrics.parquet"):
        assert (report / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_policy_that_never_drives_is_refused_with_its_reason(tmp_path, scenes, monkeypatch):
    def crash(_):
        raise ValueError("shape mismatch")

    crashing(monkeypatch, crash)
    with pytest.raises(InputError, match=r"all 4 failed, the first with: ValueError: shape mismatch"):
        run(tmp_path, scenes, "wild")


def test_results_depend_on_neither_repetition_nor_order(tmp_path, scenes, monkeypatch, reports):
    backwards = lambda work, units, *_: ((unit, work(unit)) for unit in reversed(units))  # noqa: E731
    monkeypatch.setattr(stage, "run_units", backwards)
    again = run(tmp_path, scenes, config=FULL)
    for name in ("summary.json", "metrics.parquet"):
        assert (reports["both"] / name).read_bytes() == (again / name).read_bytes(), name


def test_a_report_takes_further_policies_and_refuses_other_changes(tmp_path, scenes):
    report = run(tmp_path, scenes, "calm")
    before = {path: path.stat().st_mtime_ns for path in report.rglob("*.npz")}
    run(tmp_path, scenes, "calm", "wild")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(summary_of(report)["policies"]) == ["calm", "wild"]
    with pytest.raises(InputError, match="made with other settings"):
        run(tmp_path, scenes, "wild")
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        run(tmp_path, scenes, "calm", "wild", seed=1)
    assert (report / "summary.json").exists()


def test_no_scene_no_policy_and_taken_names_are_refused(tmp_path, scenes):
    with pytest.raises(InputError, match=r"no scenes given; pass at least one \.usdz"):
        run(tmp_path, [])
    with pytest.raises(InputError, match="no policies given"):
        drivers_of([], ("expert",))
    with pytest.raises(InputError, match=r"two policies are named 'expert' \(the name of a baseline\)"):
        drivers_of([tmp_path / "expert"], ("expert",))
    with pytest.raises(InputError, match="two policies are named 'calm'; rename"):
        drivers_of([tmp_path / "calm", tmp_path / "x" / "calm"], ())


def test_videos_show_failures_of_checkpoints(tmp_path, scenes):
    config = replace(LEAN, rollouts_per_scene=1, videos=True, clip_candidates=3)
    report = run(tmp_path, [scenes[1]], "calm", config=config)
    assert sorted(path.name for path in report.rglob("*.mp4")) == ["000.clip.mp4", "000.mp4"]
    page = (report / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == 2
    assert "What went wrong" in page


def test_compare_reports_made_at_different_times(tmp_path, reports):
    first = reports["monday"]
    text = compare(first, reports["tuesday"], out=tmp_path / "comparison")
    found = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert [(item["baseline"], item["candidate"]) for item in found["comparisons"]] == [
        ("calm (monday)", "wild (tuesday)")
    ]
    assert found["changed_baselines"] == []
    both = summary_of(reports["both"])["comparisons"][0]
    assert found["comparisons"][0]["differences"] == both["differences"]
    assert "| Incidents per km |" in text
    itself = compare(first, first, out=tmp_path / "same")
    assert "calm (second) minus calm (first): +0.00 incidents per km" in itself
    assert "1.000 |" in itself.splitlines()[-3]  # p


def changed_copy(report, folder, change):
    """A report with another summary."""
    folder.mkdir()
    (folder / "metrics.parquet").write_bytes((report / "metrics.parquet").read_bytes())
    summary = summary_of(report)
    change(summary)
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_compare_notes_that_the_world_changed(tmp_path, reports):
    def farther(summary):
        summary["policies"]["expert"]["dist_traveled_m"]["mean"] += 1

    second = changed_copy(reports["tuesday"], tmp_path / "tuesday", farther)
    text = compare(reports["monday"], second, out=tmp_path / "c")
    assert "The baseline expert did not drive alike in both" in text


@pytest.mark.parametrize(("changes", "message"), [
    ({"scenes": ["x"]}, "scenes: "), ({"format_version": 1}, "format_version: 2 -> 1"),
    ({"rollouts": 5}, "rollouts: 2 -> 5"),
    ({"protocol": {"max_distance_to_log_m": 2.0}}, "protocol.max_distance_to_log_m: 4.0 -> 2.0"),
    ({"conditions": {"seed": 4}}, "conditions.seed: 0 -> 4"),
    ({"conditions": {"scene_files": {CURVED: "other"}}}, "conditions.scene_files.synthetic-c0.04-v6"),
    ({"format_version": 99}, "format version 99, expected 2"),
])  # fmt: skip
def test_compare_refuses_what_is_not_comparable(tmp_path, reports, changes, message):
    def apply(summary):
        for key, value in changes.items():
            summary[key] = summary[key] | value if isinstance(value, dict) else value

    second = changed_copy(reports["tuesday"], tmp_path / "b", apply)
    with pytest.raises(InputError) as refused:
        compare(reports["monday"], second, out=tmp_path / "comparison")
    assert message in str(refused.value)
    assert not (tmp_path / "comparison").exists()


def test_the_exit_code_says_when_rollouts_or_conditions_fail(tmp_path, scenes, monkeypatch, capsys):
    arguments = ["evaluate", "--policies", tmp_path / "calm", tmp_path / "wild", "--scenes", *scenes, "--out"]
    options = [
        "--evaluate.rollouts-per-scene", 1, "--evaluate.no-videos", "--evaluate.no-open-loop",
        "--simulation.duration-us", 4_500_000,
    ]  # fmt: skip
    run_with = lambda out, *more: main([str(part) for part in (*arguments, out, *options, *more)])  # noqa: E731
    assert run_with(tmp_path / "a") == 0
    assert run_with(tmp_path / "a", "--fail-if", "expert.offroad > 0") == 0
    assert run_with(tmp_path / "a", "--fail-if", "driving_score < 10000", "offroad < 0") == 1
    assert "--fail-if 'driving_score < 10000': driving_score of wild is" in capsys.readouterr().err
    assert run_with(tmp_path / "b", "--fail-if", "nonsense") == 2
    assert not (tmp_path / "b").exists()
    crashing(monkeypatch, crash_in_the_bend)
    assert run_with(tmp_path / "b") == 1
    assert f"1 rollouts failed, the first: wild, {CURVED}, rollout 0" in capsys.readouterr().err


def test_checkpoints_are_watched_in_their_order_once_they_are_whole(tmp_path):
    for name in ("step_9", "step_10", ".step_11.partial", "state"):
        (tmp_path / "run" / name).mkdir(parents=True)
        if name != "state":
            (tmp_path / "run" / name / POLICY_FILE).write_text("{}")
    assert [path.name for path in finished_checkpoints(tmp_path / "run")] == ["step_9", "step_10"]
    assert finished_checkpoints(tmp_path / "none") == []


def test_watching_evaluates_what_appears_and_grows_one_report(tmp_path, scenes):
    folder = tmp_path / "run"
    appearing = iter(["calm", "wild"])

    def wait(_):
        made = folder / next(appearing)
        made.mkdir(parents=True)
        (made / POLICY_FILE).write_text("{}")

    sizes = []

    def judge(policies):
        sizes.append(len(policies))
        return evaluate(policies, scenes, out=tmp_path / "report", config=LEAN, simulation=SIMULATION, workers=1)

    report = watch(folder, [], judge, until=2, wait=wait)
    assert sizes == [1, 2]
    assert list(summary_of(report)["policies"]) == ["calm", "wild"]
    assert watch(folder, [], judge, until=2, wait=wait) == report
    assert sizes == [1, 2, 2]


def test_watching_stops_with_ctrl_c(tmp_path):
    def wait(_):
        raise KeyboardInterrupt

    assert watch(tmp_path, [], lambda _: tmp_path, wait=wait) is None


def test_distance_of_executed_plans_reaches_the_report(reports):
    report = reports["both"]
    assert "Distance d^g of executed plans" in (report / "report.html").read_text()
    assert np.isfinite([cell["mean"] for cell in summary_of(report)["policies"]["calm"].values() if cell["mean"]]).all()


def test_a_report_of_several_versions_says_so(tmp_path, scenes, monkeypatch):
    run(tmp_path, scenes, "calm")
    monkeypatch.setattr(pipelines.provenance, "source_commit", lambda: "4567def")
    report = run(tmp_path, scenes, "calm", "wild")
    note = "Made with several versions: what was finished before with commit 0123abc was kept."
    assert note in (report / "report.html").read_text()
