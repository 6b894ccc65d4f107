"""The rollout stage as a whole, its units run in this process: failures, filters, bad input."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from rollout_fixtures import CONFIG, SIMULATION, files_of, make_scenes, make_small_policy
from synthetic_scene import make_scene

import pipelines.rollout as stage
from neural_sim.errors import InputError
from neural_sim.scenes.storage import write_scene
from pipelines import rollout_units
from pipelines.cli import main
from pipelines.guidance import GuidanceConfig
from pipelines.outcome import Outcome
from pipelines.processes import exclusive
from pipelines.quality import QualityConfig
from pipelines.rollout import read_summary, rollout
from pipelines.rollout_table import JobSummary
from pipelines.rollout_units import drive_unit
from pipelines.shards.describe import describe_shards
from pipelines.shards.index import read_index
from pipelines.shards.reader import iterate_examples
from pipelines.shards.writer import ShardWriter
from vla.policy import PlanSamples

EXPERT = replace(CONFIG, guidance=GuidanceConfig(strategy="expert"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_small_policy(tmp_path_factory.mktemp("policy") / "small")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("scenes"), 2)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(stage, "_run", lambda units, *_: ((unit, drive_unit(unit)) for unit in units))


def run(policy, scenes, out, config=EXPERT, **options):
    return rollout(policy, scenes, out=out, config=config, simulation=SIMULATION, workers=1, **options)


class ScriptedPolicy:
    """Drives straight on at the present speed, with what `spoil` does to the plans."""

    def __init__(self, spoil=lambda poses: poses):
        self.spoil = spoil

    def sample(self, observation, num_samples, temperature, generators):
        speed = torch.from_numpy(observation.ego_history[:, -1, 3])[:, None, None]
        x = (speed * 0.1 * torch.arange(1, 65)).expand(-1, num_samples, -1)
        return PlanSamples(self.spoil(torch.stack([x, 0 * x, 0 * x], dim=-1)))


def scripted(monkeypatch, spoil):
    monkeypatch.setattr(rollout_units, "cached_policy", lambda *_: ScriptedPolicy(spoil))


def test_windows_add_up_and_every_example_says_where_it_is_from(policy, scenes, tmp_path):
    out = run(policy, scenes, tmp_path / "out", round_index=3, seed=5)
    summary = read_summary(out)
    assert [(row.scene_id, row.rollout_index) for row in summary.rollouts] == [
        ("bend_0", 0), ("bend_0", 1), ("bend_1", 0), ("bend_1", 1)
    ]  # fmt: skip
    for row in summary.rollouts:
        assert row.windows == 17  # 8.3 s after the hand-over, every 0.5 s
        assert row.examples == 4  # those that begin at least 6.4 s before the end
        assert row.dropped == {"horizon beyond the recording": 13}
    example = next(iterate_examples(out))
    assert example.meta["round"] == 3
    assert example.meta["seed"] == 5
    assert len(example.meta["policy_hash"]) == 16
    assert example.meta["weight"] == 1.0
    assert sum(1 for _ in iterate_examples(out)) == read_index(out).examples == 16
    actions = json.loads((out / "index.json").read_text())["actions"]
    curvatures = [0.0, 0.004]
    assert actions["mean"][1] == pytest.approx(np.mean(curvatures), abs=3e-4)


def test_images_are_kept_for_windows_only(policy, scenes, tmp_path, monkeypatch):
    driven = []
    original = rollout_units.drive
    monkeypatch.setattr(rollout_units, "drive", lambda *a, **k: driven.append(original(*a, **k)) or driven[-1])
    run(policy, scenes[:1], tmp_path / "out")
    assert [bool(step.observation.images) for step in driven[0].steps][:12] == [True, *[False] * 4] * 2 + [True, False]


def test_a_broken_scene_costs_itself_only(policy, scenes, tmp_path, capsys):
    broken = tmp_path / "broken.usdz"
    broken.write_text("not a zip")
    out = run(policy, [*scenes, broken], tmp_path / "out")
    (failure,) = read_summary(out).failures
    assert (failure.scene_id, failure.rollout_indices) == ("broken", (0, 1))
    assert "not a whole .usdz" in failure.reason
    whole = run(policy, scenes, tmp_path / "whole")
    assert {p.name: p.read_bytes() for p in out.glob("*.tar")} == {p.name: p.read_bytes() for p in whole.glob("*.tar")}
    assert "FAILED, rollouts 0, 1" in read_summary(out).table()


def test_what_failed_is_tried_again_and_only_that(policy, scenes, tmp_path, monkeypatch):
    calls, original = [], rollout_units.drive

    def drive(simulator, *arguments, **options):
        calls.append(simulator.scene.scene_id)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return original(simulator, *arguments, **options)

    monkeypatch.setattr(rollout_units, "drive", drive)
    out = run(policy, scenes, tmp_path / "out")
    (failure,) = read_summary(out).failures
    assert (failure.scene_id, failure.rollout_indices) == ("bend_1", (0,))
    assert failure.reason == "RuntimeError: out of memory"
    assert "Traceback" in (out / "records" / "bend_1-r000.error.txt").read_text()
    assert run(policy, scenes, out, retry_failed=False) == out
    assert len(calls) == 4
    run(policy, scenes, out)
    assert calls[4:] == ["bend_1"]
    assert read_summary(out).failures == ()
    assert files_of(out) == files_of(run(policy, scenes, tmp_path / "unbroken"))


def test_a_short_scene_is_named_and_the_others_go_on(policy, scenes, tmp_path):
    short = tmp_path / "short.usdz"
    write_scene(replace(make_scene(duration_s=5.0), scene_id="short"), short)
    out = run(policy, [short, scenes[0]], tmp_path / "out")
    (failure,) = [each for each in read_summary(out).failures if each.rollout_indices == (0,)]
    assert "scene short: 3.3 s are left of its recording after the hand-over" in failure.reason
    assert "needs 6.4 s" in failure.reason
    assert read_index(out).examples == 8


def test_a_scene_shorter_than_the_warm_up_is_named(policy, tmp_path):
    short = tmp_path / "blink.usdz"
    write_scene(replace(make_scene(duration_s=1.0), scene_id="blink"), short)
    with pytest.raises(InputError, match=r"not a single rollout was finished; .*scene blink: its log covers 1 s"):
        run(policy, [short], tmp_path / "out")


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda poses: poses * float("nan"), r"scene bend_0, 0\.0 s after hand-over: 2 of 2 plans of the policy are not"),
    (lambda poses: poses[:, :, :40], r"returned plans of shape \(1, 2, 40, 3\), expected \(1, 2, 64, 3\)"),
    (lambda poses: poses[:, :1], r"returned plans of shape \(1, 1, 64, 3\), expected \(1, 2, 64, 3\)"),
], ids=["NaN", "wrong horizon", "too few samples"])  # fmt: skip
def test_a_policy_that_returns_nonsense_is_named(policy, scenes, tmp_path, monkeypatch, spoil, message):
    scripted(monkeypatch, spoil)
    with pytest.raises(InputError, match=message):
        run(policy, scenes[:1], tmp_path / "out", CONFIG)
    assert list((tmp_path / "out").glob("*.tar")) == []


def test_a_full_disk_stops_the_job_and_loses_nothing(policy, scenes, tmp_path, monkeypatch):
    written, original = [], ShardWriter.write

    def write(self, example):
        written.append(example.key)
        if len(written) == 11:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, example)

    monkeypatch.setattr(ShardWriter, "write", write)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"out: no space left .* what is finished is safe: free some space"):
        run(policy, scenes, out)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert sorted(finished) == ["bend_0-r000-00000.tar", "bend_0-r001-00000.tar"]
    assert not (out / "index.json").exists()
    run(policy, scenes, out)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert files_of(out) == files_of(run(policy, scenes, tmp_path / "unbroken"))


def test_two_jobs_do_not_write_to_one_folder(policy, scenes, tmp_path, capsys):
    with exclusive(tmp_path / "out"), pytest.raises(InputError, match="another running job writes here"):
        run(policy, scenes, tmp_path / "out")
    run(policy, scenes, tmp_path / "out")
    with pytest.raises(InputError, match=r"made with other settings \(seed: 0 -> 1\)"):
        run(policy, scenes, tmp_path / "out", seed=1)
    assert read_index(tmp_path / "out").examples == 16


def failing_outcomes(monkeypatch, failures):
    """Rollout i of a scene fails after so many seconds at (x, 0), as `failures[i]` says."""

    def outcome(record, scene, limit_m):
        driven_s, x_m = failures[record.rollout_index]
        failed_us = int(record.t_us[~record.is_warmup][0]) + round(driven_s * 1e6)
        return Outcome(driven_s * 8.0, driven_s, "collision_front", failed_us, (x_m, 0.0), None)

    monkeypatch.setattr(rollout_units, "rollout_outcome", outcome)


def test_filters_are_counted_in_the_summary(policy, scenes, tmp_path, monkeypatch):
    failing_outcomes(monkeypatch, [(0.3, 3.0), (1.0, 8.0), (5.0, 40.0)])
    quality = QualityConfig(drop_after_incident=True, full_weight_s=4.0)
    out = run(policy, scenes[:1], tmp_path / "out", replace(EXPERT, rollouts_per_scene=3, quality=quality))
    first, second, third = read_summary(out).rollouts
    assert first.dropped["collision_front within 0.5 s of the hand-over"] == 4
    assert second.dropped["after the first incident"] == 1
    assert (second.examples, second.weight, third.weight) == (3, 0.25, 1.0)
    assert all(row.examples + sum(row.dropped.values()) == row.windows for row in (first, second, third))
    assert [example.meta["weight"] for example in iterate_examples(out)] == [0.25] * 3 + [1.0] * 4
    table = read_summary(out).table()
    assert "dropped 4 windows: collision_front within 0.5 s of the hand-over" in table
    assert "3 examples count less, 0.25 to 0.25" in table
    assert read_index(out).summary["weighted_examples"] == 3


def test_copies_of_one_failure_are_put_aside(policy, scenes, tmp_path, monkeypatch):
    failing_outcomes(monkeypatch, [(2.0, 16.0), (2.1, 17.0), (2.0, 60.0), (2.2, 18.0)])
    quality = QualityConfig(copies_of_failure=1)
    config = replace(EXPERT, rollouts_per_scene=4, batch_size=2, quality=quality)
    out = run(policy, scenes[:1], tmp_path / "out", config)
    assert {example.meta["rollout_index"] for example in iterate_examples(out)} == {0, 2}
    assert [row.examples for row in read_summary(out).rollouts] == [4, 0, 4, 0]
    assert "dropped 8 windows: copy of a failure that is kept already" in read_summary(out).table()
    assert sorted(path.name for path in (out / "copies").glob("*.tar")) == [
        "bend_0-r001-00000.tar", "bend_0-r003-00000.tar"
    ]  # fmt: skip
    assert describe_shards(out)[1] == []
    before = files_of(out)
    (out / "index.json").unlink()
    monkeypatch.setattr(rollout_units, "drive", None)  # nothing is left to drive
    run(policy, scenes[:1], out, config)
    assert files_of(out) == before


def test_the_command_reports_failures_in_its_exit_code(policy, scenes, tmp_path, capsys):
    broken = tmp_path / "broken.usdz"
    broken.write_text("not a zip")
    arguments = ["rollout", "--policy", policy, "--out", tmp_path / "out", "--rollout.guidance.strategy", "expert",
                 "--rollout.rollouts-per-scene", "1", "--simulation.duration-us", "10000000", "--scenes"]  # fmt: skip
    assert main([str(each) for each in [*arguments, *scenes, broken]]) == 1
    assert "roadloop rollout: broken, rollouts 0 failed: " in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "bend_1" in shown
    assert (tmp_path / "out" / "contact_sheet.jpg").stat().st_size > 1000


def test_a_summary_comes_back(policy, scenes, tmp_path):
    summary = read_summary(run(policy, scenes[:1], tmp_path / "out"))
    assert JobSummary.from_json(json.loads(json.dumps(summary.to_json()))) == summary


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
def test_a_real_full_disk_is_one_line(policy, scenes, tmp_path):
    """The kernel refuses to write more than 20 kB into a file."""
    program = textwrap.dedent(f"""
        import resource, signal, sys
        from pathlib import Path
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        import pipelines.rollout as stage
        from pipelines.cli import main
        from pipelines.rollout_units import drive_unit
        stage._run = lambda units, *_: ((unit, drive_unit(unit)) for unit in units)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        sys.exit(main(["rollout", "--policy", {str(policy)!r}, "--scenes", {str(scenes[0])!r}, "--out",
                       {str(tmp_path / "out")!r}, "--rollout.guidance.strategy", "expert",
                       "--rollout.window-stride-s", "0.1", "--simulation.duration-us", "10000000"]))
    """)
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert "out: no space left (File too large); what is finished is safe" in found.stderr
    assert "Traceback" not in found.stderr
    assert list((tmp_path / "out").rglob("*.tar")) == []
