"""The whole loop as a user runs it: every stage, killed in every stage, with one worker and with two."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neural_sim.errors import InputError
from pipelines.cli import main
from pipelines.inspect import inspect

CONFIG = """\
name: tiny
seed: 3
clips:
  - name: street
    dataset: town
    options: {seed: 7, sequence: bends, duration_s: 9.0, scale: 0.4, cameras: [camera_front_wide_120fov]}
reconstruct: {image_width_px: 128, iterations: 60, max_gaussians: 8000, far_points: 500, checkpoint_every: 20}
policy: {num_frames: 2, image_width_px: 96, image_height_px: 64, expert_hidden: 64, expert_ffn: 128}
pretrain:
  window_stride_s: 0.1
  training: {mode: all, steps: 6, batch_size: 4, micro_batch_size: 2, num_processes: 2, save_every: 2,
             learning_rate: 1.0e-3, warmup_steps: 2, fit_action_statistics: true}
rollout: {rollouts_per_scene: 3, batch_size: 2, window_stride_s: 0.1, guidance: {num_samples: 4}}
finetune: {mode: freeze_vision, steps: 6, batch_size: 4, micro_batch_size: 2, num_processes: 2, save_every: 2,
           learning_rate: 3.0e-4, warmup_steps: 2}
evaluate: {rollouts_per_scene: 2, batch_size: 1}
"""

# What appears in the run's folder while a stage is at work, in order of the stages.
AT_WORK = {
    "ingest": "clips/street.provenance.json",
    "reconstruct": "scenes/.street.work/*",
    "pretrain": "checkpoints/base.steps/step_*",
    "rollout": "rollouts/round_1/*.unit.json",
    "finetune": "checkpoints/round_1.steps/step_*",
    "evaluate": "reports/final/rollouts/*-r*",
}


def start(config: Path, out: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.cli", "run", "--config", str(config), "--out", str(out)]
    return subprocess.Popen([*command, "--workers", str(workers)], stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]


def kill_in(stage: str, process: subprocess.Popen, out: Path) -> None:
    deadline = time.monotonic() + 600
    while not any(out.glob(AT_WORK[stage])):
        assert process.poll() is None, f"the run ended before {stage}: {process.communicate()[1][-3000:]}"
        assert time.monotonic() < deadline, f"{stage} never started"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, compiled_rasterizer):
    """An unbroken run with two workers, and beside it one with one worker that is killed in every stage."""
    folder = tmp_path_factory.mktemp("loop")
    config = folder / "tiny.yaml"
    config.write_text(CONFIG)
    unbroken = start(config, folder / "unbroken", workers=2)
    for stage in AT_WORK:
        kill_in(stage, start(config, folder / "killed", workers=1), folder / "killed")
    finish(start(config, folder / "killed", workers=1))
    finish(unbroken)
    return folder / "unbroken", folder / "killed"


def test_killed_in_every_stage_it_ends_with_the_same_weights_and_metrics(runs):
    unbroken, killed = runs
    for name in ("base", "round_1"):
        for path in sorted((unbroken / "checkpoints" / name).rglob("*.safetensors")):
            assert path.read_bytes() == (killed / path.relative_to(unbroken)).read_bytes(), path
    for name in ("reports/final/summary.json", "reports/final/metrics.parquet", "scenes/street.usdz"):
        assert (unbroken / name).read_bytes() == (killed / name).read_bytes(), name


def test_rollouts_do_not_depend_on_the_number_of_workers(runs):
    shards = [{path.name: path.read_bytes() for path in (run / "rollouts/round_1").glob("*.tar")} for run in runs]
    assert len(shards[0]) == 2
    assert shards[0] == shards[1]


def test_nothing_unfinished_is_left_behind(runs):
    for run in runs:
        leftovers = [path for path in run.rglob(".*") if not path.name.endswith(".lock")]
        assert leftovers == []


@pytest.mark.parametrize(("path", "kind"), [
    ("clips/street", "clip"), ("scenes/street.usdz", "scene"), ("rollouts/round_1", "shards"),
    ("checkpoints/base", "checkpoint"), ("checkpoints/round_1", "checkpoint"), ("reports/final", "report"),
    (".", "run"),
])  # fmt: skip
def test_inspect_names_and_checks_every_artefact(runs, path, kind):
    found = inspect(runs[1] / path)
    assert found.kind == kind
    assert found.problems == []
    assert found.facts


def test_every_artefact_says_how_it_was_made(runs):
    unbroken, _ = runs
    for name in ("clips/street", "scenes/street.usdz", "checkpoints/base", "rollouts/round_1", "reports/final"):
        made = json.loads((unbroken / f"{name}.provenance.json").read_text())
        assert made["settings"]
        assert made["versions"]["torch"]


def test_the_report_holds_both_policies_and_a_video_of_each_rollout(runs):
    summary = json.loads((runs[0] / "reports/final/summary.json").read_text())
    assert list(summary["policies"]) == ["base", "round_1", "expert", "constant_velocity"]
    assert summary["policies"]["base"]["dist_traveled_m"]["mean"] > 1
    html = (runs[0] / "reports/final/report.html").read_text()
    assert html.count('<figure id="video-') == 4


def test_the_policies_can_be_evaluated_in_the_true_world(runs, tmp_path):
    arguments = ["evaluate", "--config", str(runs[0].parent / "tiny.yaml"), "--out", str(tmp_path / "report")]
    arguments += ["--policies", str(runs[0] / "checkpoints/base"), "--scenes", str(runs[0] / "scenes/street.usdz")]
    arguments += ["--evaluate.renderer", "town", "--evaluate.rollouts-per-scene", "1", "--workers", "1"]
    arguments += ["--evaluate.no-videos", "--evaluate.no-open-loop"]
    assert main(arguments) == 0
    summary = json.loads((tmp_path / "report/summary.json").read_text())
    assert summary["conditions"]["renderer"] == "town"
    assert summary["policies"]["base"]["dist_traveled_m"]["mean"] > 1


def test_another_configuration_does_not_touch_a_run(runs, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(CONFIG.replace("iterations: 60", "iterations: 61"))
    before = (runs[0] / "config.yaml").read_bytes()
    process = start(other, runs[0], workers=2)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "holds a run with another configuration (reconstruct.iterations: 60 -> 61)" in errors
    assert "Traceback" not in errors
    assert (runs[0] / "config.yaml").read_bytes() == before


def test_inspect_refuses_what_is_not_ours(tmp_path):
    with pytest.raises(InputError, match="not a roadloop artefact; expected a scene"):
        inspect(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        inspect(tmp_path / "nothing")
