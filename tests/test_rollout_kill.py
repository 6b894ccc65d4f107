"""A job of rollouts killed again and again: nothing lost, nothing doubled, nothing cut short."""

import multiprocessing
import tarfile
import time
from dataclasses import replace

import numpy as np
from rollout_fixtures import CONFIG, SIMULATION, files_of, make_scenes, make_small_policy

import pipelines.rollout as stage
from pipelines.guidance import GuidanceConfig
from pipelines.rollout_units import drive_unit
from pipelines.shards.describe import describe_shards
from pipelines.shards.reader import iterate_examples

KILLS = 20
# Many windows in small tars, so that most of the time something is being written.
DENSE = replace(CONFIG, batch_size=2, window_stride_s=0.1, shard_mb=0.03, guidance=GuidanceConfig(strategy="expert"))


def work_in_this_process(units, workers, execution):
    return ((unit, drive_unit(unit)) for unit in units)


def write_all(policy, scenes, out, started) -> None:
    stage._run = work_in_this_process
    started.send_bytes(b".")
    stage.rollout(policy, scenes, out=out, config=DENSE, simulation=SIMULATION, workers=1)


def start(context, *arguments):
    """A process that has begun; the server it is forked from has loaded everything."""
    begun, tell = context.Pipe(duplex=False)
    process = context.Process(target=write_all, args=(*arguments, tell))
    process.start()
    begun.recv_bytes()
    return process


def test_killed_twenty_times_while_writing_every_example_is_there_once(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipelines.rollout", "pipelines.rollout_units"])
    policy, scenes = make_small_policy(tmp_path / "policy"), make_scenes(tmp_path / "scenes", 3)
    for name in ("warm", "unbroken"):  # the first one compiles
        process, began_s = start(context, policy, scenes, tmp_path / name), time.monotonic()
        process.join()
        assert process.exitcode == 0
    lasts_s = time.monotonic() - began_s
    expected = files_of(tmp_path / "unbroken")
    rng, kills, jobs, unfinished_seen = np.random.default_rng(20), 0, 0, 0
    while kills < KILLS:
        out = tmp_path / f"job_{jobs}"
        process = start(context, policy, scenes, out)
        process.join(timeout=rng.uniform(0.0, 0.7 * lasts_s))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            unfinished_seen += any(out.rglob(".*.partial"))
        if (out / "index.json").exists() or kills == KILLS:
            finish_and_check(context, policy, scenes, out, expected)
            jobs += 1
    assert jobs >= 2
    assert unfinished_seen >= 1, "no kill hit a file that was being written"


def finish_and_check(context, policy, scenes, out, expected) -> None:
    process = start(context, policy, scenes, out)
    process.join()
    assert process.exitcode == 0
    assert files_of(out) == expected
    assert describe_shards(out)[1] == []
    keys = [example.key for example in iterate_examples(out)]
    assert len(keys) == len(set(keys)) == 3 * 2 * 20
    in_tars = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as archive:
            in_tars += [name.partition(".")[0] for name in archive.getnames() if name.endswith(".meta.json")]
    assert sorted(in_tars) == sorted(keys)
