"""The study: its arms, its folder, its results, and a whole tiny one."""

import csv
import json
import math
import sys
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import yaml

from neural_sim.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import road_study
import study.stages
from study.arms import ARMS, BASE, CLIPS, MAIN_ARMS, find_arm, with_drivers
from study.config import StreetsConfig, StudyConfig, claim_folder, load_study
from study.figures import write_figures
from study.page import Origin, insert_table, study_page
from study.results import Row, read_csv, write_csv
from study.stages import Study

TINY = """\
name: tiny
seed: 3
training: {first_seed: 7, count: 1}
recordings: {first_seed: 20, count: 1}
recordings_clip: {duration_s: 9.0, scale: 0.4, cameras: [camera_front_wide_120fov]}
held_out: {first_seed: 9, count: 2}
clip: {duration_s: 9.0, scale: 0.4, cameras: [camera_front_wide_120fov]}
reconstruct: {image_width_px: 128, iterations: 40, max_gaussians: 8000, far_points: 500}
policy: {num_frames: 2, image_width_px: 96, image_height_px: 64, expert_hidden: 64, expert_ffn: 128}
pretrain:
  training: {mode: all, steps: 3, batch_size: 4, micro_batch_size: 4, num_processes: 1, warmup_steps: 1,
             fit_action_statistics: true}
rollout: {rollouts_per_scene: 2, batch_size: 2, window_stride_s: 0.1, guidance: {num_samples: 4}}
finetune: {steps: 3, batch_size: 4, micro_batch_size: 4, num_processes: 1, warmup_steps: 1}
evaluate: {rollouts_per_scene: 2, videos: false, open_loop_stride_s: 0.2, baselines: []}
"""

ORIGIN = Origin("the command", ("a laptop",), 5400.0)


def row(arm, world="splat", **values):
    known = find_arm(arm)
    return Row(arm, known.label, known.group, world, 24, 72, **values, commit="abc")


def four_rows():
    return [
        row(BASE, driving_score=0.4, driving_score_low=0.3, driving_score_high=0.5, collision_at_fault=0.2, ade_m=1.0,
            incidents_per_km=2.5, incidents_per_km_low=2.0, incidents_per_km_high=3.3),
        row("road", driving_score=0.8, driving_score_low=0.6, driving_score_high=None, collision_at_fault=0.05,
            ade_m=1.2, incidents_per_km=1.25, score_gain=1.0, collision_change=-0.75, difference=-1.25,
            difference_low=-2.0, difference_high=-0.5, p_value=0.001, examples=1000, wall_s=1800.0),
        row(BASE, "town", driving_score=0.3),
        row("road", "town", driving_score=0.45, score_gain=0.5),
    ]  # fmt: skip


def test_arms_are_those_of_the_paper_and_ask_for_settings_that_exist():
    assert MAIN_ARMS == (BASE, "continued_bc", "expert", "road")
    samples = {arm.rollout_changes.get("guidance.num_samples", 64) for arm in ARMS}
    rollouts = {arm.rollout_changes.get("rollouts_per_scene", 3) for arm in ARMS}
    assert (samples, rollouts) == ({16, 32, 64, 128}, {1, 3, 9})
    assert len({arm.steps_scale for arm in ARMS}) == 3
    strategies = {arm.rollout_changes.get("guidance.strategy", "road") for arm in ARMS}
    assert strategies == {"road", "none", "road_no_recovery", "expert", "dagger", "perturb"}
    for arm in ARMS:
        changes = {f"rollout.{name}": value for name, value in arm.rollout_changes.items()}
        changed = StudyConfig().changed(changes)
        assert (changed == StudyConfig()) == (not changes)


def test_arms_share_data_exactly_where_it_is_made_alike():
    study = Study(StudyConfig(), Path("study"), Path("study"))
    makers = {}
    for arm in ARMS:
        if arm.data and arm.data != CLIPS:
            made_by = (arm.driver, tuple(arm.rollout_changes.items()))
            assert makers.setdefault(study.data(arm), made_by) == made_by
    assert study.data(find_arm("long")) == study.data(find_arm("road"))
    assert study.data(find_arm("twice")) != study.data(find_arm("road"))


def test_an_arm_brings_the_arms_it_starts_from():
    assert [arm.name for arm in with_drivers(["twice"])] == [BASE, "road", "twice"]
    assert [arm.name for arm in with_drivers(["expert", BASE, "road"])] == [BASE, "expert", "road"]
    with pytest.raises(InputError, match=r"no arm 'rod' in the study; did you mean 'road'\?"):
        find_arm("rod")


