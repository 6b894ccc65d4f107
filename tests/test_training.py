import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_fixtures import CAMERA, make_policy, write_shards

from neural_sim.errors import InputError
from pipelines.training.config import TrainingConfig
from pipelines.training.data import ExampleSource, Loader, example_numbers, generator_seed
from pipelines.training.engine import deepspeed_config
from pipelines.training.job import TrainingJob, check_job, read_job, write_job
from pipelines.training.log import TrainingLog, loss_summary, read_log
from pipelines.training.schedule import lr_factor
from pipelines.training.state import check_resume, drop_unfinished_states, state_folder, tag
from pipelines.training.train import train

SMALL = TrainingConfig(steps=10, batch_size=4, micro_batch_size=2, warmup_steps=2)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy") / "base")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "training steps: found 0, expected 1 or more"),
        ({"learning_rate": -1.0}, "training learning_rate: found -1.0, expected a number above 0"),
        ({"zero_stage": 4}, "training zero_stage: found 4, expected 0, 1, 2 or 3"),
        ({"mode": "half"}, "training mode: found 'half', expected one of all, freeze_vision, freeze_backbone, lora"),
        ({"batch_size": 6, "micro_batch_size": 4}, "batch_size: found 6, expected a multiple of micro_batch_size, 4"),
        ({"final_lr_scale": 2.0}, "final_lr_scale: found 2.0, expected a share of the peak"),
    ],
)
def test_bad_settings_are_named(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TrainingConfig(), **change)


def test_accumulation_divides_the_batch() -> None:
    config = TrainingConfig(batch_size=16, micro_batch_size=2)
    assert [config.accumulation(n) for n in (1, 2, 4, 8)] == [8, 4, 2, 1]
    with pytest.raises(InputError, match="batch_size 16 does not divide into 3 processes of micro_batch_size 2"):
        config.accumulation(3)


def test_learning_rate_rises_and_falls() -> None:
    config = TrainingConfig(steps=101, warmup_steps=10, final_lr_scale=0.1)
    factors = [lr_factor(step, config) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.1 + 0.9 * 0.5)
    assert factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert lr_factor(0, TrainingConfig(steps=1, warmup_steps=0)) == 1.0


@settings(max_examples=40, deadline=None)
@given(
    total=st.integers(4, 60), world=st.sampled_from([1, 2, 4]), micro=st.integers(1, 3), accumulation=st.integers(1, 3),
    seed=st.integers(0, 5),
)  # fmt: skip
def test_processes_share_each_epoch_without_overlap(
    total: int, world: int, micro: int, accumulation: int, seed: int
) -> None:
    config = TrainingConfig(batch_size=world * micro * accumulation, micro_batch_size=micro)
    epochs = 2
    steps = math.ceil(epochs * total / config.batch_size)
    drawn: list[int] = []
    for step in range(steps):
        for index in range(world * accumulation):
            drawn.extend(example_numbers(seed, total, config, step, index).tolist())
    for epoch in range(epochs):
        assert sorted(drawn[epoch * total : (epoch + 1) * total]) == list(range(total))


def test_micro_batches_do_not_depend_on_the_number_of_processes(shards: Path) -> None:
    def seen(world: int) -> dict[tuple[int, int], tuple[str, ...]]:
        found = {}
        for rank in range(world):
            with Loader(ExampleSource([shards]), replace(SMALL, steps=5), 3, rank, world, 0) as loader:
                found |= {(micro.step, micro.index): micro.keys for micro in loader}
        return found

    alone, together = seen(1), seen(2)
    assert alone == together
    assert len(alone) == 10


def test_loader_continues_where_a_state_stands(shards: Path) -> None:
    def keys(first_step: int) -> list[tuple[str, ...]]:
        with Loader(ExampleSource([shards]), SMALL, 3, 1, 2, first_step) as loader:
            return [micro.keys for micro in loader]

    assert keys(7) == keys(0)[7:]


def test_sources_are_numbered_in_order(shards: Path) -> None:
    source = ExampleSource([shards, shards])
    assert len(source) == 20
    assert [source.read(n).meta["step"] for n in range(20)] == [*range(10), *range(10)]
    targets, speeds = source.targets_and_speeds()
    assert targets.shape == (20, 64, 3)
    np.testing.assert_allclose(speeds[:10], 3.0 + 0.5 * np.arange(10))


def test_noise_seeds_differ() -> None:
    seeds = {generator_seed(seed, step, index) for seed in range(3) for step in range(10) for index in range(4)}
    assert len(seeds) == 120
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_deepspeed_settings_come_from_the_file_of_the_stage() -> None:
    settings_2 = deepspeed_config(replace(SMALL, zero_stage=2), 2, trained_weights=5000)
    assert settings_2["zero_optimization"]["stage"] == 2
    assert settings_2["zero_optimization"]["reduce_bucket_size"] == 5000
    assert settings_2["gradient_accumulation_steps"] == 1
    assert settings_2["train_batch_size"] == 4
    for stage in range(4):
        assert deepspeed_config(replace(SMALL, zero_stage=stage), 1, 10**9)["zero_optimization"]["stage"] == stage


def test_a_job_travels_through_its_file(tmp_path: Path) -> None:
    config = replace(SMALL, mode="lora", lora_targets=("q_proj",))
    job = TrainingJob(Path("p"), (Path("a"), Path("b")), tmp_path / "out", config, 5, "cpu")
    write_job(job, tmp_path / "job.json")
    assert read_job(tmp_path / "job.json") == job
    assert job.work == tmp_path / ".out.training"


