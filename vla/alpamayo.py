"""Weights of the public Alpamayo checkpoints (R1 and 1.5): read by name and shape into a policy of the same class.

Names in the source, after the layout of its public code; shards are listed in `model.safetensors.index.json`:

    vlm.model.visual.*, vlm.model.language_model.*, vlm.lm_head.*     a Qwen3-VL model
    expert.layers.*, expert.norm.weight                               a Qwen3 text stack without token embeddings
    action_in_proj.encoder.trunk.*, action_in_proj.norm.*             embedding of noisy actions and time
    action_in_proj.sinus.N.freqs, .timestep_fourier_encoder.freqs     its frequencies, constants
    action_out_proj.*                                                 velocities
    action_space.*                                                    constants of the action normalisation

Its tokenizer is that of the backbone with `<i0>` to `<i3999>` and then the 29 driving tokens. The source puts ego
history into the prompt as discrete tokens; the history encoder here is another module and starts new, so a converted
policy is to be fine-tuned before it drives.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vla.action_expert import fourier_frequencies
from vla.action_space import ActionStatistics
from vla.backbone import Backbone, load_qwen
from vla.config import PolicyConfig
from vla.errors import PolicyError
from vla.model import VisionLanguagePolicy
from vla.tokenizer import load_tokenizer

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
STATISTICS_TENSORS = tuple(f"action_space.{name}" for name in ("accel_mean", "accel_std", "curvature_mean",
                                                               "curvature_std"))  # fmt: skip
FREQUENCY_TENSORS = re.compile(r"action_in_proj\.(sinus\.[01]|timestep_fourier_encoder)\.freqs")
FREQUENCY_TOLERANCE = 0.01
TRAJECTORY_TOKENS = 4000
# Source name to name in `VisionLanguagePolicy.named_parameters()`; the first pattern that matches counts.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"vlm\.(.+)", r"backbone.model.\1"),
    (r"expert\.(layers\..+|norm\.weight)", r"expert.\1"),
    (r"action_in_proj\.encoder\.trunk\.(\d+)\.(weight|bias)", r"expert.action_in_proj.\1.\2"),
    (r"action_in_proj\.norm\.(weight|bias)", r"expert.action_in_proj.7.\1"),
    (r"action_out_proj\.(weight|bias)", r"expert.action_out_proj.\1"),
)
NEW_PREFIX = "history_encoder."


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        copied: number of tensors that were copied.
        new: tensors of the policy that the source does not have and that keep their fresh values.
    """

    copied: int
    new: tuple[str, ...]


