"""Worker processes: thread limits, errors, locks."""

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures.process import BrokenProcessPool

import pytest

from neural_sim.errors import InputError
from pipelines.processes import exclusive, run_units


def describe_process(unit: int) -> tuple[int, str, int]:
    import torch

    return unit * unit, os.environ["OMP_NUM_THREADS"], torch.get_num_threads()


def fail_on_two(unit: int) -> int:
    if unit == 2:
        raise InputError("scene two is broken")
    return unit


def test_every_unit_runs_once_on_one_thread():
    results = dict(run_units(describe_process, [1, 2, 3], 2, "squares"))
    assert results == {1: (1, "1", 1), 2: (4, "1", 1), 3: (9, "1", 1)}


def test_no_units_start_no_process():
    assert list(run_units(describe_process, [], 2, "nothing")) == []


def test_an_error_in_a_unit_reaches_the_caller():
    with pytest.raises(InputError, match="scene two is broken"):
        list(run_units(fail_on_two, [1, 2, 3], 1, "failing"))


def die_on_two(unit: int) -> int:
    if unit == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return unit


def test_a_worker_that_dies_costs_its_unit_only():
    lost = run_units(die_on_two, [1, 2, 3, 4], 2, "dying", retries=1, on_lost=lambda unit, attempts: -attempts)
    assert dict(lost) == {1: 1, 2: -2, 3: 3, 4: 4}


def test_a_worker_that_dies_is_raised_where_nobody_answers_for_it():
    with pytest.raises(BrokenProcessPool, match="dying: a worker process died; run the same command again"):
        list(run_units(die_on_two, [2], 1, "dying"))


def test_a_folder_is_held_by_one_job_and_freed_when_it_is_killed(tmp_path):
    program = textwrap.dedent(f"""
        import pathlib, time
        from pipelines.processes import exclusive
        with exclusive(pathlib.Path({str(tmp_path)!r})):
            print("held", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another running job writes here"), exclusive(tmp_path):
            pass
        other.kill()
    with exclusive(tmp_path):
        pass


def test_no_lock_file_is_left(tmp_path):
    with exclusive(tmp_path / "clip"):
        assert [path.name for path in tmp_path.iterdir()] == [".clip.lock"]
        with pytest.raises(InputError, match="another running job"), exclusive(tmp_path / "clip"):
            pass
    with pytest.raises(KeyError), exclusive(tmp_path / "clip"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_its_holder_deletes_meanwhile_holds_nothing(tmp_path, monkeypatch):
    """Opened before the last holder deleted it and locked after that, it is another file than the next job opens."""
    real, path = fcntl.flock, tmp_path / ".clip.lock"

    def delete_first(handle, how):
        path.unlink()
        monkeypatch.setattr(fcntl, "flock", real)
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", delete_first)
    with exclusive(tmp_path / "clip"):
        assert path.exists()
        with pytest.raises(InputError, match="another running job"), exclusive(tmp_path / "clip"):
            pass
