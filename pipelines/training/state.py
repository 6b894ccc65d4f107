"""Resume states: everything a killed run needs to end with the weights of an unbroken one.

A state holds the exact trained weights, the moments of the optimiser and a record of the step and of the run. It is
whole and plain (safetensors and JSON), so any number of processes and any ZeRO stage can continue from it. Order of
examples, learning rate and noise are functions of seed and step, so they need no state: the data cursor is the step.
Only the first process reads and writes; it hands the tensors to the others.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from neural_sim.artifacts import atomic_folder, write_json
from neural_sim.errors import InputError
from pipelines.config import differences
from pipelines.provenance import source_commit
from pipelines.training.checkpoints import step_name
from pipelines.training.engine import MOMENTS, TrainingEngine, whole_shape

logger = logging.getLogger("roadloop")

STATE_FORMAT_VERSION = 2
WEIGHTS_NAME = "weights.safetensors"


def state_folder(work: Path) -> Path:
    """Where the resume states of a run lie."""
    return work / "state"


def newest_state(work: Path) -> dict[str, Any] | None:
    """The record of the newest state: `step` (steps done), `job`, `layout`; None without one."""
    folders = sorted(state_folder(work).glob("step_*"))
    if not folders:
        return None
    path = folders[-1] / "state.json"
    try:
        record = json.loads(path.read_text())
        version, step = record["format_version"], record["step"]
        readable = isinstance(record["job"], dict) and isinstance(record["layout"], dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the record of a resume state ({error}); delete {work} to start over") from error
    if version != STATE_FORMAT_VERSION or not readable or path.parent.name != step_name(step):
        raise InputError(f"{path}: not a resume state of this version; delete {work} to start over")
    return record


def check_resume(work: Path, identity: dict[str, Any], layout: dict[str, Any]) -> int:
    """Steps done by the state in `work`, 0 without one.

    Raises `InputError` naming what differs from `identity`. Another `layout` (processes, ZeRO stage) is only logged.
    """
    record = newest_state(work)
    if record is None:
        return 0
    changed = differences(record["job"], json.loads(json.dumps(identity)))
    if changed:
        raise InputError(
            f"{work}: holds a run stopped after step {record['step']} that was another one ({'; '.join(changed)}); "
            "restore these to resume it, or pass --no-resume (or delete the folder) to start over"
        )
    moved = differences(record["layout"], layout)
    if moved:
        logger.info(
            "resuming step %d with %s: the same examples and noise in another order of sums, so the weights will equal "
            "those of the unchanged run up to rounding, not to the bit", record["step"], "; ".join(moved),
        )  # fmt: skip
    return int(record["step"])


def save_state(
    engine: TrainingEngine, weights: dict[str, Tensor], work: Path, step: int, identity: dict[str, Any],
    layout: dict[str, Any], is_first: bool,
) -> None:  # fmt: skip
    """Save the state after `step` steps; every process takes part, the first one writes. It appears whole.

    `weights`: the exact ones, on the first process.
    """
    if not is_first:
        for moment in MOMENTS:
            engine.whole_tensors(moment, keep=False)
        return
    with atomic_folder(state_folder(work) / step_name(step)) as partial:
        save_file(weights, partial / WEIGHTS_NAME)
        for moment in MOMENTS:
            save_file(engine.whole_tensors(moment, keep=True), partial / f"{moment}.safetensors")
        record = {"format_version": STATE_FORMAT_VERSION, "step": step, "job": identity, "layout": layout}
        write_json(partial / "state.json", {**record, "commit": source_commit()})


def load_weights(policy: nn.Module, work: Path, step: int, is_first: bool, device: str) -> dict[str, Tensor]:
    """Put the trained weights after `step` steps into `policy`; call before the engine takes it.

    Frozen weights are not in a state: they come from the checkpoint that the run started from, whose checksum is part
    of the run's identity. Returns the exact weights, float32 on the CPU, for `TrainingEngine.restore`.
    """
    trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    exact = _read_tensors(work, step, WEIGHTS_NAME, trained, is_first, device)
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(exact[name])
    return exact


def load_optimizer(
    engine: TrainingEngine, exact: dict[str, Tensor], work: Path, step: int, is_first: bool, device: str
) -> None:
    """Put the exact weights and the state of the optimiser after `step` steps into the engine."""
    engine.restore(None, exact)
    engine.set_optimizer_step(step)
    for moment in MOMENTS:
        shapes = dict(engine.trained_weights())
        engine.restore(moment, _read_tensors(work, step, f"{moment}.safetensors", shapes, is_first, device))


def drop_leftovers(work: Path) -> None:
    """Delete states that a killed run was still writing."""
    for path in state_folder(work).glob(".step_*.partial"):
        shutil.rmtree(path)


def _read_tensors(
    work: Path, step: int, name: str, like: Mapping[str, Tensor], is_first: bool, device: str
) -> dict[str, Tensor]:
    """Tensors of a state on every process, in the shapes of `like`."""
    path = state_folder(work) / step_name(step) / name
    if not is_first:
        return {key: _handed_over(torch.empty(whole_shape(like[key])), device) for key in sorted(like)}
    try:
        with safe_open(path, framework="pt") as file:
            if set(file.keys()) != set(like):
                raise InputError(f"{path}: its tensors are not those that this run trains; delete {work}")
            return {key: _handed_over(file.get_tensor(key), device) for key in sorted(like)}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged ({error}); delete {path.parent} to resume from the state before") from error


def _handed_over(tensor: Tensor, device: str) -> Tensor:
    """`tensor` of the first process, on every process."""
    if torch.distributed.get_world_size() == 1:
        return tensor
    moved = tensor.to(device)
    torch.distributed.broadcast(moved, 0)
    return moved.cpu()