def test_a_street_is_learned_from_or_driven_in_never_both():
    with pytest.raises(InputError, match="expected no street in two of them"):
        StudyConfig(training=StreetsConfig(100, 24), held_out=StreetsConfig(120, 24))
    with pytest.raises(InputError, match="0 streets in training, 24 in held_out; expected one or more"):
        StudyConfig(training=StreetsConfig(100, 0))
    with pytest.raises(InputError, match="nerf_streets is 30, expected 1 to 24"):
        StudyConfig(nerf_streets=30, worlds=("nerf",))


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs" / "study").glob("*.yaml")))
def test_shipped_studies_are_read(path):
    assert load_study(path).name == path.stem


def test_a_study_of_another_configuration_is_refused_and_the_fields_are_named(tmp_path):
    out = tmp_path / "study"
    claim_folder(StudyConfig(), out)
    claim_folder(StudyConfig(worlds=("town",)), out)
    other = StudyConfig().changed({"finetune.steps": 7, "seed": 5})
    with pytest.raises(InputError, match=r"another configuration \(seed: 0 -> 5; finetune\.steps: 4200 -> 7\)"):
        claim_folder(other, out)


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty and no study"):
        claim_folder(StudyConfig(), tmp_path)


def test_time_of_an_interrupted_unit_counts(tmp_path):
    study = Study(StudyConfig(), tmp_path, tmp_path)
    for unit in ("finetune road", "finetune road", "evaluate road splat", "evaluate road town", "data road_by_base"):
        with study.timings.measure(unit):
            pass
    with pytest.raises(KeyboardInterrupt), study.timings.measure("finetune road"):
        raise KeyboardInterrupt
    lines = [json.loads(line) for line in (tmp_path / "timings.jsonl").read_text().splitlines()]
    lines = [{**line, "wall_s": 10.0**place} for place, line in enumerate(lines)]
    (tmp_path / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert study.seconds(find_arm("road"), "splat") == 110_111.0  # all but the true world's 1000
    assert len(study.timings.machines()) == 1


def test_rows_survive_the_csv(tmp_path):
    write_csv(four_rows(), tmp_path / "results.csv")
    assert read_csv(tmp_path / "results.csv") == four_rows()
    (tmp_path / "other.csv").write_text("arm,score\nbase,1\n")
    with pytest.raises(InputError, match="expected those of the study"):
        read_csv(tmp_path / "other.csv")


def test_the_page_says_what_was_found(tmp_path):
    figures = write_figures(four_rows(), tmp_path)
    page = study_page(StudyConfig(), four_rows(), [], [path.name for path in figures], ORIGIN)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert "Commit abc; a laptop." in page
    assert "Driving score, RoaD against base: +100% (the paper: +41%)." in page
    assert "At-fault collisions: \u221275% (the paper: \u221254%)." in page
    assert "The intervals of the driving scores do not touch, those of the collisions are open at one end." in page
    assert "All of it took 1.5 h." in page
    assert "the base is as good as RoaD or better: ADE 1.00 m against 1.20 m" in page
    assert (
        "| RoaD | 0.800 (0.600 to open) | 0.050 | \u2013 | \u2013 | \u22121.25 (\u22122.00 to \u22120.50) | 0.0010 |"
        in page
    )
    assert "| RoaD | 0.800 | +100% | 0.450 | +50% |" in page


def test_touching_intervals_are_not_called_apart():
    base, road, *_ = four_rows()
    page = study_page(StudyConfig(), [base, Row(**{**vars(road), "driving_score_low": 0.45})], [], [], ORIGIN)
    assert "The intervals of the driving scores touch, " in page


def test_the_table_goes_between_the_marks_of_the_readme(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# a\n<!-- study: table begins -->\nold\n<!-- study: table ends -->\nb\n")
    insert_table(readme, four_rows())
    text = readme.read_text()
    assert text.startswith("# a\n<!-- study: table begins -->")
    assert text.endswith("<!-- study: table ends -->\nb\n")
    assert "old" not in text
    assert text.count("| RoaD |") == 1
    readme.write_text("# a\n")
    with pytest.raises(InputError, match="put them where the table shall be"):
        insert_table(readme, four_rows())


def test_a_mistake_ends_with_one_line_and_code_2(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("name: x\nfinetune: {stepz: 3}\n")
    assert road_study.main(["--config", str(config)]) == 2
    assert "unknown field 'finetune.stepz'; did you mean 'steps'?" in capsys.readouterr().err


@pytest.fixture
def stages(monkeypatch):
    """The stages, replaced by recorders with their signatures."""
    names = ("rollout", "finetune", "pretrain", "evaluate", "write_clip_shards", "reconstruct_nerf", "run_units")
    recorders = {name: create_autospec(getattr(study.stages, name)) for name in names}
    recorders["run_units"].return_value = iter(())
    for name, recorder in recorders.items():
        monkeypatch.setattr(study.stages, name, recorder)
    return recorders


def test_an_arm_asks_the_stages_for_what_sets_it_apart(tmp_path, stages):
    config = StudyConfig(training=StreetsConfig(100, 2), held_out=StreetsConfig(200, 3))
    config = config.changed({"finetune.steps": 1000})
    work = Study(config, tmp_path, tmp_path)
    for name in ("k_16", "expert", "twice", "long", "continued_bc"):
        work.make_policy(find_arm(name))
    asked = [call.kwargs["config"] for call in stages["rollout"].call_args_list]
    assert [one.guidance.num_samples for one in asked] == [16, 64, 64, 64]
    assert [one.guidance.strategy for one in asked] == ["road", "expert", "road", "road"]
    assert [call.args[0].name for call in stages["rollout"].call_args_list] == [BASE, BASE, "road", BASE]
    assert all(len(call.args[1]) == 2 for call in stages["rollout"].call_args_list)
    assert [call.kwargs["config"].steps for call in stages["finetune"].call_args_list] == [1000, 1000, 1000, 2400, 1000]
    assert [call.args[0].name for call in stages["finetune"].call_args_list] == [BASE, BASE, "road", BASE, BASE]
    assert stages["finetune"].call_args_list[-1].args[1] == [tmp_path / "data" / "clips"]


def test_base_learns_from_every_recorded_drive(tmp_path, stages):
    config = StudyConfig(training=StreetsConfig(100, 2), recordings=StreetsConfig(1000, 3))
    Study(config, tmp_path, tmp_path).make_policy(find_arm(BASE))
    assert len(stages["write_clip_shards"].call_args.args[0]) == 5
    assert stages["pretrain"].call_args.kwargs["shards"] == [tmp_path / "data" / "clips"]


def test_each_world_is_driven_with_the_same_seeds_and_nerfs_only_in_part(tmp_path, stages):
    config = StudyConfig(held_out=StreetsConfig(200, 5), nerf_streets=2, worlds=("splat", "nerf", "town"))
    work = Study(config, tmp_path, tmp_path)
    work.make_nerfs()
    for world in config.worlds:
        work.evaluate_arm(find_arm("road"), world)
    assert stages["reconstruct_nerf"].call_count == 2
    calls = stages["evaluate"].call_args_list
    assert [len(call.args[1]) for call in calls] == [5, 2, 5]
    assert [call.kwargs["config"].renderer for call in calls] == ["splat", "nerf", "town"]
    assert {call.kwargs["seed"] for call in calls} == {0}


def test_data_that_was_learned_from_is_not_tried_again(tmp_path, stages):
    work = Study(StudyConfig(), tmp_path, tmp_path)
    work.make_policy(find_arm("road"))
    work.checkpoint("road").mkdir(parents=True)
    for name in ("short", "k_32"):
        work.make_policy(find_arm(name))
    assert [call.kwargs["retry_failed"] for call in stages["rollout"].call_args_list] == [True, False, True]


def test_streets_are_made_once_and_recordings_are_not_reconstructed(tmp_path, stages):
    config = StudyConfig(
        training=StreetsConfig(100, 1), held_out=StreetsConfig(200, 1), recordings=StreetsConfig(1000, 2)
    )
    work = Study(config, tmp_path, tmp_path)
    work.clip(1001).mkdir(parents=True)
    work.clip(100).mkdir()
    work.make_streets()
    units = stages["run_units"].call_args.args[1]
    assert [(unit.options.seed, unit.scenes is None) for unit in units] == [(1000, True), (100, False), (200, False)]


@pytest.mark.slow
def test_a_tiny_study_runs_resumes_and_reports(tmp_path, compiled_rasterizer):
    config, out = tmp_path / "tiny.yaml", tmp_path / "study"
    config.write_text(TINY)
    arguments = ["--config", str(config), "--out", str(out), "--jobs", "2"]
    assert road_study.main([*arguments, "--arm", "road"]) == 0
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.usdz")} | {
        path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")
    }
    (out / "results.csv").unlink()
    assert road_study.main([*arguments, "--arm", "road"]) == 0
    assert all(path.stat().st_mtime_ns == at for path, at in made.items())
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(line["arm"], line["world"]) for line in rows] == [
        (arm, world) for world in ("splat", "town") for arm in (BASE, "road")
    ]
    summary = json.loads((out / "reports/town/road/summary.json").read_text())["policies"]["road"]
    found = next(line for line in rows if (line["arm"], line["world"]) == ("road", "town"))
    assert math.isclose(float(found["incidents_per_km"]), summary["incidents_per_km"]["mean"])
    assert "## From the reconstruction to the true world" in (out / "results.md").read_text()
    changed = {**yaml.safe_load(TINY), "seed": 4}
    config.write_text(yaml.safe_dump(changed))
    assert road_study.main([*arguments, "--arm", "road"]) == 2
