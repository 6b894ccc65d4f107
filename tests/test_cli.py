"""The command line: help, exit codes, and one clear line for a user's mistake."""

import subprocess
import sys

import numpy as np
import pytest
from test_kitti_odometry import write_layout

from neural_sim.clips.storage import read_clip
from pipelines.cli import main


def complaint(capsys, *arguments: object) -> str:
    """Run a command that must be refused with exit code 2; returns what it says."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


def test_no_command_shows_the_commands(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "inspect PATH" in capsys.readouterr().out


@pytest.mark.parametrize("command", [
    "ingest", "reconstruct", "pretrain", "rollout", "finetune", "evaluate", "compare", "run", "demo",
    "import", "export", "inspect",
])  # fmt: skip
def test_every_command_explains_its_fields(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_options_of_ingest_may_be_given_without_their_unit(tmp_path):
    clip = tmp_path / "clip"
    given = ["--start", "1", "--duration=8", "--rate", "5", "--scale", "0.2", "--cameras", "camera_front_wide_120fov"]
    assert main(["ingest", "town", "--seed", "7", "--out", str(clip), *given]) == 0
    frames = read_clip(clip).cameras["camera_front_wide_120fov"]
    assert np.diff(frames.t_us).tolist() == [200_000] * 40


def test_the_renderer_of_an_evaluation_may_be_given_without_its_group(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("pipelines.evaluate.evaluate", lambda *_, **given: asked.append(given["config"].renderer))
    arguments = ["evaluate", "--policies", str(tmp_path), "--scenes", str(tmp_path / "s.usdz"), "--out", str(tmp_path)]
    for given in (["--renderer", "nerf"], ["--renderer=town"], []):
        main([*arguments, *given])
    assert asked == ["nerf", "town", "splat"]


def test_help_gives_units_and_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["rollout", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--rollout.guidance.num-samples" in text
    assert "farther than this from the expert, m (equation 7)" in text
    assert "default: 64" in text


def test_a_config_file_gives_defaults_and_flags_win(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text("rollout: {rollouts_per_scene: 7, guidance: {num_samples: 9}}")
    with pytest.raises(SystemExit):
        main(["rollout", "--config", str(config), "--rollout.guidance.num-samples", "5", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "default: 7" in text
    assert "default: 9" in text


def test_unknown_commands_and_fields_are_named(tmp_path, capsys):
    assert main(["drive"]) == 2
    assert "unknown command 'drive'" in capsys.readouterr().err
    config = tmp_path / "run.yaml"
    config.write_text("finetune: {learning_rat: 1}")
    message = complaint(capsys, "run", "--config", config, "--out", tmp_path / "run")
    assert "unknown field 'finetune.learning_rat'; did you mean 'learning_rate'?" in message
    assert not (tmp_path / "run").exists()
    assert "--config FILE is required" in complaint(capsys, "run")
    assert "no such configuration file" in complaint(capsys, "run", "--config", tmp_path / "none.yaml")


def test_a_run_needs_clips(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text("name: empty")
    assert "configuration 'empty' has no clips" in complaint(capsys, "run", "--config", config, "--out", tmp_path / "o")


def ingest(capsys, root, out):
    return complaint(capsys, "ingest", "kitti-odometry", "--root", root, "--out", out)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda root: (root / "sequences/07/image_2/000004.png").unlink(), "000004.png"),
    (lambda root: (root / "sequences/07/image_2/000004.png").write_bytes(b"\x89PNG\r\n"), "000004.png"),
    (lambda root: (root / "poses/07.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n"), "poses/07.txt"),
    (lambda root: (root / "sequences/07/times.txt").write_text("0.0\n" * 200), "times.txt"),
], ids=["missing frame", "truncated image", "short pose file", "times that stand still"])  # fmt: skip
def test_a_bad_drive_gets_one_line_and_leaves_earlier_clips_alone(tmp_path, capsys, damage, message):
    root, good = write_layout(tmp_path / "kitti"), tmp_path / "clips" / "good"
    assert main(["ingest", "kitti-odometry", "--root", str(root), "--out", str(good)]) == 0
    before = {path: path.read_bytes() for path in good.rglob("*") if path.is_file()}
    damage(root)
    assert message in ingest(capsys, root, tmp_path / "clips" / "bad")
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["good", "good.provenance.json"]
    assert {path: path.read_bytes() for path in good.rglob("*") if path.is_file()} == before


def test_a_clip_shorter_than_history_and_horizon_is_refused(tmp_path, capsys):
    root, clip = write_layout(tmp_path / "kitti"), tmp_path / "short"
    message = complaint(capsys, "ingest", "kitti-odometry", "--root", root, "--duration-s", "3", "--out", clip)
    assert "2.91 s long, but 8.00 s are required (1.6 s history and 6.4 s plan); ingest a longer range" in message
    assert list(tmp_path.iterdir()) == [root]


def test_a_failed_reconstruction_or_import_leaves_nothing(tmp_path, capsys):
    root, clip, out = write_layout(tmp_path / "kitti"), tmp_path / "clip", tmp_path / "scenes"
    assert main(["ingest", "kitti-odometry", "--root", str(root), "--out", str(clip)]) == 0
    image = next((clip / "frames").rglob("*.png"))
    image.write_bytes(image.read_bytes()[:200])
    assert image.name in complaint(capsys, "reconstruct", "--clips", clip, "--out", out, "--device", "cpu")
    assert list(out.iterdir()) == []
    (tmp_path / "g.ply").write_text("ply, but no more")
    assert "g.ply" in complaint(capsys, "import", tmp_path / "g.ply", "--clip", clip, "--out", out / "g.usdz")
    assert list(out.iterdir()) == []


def test_a_file_that_is_no_scene_is_refused(tmp_path, capsys):
    scene = tmp_path / "scene.usdz"
    scene.write_text("not a zip")
    message = complaint(capsys, "rollout", "--policy", tmp_path, "--scenes", scene, "--out", tmp_path / "shards")
    assert str(scene) in message
    assert main(["inspect", str(scene)]) in {1, 2}
    assert not (tmp_path / "shards").exists()


def test_an_unknown_dataset_is_answered_with_the_closest(tmp_path, capsys):
    assert "did you mean 'town'" in complaint(capsys, "ingest", "twon", "--out", tmp_path / "clip")


def test_importing_any_package_loads_no_heavy_library():
    program = (
        "import sys, vla.policy, controllers, neural_sim.scenes.scene, eval.protocol, pipelines.cli\n"
        "print([name for name in ('gsplat', 'deepspeed', 'ray', 'nerfstudio', 'wandb') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