def test_too_few_examples_are_refused_with_the_numbers(policy: Path, shards: Path, tmp_path: Path) -> None:
    config = replace(SMALL, batch_size=12)
    with pytest.raises(InputError, match=rf"10 examples \({shards}: 10\) are fewer than batch_size 12; write more"):
        train(policy, [shards], tmp_path / "out", config, seed=0, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_broken_shards_are_refused_before_anything_starts(policy: Path, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", 6)
    tar = folder / "unit_1-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"unit_1-00000\.tar: the shard is cut short"):
        train(policy, [folder], tmp_path / "out", SMALL, seed=0, device="cpu")


def test_jobs_that_cannot_work_are_refused(policy: Path, shards: Path, tmp_path: Path) -> None:
    job = TrainingJob(policy, (shards,), tmp_path / "out", SMALL, 0, "cpu")
    check_job(job, 2)
    with pytest.raises(InputError, match="batch_size 4 does not divide into 3 processes"):
        check_job(job, 3)
    with pytest.raises(InputError, match="at least one folder of shards"):
        check_job(replace(job, shards=()), 1)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        check_job(replace(job, policy=tmp_path / "nowhere"), 1)
    with pytest.raises(InputError, match="no such folder of shards"):
        check_job(replace(job, shards=(shards, tmp_path / "nowhere")), 1)


def test_shards_for_another_policy_are_refused(policy: Path, tmp_path: Path) -> None:
    from training_fixtures import make_example

    from pipelines.shards.writer import ShardWriter, finalize

    with ShardWriter(tmp_path / "s", "u") as writer:
        for number in range(4):
            writer.write(make_example(number, cameras=("camera_rear",)))
    finalize(tmp_path / "s", ["u"], {})
    job = TrainingJob(policy, (tmp_path / "s",), tmp_path / "out", SMALL, 0, "cpu")
    with pytest.raises(InputError, match=rf"{CAMERA}': \[2, 32, 64\].* but the shards hold {{'camera_rear'"):
        check_job(job, 1)


def test_an_existing_checkpoint_is_not_overwritten(policy: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out: already exists and is not the result of this run"):
        train(policy, [shards], tmp_path / "out", SMALL, seed=0, device="cpu")


def test_a_finished_job_is_not_run_again(policy: Path, shards: Path, tmp_path: Path) -> None:
    job = TrainingJob(policy, (shards,), tmp_path / "out", SMALL, 0, "cpu")
    job.out.mkdir()
    (job.out / "training.json").write_text(json.dumps({"job": job.identity(1)}))
    assert train(policy, [shards], job.out, SMALL, seed=0, device="cpu") == job.out
    with pytest.raises(InputError, match="already exists"):
        train(policy, [shards], job.out, SMALL, seed=1, device="cpu")


def test_resume_names_what_changed(tmp_path: Path) -> None:
    folder = state_folder(tmp_path)
    (folder / tag(4)).mkdir(parents=True)
    record = {"format_version": 1, "step": 4, "job": {"seed": 1, "learning_rate": 0.1}}
    (folder / "latest.json").write_text(json.dumps(record))
    assert check_resume(tmp_path, {"seed": 1, "learning_rate": 0.1}) == 4
    with pytest.raises(InputError, match=r"stopped after step 4 .*\(learning_rate: 0\.1 -> 0\.2\); restore these"):
        check_resume(tmp_path, {"seed": 1, "learning_rate": 0.2})
    (folder / tag(6)).mkdir()
    drop_unfinished_states(tmp_path, 4)
    assert sorted(path.name for path in folder.iterdir()) == ["latest.json", tag(4)]
    assert check_resume(tmp_path / "nothing", {}) == 0


def test_settings_without_effect_do_not_stop_a_resume(policy: Path, shards: Path, tmp_path: Path) -> None:
    job = TrainingJob(policy, (shards,), tmp_path / "out", SMALL, 0, "cpu")
    same = replace(job, config=replace(SMALL, save_every=3, log_every=1, loader_threads=1, prefetch=9, keep=7))
    assert json.loads(json.dumps(job.identity(1))) == same.identity(1)
    assert replace(job, config=replace(SMALL, steps=11)).identity(1) != job.identity(1)
    assert job.identity(2) != job.identity(1)


def test_log_continues_after_the_state(tmp_path: Path) -> None:
    def add(log: TrainingLog, step: int, loss: float) -> None:
        log.add(step, {"loss": loss}, 0.0, {"expert": 1e-3})

    with TrainingLog(tmp_path, 0, 2, 4) as log:
        for step in range(1, 7):
            add(log, step, float(step))
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"step": 8, "lo')
    with TrainingLog(tmp_path, 4, 2, 4) as log:
        for step in range(5, 9):
            add(log, step, 10.0 * step)
    entries = read_log(tmp_path / "log.jsonl")
    assert [(entry["step"], entry["loss"]) for entry in entries] == [(2, 1.5), (4, 3.5), (6, 55.0), (8, 75.0)]
    assert entries[0]["lr_expert"] == 1e-3
    assert loss_summary(entries)["least"] == 1.5
    assert list((tmp_path / "tensorboard").iterdir())