def convert_alpamayo(folder: Path | str, config: PolicyConfig, seed: int = 0) -> VisionLanguagePolicy:
    """A policy with the weights of the Alpamayo checkpoint in `folder`; save it with `save_pretrained`.

    `config`: its `backbone` names the Qwen3-VL model that the checkpoint was made from, for the shapes and the
    tokenizer; R1 has `expert_hidden` 2048, `expert_ffn` 8256, `expert_heads` 16, `waypoints_per_token` 1 and
    `action_features` fourier. `seed` draws the history encoder. Raises `PolicyError` naming what does not fit.
    """
    if config.action_features != "fourier" or config.waypoints_per_token != 1:
        raise PolicyError("alpamayo: expected action_features fourier and waypoints_per_token 1, its layout")
    model, tokenizer = load_qwen(config.backbone, config), alpamayo_tokenizer(config.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        policy = VisionLanguagePolicy(config, Backbone(model), tokenizer, ActionStatistics())
    load_alpamayo(policy, folder)
    return policy.eval()


def alpamayo_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """Tokenizer of a backbone with the tokens of Alpamayo in its order. Raises `PolicyError` when it has none."""
    new = [f"<i{index}>" for index in range(TRAJECTORY_TOKENS)]
    return load_tokenizer(source, first=new)


def load_alpamayo(policy: VisionLanguagePolicy, folder: Path | str) -> ConversionReport:
    """Copy the weights of an Alpamayo checkpoint into `policy`, in place, and take over its action statistics.

    Strict: every tensor of the source must have its place and its shape, and every tensor of the policy outside the
    history encoder must be filled. Nothing is changed unless all fits. Raises `PolicyError` naming what does not.
    """
    folder = Path(folder)
    places = {name: file for file in _files(folder) for name in _names(file)}
    _check_frequencies(places)
    constants = {name for name in places if name in STATISTICS_TENSORS or FREQUENCY_TENSORS.fullmatch(name)}
    renamed = {name: rename(name) for name in sorted(places.keys() - constants)}
    targets = dict(policy.named_parameters())
    tied = _tied_names(policy)
    _check_names(folder, renamed, targets, tied)
    statistics = _read_statistics(places) or policy.statistics
    for name, target in renamed.items():
        if target not in tied:
            _check_shape(places[name], name, targets[target])
    with torch.no_grad():
        for name, target in renamed.items():
            if target not in tied:
                targets[target].copy_(_read(places[name], name))
    policy.statistics = statistics
    new = tuple(sorted(name for name in targets if name.startswith(NEW_PREFIX)))
    return ConversionReport(len(renamed), new)


def rename(name: str) -> str:
    """Name in the policy of a source tensor. Raises `PolicyError` when the source's layout has none of that name."""
    for pattern, replacement in RENAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    raise PolicyError(f"tensor {name} is not of the Alpamayo layout; expected vlm.*, expert.* or action_*_proj.*")


def _files(folder: Path) -> list[Path]:
    """Weight files of a checkpoint. Raises `PolicyError` when there are none or the index names a missing one."""
    index = folder / INDEX_FILE
    if not index.is_file():
        if not (folder / SINGLE_FILE).is_file():
            raise PolicyError(f"{folder}: found neither {INDEX_FILE} nor {SINGLE_FILE}; expected Alpamayo weights")
        return [folder / SINGLE_FILE]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PolicyError(f"{index}: not an index of safetensors files ({error})") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise PolicyError(f"{index}: names {name!r}, which is no file of {folder}; download it again")
    return [folder / name for name in names]


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise PolicyError(f"{file}: damaged ({error}); download it again") from error


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _check_shape(file: Path, name: str, target: Tensor) -> None:
    with safe_open(file, framework="pt") as tensors:
        shape = tuple(tensors.get_slice(name).get_shape())
    if shape != tuple(target.shape):
        raise PolicyError(
            f"{file}: {name} has shape {shape}, expected {tuple(target.shape)}; build the policy with the backbone and "
            "expert sizes of this checkpoint"
        )


def _tied_names(policy: VisionLanguagePolicy) -> set[str]:
    """Names under which a source may store a matrix that the policy shares with its token embeddings."""
    every = {name for name, _ in policy.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in policy.named_parameters()}


def _check_names(folder: Path, renamed: dict[str, str], targets: Iterable[str], tied: set[str]) -> None:
    found, wanted = set(renamed.values()), set(targets)
    unexpected = sorted(name for name, target in renamed.items() if target not in wanted | tied)
    if unexpected:
        raise PolicyError(f"{folder}: unexpected tensors {', '.join(unexpected)}")
    missing = sorted(name for name in wanted - found if not name.startswith(NEW_PREFIX))
    if missing:
        raise PolicyError(f"{folder}: missing tensors for {', '.join(missing)}")


def _check_frequencies(places: dict[str, Path]) -> None:
    """Raise `PolicyError` unless stored frequencies are those that the expert computes, up to bfloat16."""
    expected = fourier_frequencies()
    for name, file in places.items():
        if FREQUENCY_TENSORS.fullmatch(name):
            found = _read(file, name).float().flatten()
            if found.shape != expected.shape or ((found / expected - 1).abs() > FREQUENCY_TOLERANCE).any():
                raise PolicyError(f"{file}: {name} is {found.tolist()}, expected {expected.tolist()}")


def _read_statistics(places: dict[str, Path]) -> ActionStatistics | None:
    """Action normalisation of the source, where it stores one; all of its four numbers or none."""
    found = [name for name in STATISTICS_TENSORS if name in places]
    if not found:
        return None
    if len(found) < len(STATISTICS_TENSORS):
        lacking = [name for name in STATISTICS_TENSORS if name not in found]
        raise PolicyError(f"{places[found[0]]}: missing tensors {', '.join(lacking)}")
    values = [float(_read(places[name], name)) for name in STATISTICS_TENSORS]
    return ActionStatistics.from_json({"mean": values[0::2], "std": values[1::2]})
