"""When rollouts are driven anew, and which generations a round learns from."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelines.run as stage
from neural_sim.errors import InputError
from pipelines.config import RunConfig
from pipelines.execution import ExecutionConfig
from pipelines.rounds import plan_rounds
from pipelines.training.config import TrainingConfig


def generations(*arguments, **options):
    return [each.generations for each in plan_rounds(*arguments, **options)]


def test_each_round_drives_and_learns_from_the_newest():
    assert generations(3, 100, "each_round") == [(1,), (2,), (3,)]


def test_once_drives_in_the_first_round_only():
    rounds = plan_rounds(3, 100, "once")
    assert [each.generations for each in rounds] == [(1,), (1,), (1,)]
    assert [each.drives for each in rounds] == [True, False, False]


def test_every_steps_skips_rounds():
    assert generations(5, 100, "every_steps", 200) == [(1,), (1,), (3,), (3,), (5,)]


def test_every_steps_splits_rounds():
    rounds = plan_rounds(2, 100, "every_steps", 50)
    assert [(each.index, each.steps, each.drives) for each in rounds] == [(i, 50, True) for i in (1, 2, 3, 4)]


def test_older_generations_are_kept():
    assert generations(4, 100, "each_round", keep_rounds=2) == [(1,), (1, 2), (2, 3), (3, 4)]
    assert generations(3, 100, "each_round", keep_rounds=0) == [(1,), (1, 2), (1, 2, 3)]
    assert generations(5, 100, "every_steps", 200, keep_rounds=0) == [(1,), (1,), (1, 3), (1, 3), (1, 3, 5)]


@given(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
def test_all_steps_are_trained_on_rollouts_that_exist(rounds, factor, every, keep):
    planned = plan_rounds(rounds, factor * every, "every_steps", every, keep)
    assert sum(each.steps for each in planned) == rounds * factor * every
    driven = {each.index for each in planned if each.drives}
    assert all(each.generations and set(each.generations) <= driven for each in planned)


@pytest.mark.parametrize("every", [0, 30, 150])
def test_steps_that_do_not_fit_are_refused(every):
    with pytest.raises(InputError, match=rf"regenerate_every_steps is {every}, expected a divisor or a multiple"):
        plan_rounds(2, 100, "every_steps", every)


def stages_of(monkeypatch, config: RunConfig) -> list[str]:
    """What a run does between pretraining and evaluation, a line each."""
    done = []
    monkeypatch.setattr(stage, "pretrain", lambda *_, out, **__: out)
    monkeypatch.setattr(
        stage, "rollout", lambda policy, scenes, *, out, **_: done.append(f"{policy.name} drives {out.name}")
    )

    def finetune(policy, shards, *, out, config, **_):
        done.append(f"{policy.name} + {' '.join(each.name for each in shards)} -> {out.name} in {config.steps}")
        return out

    monkeypatch.setattr(stage, "finetune", finetune)
    stage._train(config, [], [], Path("run"), "cpu", 1, True)
    return done


def test_a_run_drives_once_and_learns_on(monkeypatch):
    config = RunConfig(rounds=2, regenerate="once", finetune=TrainingConfig(steps=10))
    assert stages_of(monkeypatch, config) == [
        "base drives round_1", "base + round_1 -> round_1 in 10", "round_1 + round_1 -> round_2 in 10"
    ]  # fmt: skip


def test_a_run_drives_every_so_many_steps_and_mixes_generations(monkeypatch):
    config = RunConfig(
        rounds=1, regenerate="every_steps", regenerate_every_steps=5, keep_rounds=0, finetune=TrainingConfig(steps=10)
    )
    assert stages_of(monkeypatch, config) == [
        "base drives round_1", "base + round_1 -> round_1 in 5",
        "round_1 drives round_2", "round_1 + round_1 round_2 -> round_2 in 5",
    ]  # fmt: skip


def test_where_a_run_is_driven_does_not_make_it_another_run(tmp_path):
    config = RunConfig()
    stage._save_config(config, tmp_path / "config.yaml", resume=True)
    elsewhere = replace(config, execution=ExecutionConfig(engine="ray"))
    stage._save_config(elsewhere, tmp_path / "config.yaml", resume=True)
    with pytest.raises(InputError, match="another configuration"):
        stage._save_config(replace(elsewhere, rounds=7), tmp_path / "config.yaml", resume=True)
