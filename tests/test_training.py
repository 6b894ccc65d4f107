import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_fixtures import CAMERA, make_example, make_policy, write_shards

from neural_sim.errors import InputError
from pipelines.training.checkpoints import BestCheckpoint, mark_best, mark_best_by_loss, prune, read_best, step_name
from pipelines.training.config import TrainingConfig
from pipelines.training.data import Loader, MicroBatch, generator_seed
from pipelines.training.engine import deepspeed_config
from pipelines.training.heartbeat import PHASES, Beat, stall_report
from pipelines.training.job import TrainingJob, check_job, read_job, write_job
from pipelines.training.log import TrainingLog, loss_summary, read_log
from pipelines.training.order import ExampleOrder, interleaved
from pipelines.training.preflight import MemoryEstimate, compare_facts, estimate_memory, memory_problems
from pipelines.training.schedule import lr_factor
from pipelines.training.source import ExampleSource
from pipelines.training.state import check_resume, state_folder
from pipelines.training.train import train
from pipelines.training.weighting import ExampleFacts, WeightingConfig

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
        ({"bf16": True, "zero_stage": 0}, "bf16: found True, expected False, or zero_stage 1 or more"),
        ({"offload": "all", "zero_stage": 2}, "offload: found 'all', expected 'none', or zero_stage 3 or more"),
        ({"source_weights": (1, 0)}, r"source_weights: found \(1, 0\), expected numbers above 0"),
        ({"loader_workers": -1}, "loader_workers: found -1, expected 0 or more"),
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
@given(total=st.integers(1, 60), first=st.integers(0, 100), seed=st.integers(0, 5))
def test_every_epoch_holds_each_example_once(total: int, first: int, seed: int) -> None:
    numbers = np.arange(100, 100 + total)
    order = ExampleOrder([numbers[: total // 2], numbers[total // 2 :]], (), seed, 3 * total)
    for epoch in range(3):
        drawn = order.at(np.arange(epoch * total, (epoch + 1) * total))
        assert sorted(drawn.tolist()) == numbers.tolist()


@settings(max_examples=60, deadline=None)
@given(
    shares=st.lists(st.floats(0.05, 10), min_size=1, max_size=4), length=st.integers(1, 400), longer=st.integers(0, 50)
)
def test_sources_are_mixed_evenly_at_every_place(shares: list[float], length: int, longer: int) -> None:
    sources, turns = interleaved(np.array(shares), length)
    shared = np.array(shares) / sum(shares)
    for source, share in enumerate(shared):
        stood = np.cumsum(sources == source)
        bound = (1 + share * len(shares)) / 2
        assert np.abs(stood - share * np.arange(1, length + 1)).max() <= bound + 1e-6
        assert turns[sources == source].tolist() == list(range(stood[-1]))
    again, _ = interleaved(np.array(shares), length + longer)
    assert again[:length].tolist() == sources.tolist()


def test_shares_decide_how_often_a_folder_is_drawn() -> None:
    order = ExampleOrder([np.arange(10), np.arange(10, 13)], (0.75, 0.25), 3, 40)
    drawn = order.at(np.arange(40))
    assert (drawn < 10).reshape(10, 4).sum(axis=1).tolist() == [3] * 10
    assert sorted(drawn[drawn < 10].tolist()) == sorted([*range(10)] * 3)
    assert sorted(Counter(drawn[drawn >= 10].tolist()).values()) == [3, 3, 4]
    assert (
        drawn[20:].tolist()
        == ExampleOrder([np.arange(10), np.arange(10, 13)], (3, 1), 3, 99).at(np.arange(20, 40)).tolist()
    )


def facts(rounds: list[int], distances_m: list[float], recovered: list[bool]) -> ExampleFacts:
    return ExampleFacts(np.array(rounds), np.array(distances_m), np.array(recovered), ({},) * len(rounds))


def test_weights_by_age_distance_and_recovery() -> None:
    known = facts([0, 1, 3, 3], [0.0, 1.0, 2.0, 4.0], [False, False, True, False])
    assert WeightingConfig().is_off
    assert WeightingConfig().weights(known).tolist() == [1, 1, 1, 1]
    assert WeightingConfig(round_decay=0.5).weights(known).tolist() == [1, 0.25, 1, 1]
    assert WeightingConfig(round_decay=0.0).weights(known).tolist() == [1, 0, 1, 1]
    assert WeightingConfig(max_distance_m=3.0).weights(known).tolist() == [1, 1, 1, 0]
    assert WeightingConfig(recovery_weight=0.5).weights(known).tolist() == [1, 1, 0.5, 1]
    np.testing.assert_allclose(WeightingConfig(distance_scale_m=2.0).weights(known), np.exp([0, -0.5, -1, -2]))
    with pytest.raises(InputError, match=r"weighting\.round_decay: found 2, expected 0 to 1"):
        WeightingConfig(round_decay=2)


def test_dropped_examples_are_never_drawn_and_weights_have_mean_one(shards: Path) -> None:
    source = ExampleSource([shards, shards], WeightingConfig(recovery_weight=0.0, distance_scale_m=1.0))
    known = source.facts()
    # Every third example of the fixture is a recovered one.
    assert known.recovered[:10].tolist() == [n % 3 == 0 for n in range(10)]
    np.testing.assert_allclose(known.distance_m[3], make_example(3).candidate_distances.min(), rtol=1e-6)
    assert [kept.tolist() for kept in source.kept] == [[1, 2, 4, 5, 7, 8], [11, 12, 14, 15, 17, 18]]
    kept = np.concatenate(source.kept)
    assert source.weights(kept).mean() == pytest.approx(1.0)
    assert source.num_kept == 12
    with Loader(source, replace(SMALL, source_weights=(3, 1)), 3, 0, 1, 0) as loader:
        batches = list(loader)
    assert {key for micro in batches for key in micro.keys} <= {f"scene-r000-s{n:04d}" for n in (1, 2, 4, 5, 7, 8)}
    assert not np.allclose(batches[0].batch.weight, 1)


def test_a_weighting_or_mix_that_cannot_work_is_refused(policy: Path, shards: Path, tmp_path: Path) -> None:
    job = TrainingJob(policy, (shards,), tmp_path / "out", SMALL, 0, "cpu")
    strict = replace(SMALL, weighting=WeightingConfig(max_distance_m=0.001))
    with pytest.raises(InputError, match="the weighting keeps 0 of 10 examples, fewer than batch_size 4"):
        check_job(replace(job, config=strict), 1)
    with pytest.raises(InputError, match="source_weights: found 2 for 1 folders of shards"):
        check_job(replace(job, config=replace(SMALL, source_weights=(1, 2))), 1)


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


def test_micro_batches_do_not_depend_on_who_decodes_them(shards: Path) -> None:
    def seen(**settings: int) -> list[MicroBatch]:
        config = replace(SMALL, steps=6, source_weights=(2, 1), **settings)
        with Loader(ExampleSource([shards, shards]), config, 3, 0, 1, 2) as loader:
            return list(loader)

    expected = seen(loader_threads=1)
    for others in ({"loader_threads": 3, "prefetch": 7}, {"loader_workers": 2, "prefetch": 1}):
        found = seen(**others)
        assert [(micro.step, micro.index, micro.keys) for micro in found] == [
            (micro.step, micro.index, micro.keys) for micro in expected
        ]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.batch.images[CAMERA], other.batch.images[CAMERA])
            np.testing.assert_array_equal(one.batch.target, other.batch.target)


def test_a_broken_example_is_named_by_the_process_that_decodes(policy: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 8)
    source = ExampleSource([shards])
    for path in shards.glob("*.tar"):
        path.write_bytes(path.read_bytes()[:1000])
    with (
        Loader(source, replace(SMALL, loader_workers=1), 3, 0, 1, 0) as loader,
        pytest.raises(InputError, match=r"\.tar: the shard is cut short inside example"),
    ):
        next(iter(loader))


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
    whole = folder / "unit_0-00000.tar"
    flipped = bytearray(whole.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    whole.write_bytes(flipped)
    with pytest.raises(InputError, match=r"unit_0-00000\.tar: the checksum differs from the index"):
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
    (job.out / "training.json").write_text(json.dumps({"job": job.identity()}))
    assert train(policy, [shards], job.out, SMALL, seed=0, device="cpu") == job.out
    with pytest.raises(InputError, match="already exists"):
        train(policy, [shards], job.out, SMALL, seed=1, device="cpu")


def test_resume_names_what_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = state_folder(tmp_path) / step_name(4)
    folder.mkdir(parents=True)
    record = {"format_version": 2, "step": 4, "job": {"seed": 1, "weighting": {"round_decay": 1.0}}}
    (folder / "state.json").write_text(json.dumps({**record, "layout": {"processes": 2}}))
    same = {"seed": 1, "weighting": {"round_decay": 1.0}}
    assert check_resume(tmp_path, same, {"processes": 2}) == 4
    with pytest.raises(InputError, match=r"stopped after step 4 .*\(weighting\.round_decay: 1\.0 -> 0\.5\); restore"):
        check_resume(tmp_path, {"seed": 1, "weighting": {"round_decay": 0.5}}, {"processes": 2})
    with caplog.at_level("INFO", "roadloop"):
        assert check_resume(tmp_path, same, {"processes": 8}) == 4
    assert "resuming step 4 with processes: 2 -> 8: the same examples and noise" in caplog.text
    assert check_resume(tmp_path / "nothing", {}, {}) == 0


def test_the_newest_and_the_best_checkpoints_stay(tmp_path: Path) -> None:
    steps, states = tmp_path / "steps", tmp_path / "state"
    for step, loss in ((1, 0.5), (2, 0.3), (3, 0.4), (4, 0.6)):
        for folder in (steps, states):
            (folder / step_name(step)).mkdir(parents=True)
        mark_best_by_loss(steps, step, loss)
        prune(steps, states, keep=1)
    assert sorted(path.name for path in steps.iterdir()) == ["best.json", step_name(2), step_name(4)]
    assert [path.name for path in states.iterdir()] == [step_name(4)]
    mark_best(steps, BestCheckpoint(4, "driving_score", 0.6))
    mark_best_by_loss(steps, 5, 0.1)
    assert read_best(steps) == BestCheckpoint(4, "driving_score", 0.6)


def beat(rank: int, step: int, phase: int, in_phase_s: float, silent_s: float = 1.0) -> Beat:
    return Beat(f"rank {rank} (host, pid {rank})", step, phase, in_phase_s, silent_s)


def test_a_hang_names_the_process_that_is_behind() -> None:
    assert stall_report([beat(0, 7, 2, 500), beat(1, 7, 1, 3)], 60) is None
    report = stall_report([beat(0, 7, 2, 70), beat(1, 7, 1, 75), beat(2, 7, 2, 71)], 60)
    assert report == "no progress for 70 s: the others wait for rank 1 (host, pid 1) in 'data' of step 7"
    report = stall_report([beat(0, 7, 2, 70), beat(1, 6, 3, 75, silent_s=75)], 60)
    assert report == (
        "no sign of life for 75 s from rank 1 (host, pid 1) in 'optimiser step' of step 6; "
        "it is stopped, or its host is unreachable"
    )
    report = stall_report([beat(rank, 9, 5, 70) for rank in range(3)], 60)
    assert report == "no progress for 70 s: every process is in 'save' of step 9"
    # The first one evaluates a checkpoint, which takes as long as it takes.
    evaluating = PHASES.index("evaluate")
    assert stall_report([beat(rank, 9, evaluating, 700) for rank in range(2)], 60) is None
    assert "no sign of life" in str(stall_report([beat(0, 9, evaluating, 700, silent_s=90)], 60))


def machine(host: str, **changes: object) -> dict:
    facts = {"host": host, "place": f"rank 0 ({host}, pid 1)", "versions": {"torch": "2.9", "numpy": "2"}}
    rest = {"policy": "abc", "problems": [], "free_device_bytes": 0, "free_host_bytes": 8_000_000_000}
    return {**facts, **rest, **changes}


def test_preflight_names_the_host_that_differs() -> None:
    assert compare_facts({0: machine("a"), 1: machine("b")}) == []
    odd = machine("b", versions={"torch": "2.8", "numpy": "2"}, problems=["/data/s: no such folder of shards"])
    assert compare_facts({0: machine("a"), 1: odd, 2: odd}) == [
        "b: /data/s: no such folder of shards",
        "b: torch is 2.8, on a 2.9; make them equal",
    ]


def test_memory_is_estimated_by_stage() -> None:
    def gb(**changes: object) -> list[float]:
        config = replace(SMALL, **changes)
        found = estimate_memory(2_000_000_000, 1_000_000_000, config, 4)
        return [found.device / 1e9, found.host / 1e9]

    assert gb(zero_stage=0) == [8 + 4 + 8, 0]
    assert gb(zero_stage=1) == [8 + 4 + 3, 0]
    assert gb(zero_stage=2, bf16=True) == [4 + 0.5 + 3, 0]
    assert gb(zero_stage=3, bf16=True) == [1 + 0.5 + 3, 0]
    assert gb(zero_stage=2, bf16=True, offload="optimizer") == [4.5, 3]
    assert gb(zero_stage=3, bf16=True, offload="all") == [0.5, 4]
    reports = {0: machine("a"), 1: machine("b", free_host_bytes=1_000_000_000)}
    (problem,) = memory_problems(reports, MemoryEstimate(3_000_000_000, 0), on_cpu=True)
    assert "(b, pid 1): weights, gradients and optimiser need 3.00 GB of host memory" in problem


def test_settings_without_effect_do_not_stop_a_resume(policy: Path, shards: Path, tmp_path: Path) -> None:
    job = TrainingJob(policy, (shards,), tmp_path / "out", SMALL, 0, "cpu")
    same = replace(job, config=replace(SMALL, save_every=3, log_every=1, loader_threads=1, prefetch=9, keep=7))
    assert json.loads(json.dumps(job.identity())) == same.identity()
    assert replace(job, config=replace(SMALL, steps=11)).identity() != job.identity()
    assert replace(job, config=replace(SMALL, zero_stage=3)).identity() == job.identity()
    assert job.layout(2) != job.layout(1)


def test_log_continues_after_the_state(tmp_path: Path) -> None:
    config = replace(SMALL, log_every=2, wandb_project="")
    job = TrainingJob(Path("p"), (), tmp_path / "out", config, 0, "cpu")
    job.work.mkdir()

    def add(log: TrainingLog, step: int, loss: float) -> None:
        log.add(step, {"loss": loss}, 0.0, {"expert": 1e-3})

    with TrainingLog(job, 0, 100) as log:
        for step in range(1, 7):
            add(log, step, float(step))
    with (job.work / "log.jsonl").open("a") as stream:
        stream.write('{"step": 8, "lo')
    with TrainingLog(job, 4, 100) as log:
        for step in range(5, 9):
            add(log, step, 10.0 * step)
    entries = read_log(job.work / "log.jsonl")
    assert [(entry["step"], entry["loss"]) for entry in entries] == [(2, 1.5), (4, 3.5), (6, 55.0), (8, 75.0)]
    assert entries[0]["lr_expert"] == 1e-3
    assert entries[0]["tokens_per_s"] == pytest.approx(100 * entries[0]["samples_per_s"])
    assert loss_summary(entries)["least"] == 1.5
    assert list((job.work / "tensorboard").iterdir())
