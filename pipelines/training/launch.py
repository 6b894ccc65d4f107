"""Starting the processes of a training run on this machine, and turning their end into one error."""

import json
import logging
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

from neural_sim.errors import InputError
from pipelines.processes import default_workers, die_with_parent
from pipelines.training.job import TrainingJob, write_job
from pipelines.training.worker import LINE_PREFIX

logger = logging.getLogger("roadloop")

_TAIL_LINES = 40
_STOP_S = 20.0


def launch(job: TrainingJob, num_processes: int, folder: Path, *task: str) -> None:
    """Run the job in `num_processes` processes under `torchrun` and wait; its description goes to `folder`.

    What the processes log is logged here; `task` is passed on to them. Raises `InputError` with the message of a
    process that stopped on a user's mistake, `RuntimeError` with the end of their output when they fail otherwise.
    """
    path = folder / "job.json"
    write_job(job, path)
    for leftover in _error_files(folder):
        leftover.unlink()
    code, tail = _stream([*_command(path, num_processes), *task], _environment(job, num_processes))
    if code == 0:
        return
    for error_file in _error_files(folder):
        raise InputError(json.loads(error_file.read_text())["message"])
    raise RuntimeError(
        f"training processes ended with exit code {code}; run the same command again to resume. Their last lines:\n"
        + "\n".join(tail)
    )


def _command(job_file: Path, num_processes: int) -> list[str]:
    return [
        sys.executable,
        *("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
        *("--nproc-per-node", str(num_processes)),
        *("-m", "pipelines.training.worker", str(job_file)),
    ]


def _environment(job: TrainingJob, num_processes: int) -> dict[str, str]:
    """The environment of the processes: fair numbers of threads, no GPU for a CPU run, this package importable."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(default_workers() // num_processes, 1)))
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
    if job.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return environment


def _stream(command: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run `command`, log the lines meant for people, and return its exit code and the last of the other lines."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(LINE_PREFIX):
                logger.info("%s", line.removeprefix(LINE_PREFIX).rstrip())
            else:
                tail.append(line.rstrip())
        return process.wait(), list(tail)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    """End `process` and its children if it still runs."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _error_files(folder: Path) -> list[Path]:
    return sorted((folder / "errors").glob("rank_*.json"))
