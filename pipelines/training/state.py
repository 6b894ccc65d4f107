"""Resume states: everything a killed run needs to end with the weights of an unbroken one.

A state holds what DeepSpeed saves (trained weights, optimiser) and a small record of the step and of the run it belongs
to. Order of examples, learning rate and noise are functions of seed and step, so they need no state. DeepSpeed's files
are pickles; they are read back only from the folder that this run wrote.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from neural_sim.artifacts import write_json
from neural_sim.errors import InputError

STATE_FORMAT_VERSION = 1


def state_folder(work: Path) -> Path:
    """Where the resume states of a run lie."""
    return work / "state"


def read_latest(work: Path) -> dict[str, Any] | None:
    """The record of the newest whole state: `step` (steps done), `job`; None without one."""
    path = state_folder(work) / "latest.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        version, step = record["format_version"], record["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the record of a resume state ({error}); delete {work} to start over") from error
    if version != STATE_FORMAT_VERSION or not (state_folder(work) / tag(step)).is_dir():
        raise InputError(f"{path}: does not name a resume state of this version; delete {work} to start over")
    return record


def tag(step: int) -> str:
    """Folder name of the state after `step` steps."""
    return f"step_{step:08d}"


def check_resume(work: Path, identity: dict[str, Any]) -> int:
    """Steps done by the state in `work`, 0 without one. Raises `InputError` naming what differs from `identity`."""
    record = read_latest(work)
    if record is None:
        return 0
    changed = [
        f"{key}: {record['job'].get(key)!r} -> {identity.get(key)!r}"
        for key in sorted({*record["job"], *identity})
        if record["job"].get(key) != identity.get(key)
    ]
    if changed:
        raise InputError(
            f"{work}: holds a run stopped after step {record['step']} that was another one ({'; '.join(changed)}); "
            "restore these to resume it, or pass --no-resume (or delete the folder) to start over"
        )
    return int(record["step"])


def save_state(engine: Any, work: Path, step: int, identity: dict[str, Any], keep: int, rank: int) -> None:
    """Save the state after `step` steps from all processes and make it the newest; older ones beyond `keep` go.

    `engine`: the DeepSpeed engine. A state counts only once `latest.json` names it, after all files are on disk.
    """
    folder = state_folder(work)
    folder.mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(folder, tag=tag(step), save_latest=False, exclude_frozen_parameters=True)
    torch.distributed.barrier()
    if rank == 0:
        _flush_to_disk(folder / tag(step))
        write_json(folder / "latest.json", {"format_version": STATE_FORMAT_VERSION, "step": step, "job": identity})
        for old in sorted(folder.glob("step_*"))[:-keep]:
            shutil.rmtree(old)
    torch.distributed.barrier()


def load_state(engine: Any, work: Path, step: int) -> None:
    """Load the state after `step` steps into the DeepSpeed engine.

    Frozen weights are not in a state: they come from the checkpoint that the run started from, whose checksum is part
    of the run's identity.
    """
    path, _ = engine.load_checkpoint(
        str(state_folder(work)), tag=tag(step), load_module_strict=False, load_lr_scheduler_states=False
    )
    if path is None:
        raise InputError(f"{state_folder(work) / tag(step)}: DeepSpeed finds no state; delete {work} to start over")


def drop_unfinished_states(work: Path, step: int) -> None:
    """Delete states after `step`, which a killed run was still writing."""
    for path in state_folder(work).glob("step_*"):
        if path.name > tag(step):
            shutil.rmtree(path)


def _flush_to_disk(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
