"""A policy on disk: a Hugging Face folder, with the expert, action statistics and policy configuration beside it.

config.json, model.safetensors         the backbone, without adapters; loads with AutoModelForImageTextToText
tokenizer.json, ..., preprocessor_config.json
adapter/                               adapters in PEFT format, where there are any that are not merged
policy_head.safetensors                action expert and history encoder
action_statistics.json                 normalisation of the actions, float32
roadloop_policy.json                   format version and policy configuration

A regressor has no backbone: all of its weights are in policy_head.safetensors.
"""

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vla.action_space import ActionStatistics
from vla.backbone import Backbone, load_qwen, quiet_transformers
from vla.config import REGRESSOR, PolicyConfig
from vla.driving_policy import DrivingPolicy
from vla.errors import PolicyError
from vla.images import ImageSettings
from vla.model import VisionLanguagePolicy
from vla.regressor import build_regressor

FORMAT_VERSION = 1
POLICY_FILE = "roadloop_policy.json"
HEAD_FILE = "policy_head.safetensors"
STATISTICS_FILE = "action_statistics.json"
ADAPTER_FOLDER = "adapter"
ADAPTER_FILE = "adapter_model.safetensors"
BACKBONE_FILES = ("config.json", "tokenizer.json", "preprocessor_config.json")
HASHED_FILES = (POLICY_FILE, STATISTICS_FILE, f"{ADAPTER_FOLDER}/adapter_config.json")
HASH_LENGTH = 16


def save_pretrained(policy: DrivingPolicy, folder: Path | str) -> None:
    """Write `policy` to `folder`, replacing what is there; the folder appears whole or not at all."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        _write(policy, partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def from_pretrained(folder: Path | str, device: torch.device | str = "cpu") -> DrivingPolicy:
    """Read a policy that `save_pretrained` wrote, in evaluation mode, on `device`.

    Strict: a missing, unexpected or wrongly shaped tensor, another format version or an incomplete folder raises
    `PolicyError` naming it.
    """
    folder = Path(folder)
    config = read_policy_config(folder)
    statistics = ActionStatistics.from_json(_read_json(folder / STATISTICS_FILE))
    if config.backbone == REGRESSOR:
        policy = build_regressor(config, seed=0)
        policy.statistics = statistics
    else:
        policy = _load_vision_language(folder, config, statistics)
    _load_head(policy, folder / HEAD_FILE)
    if isinstance(policy, VisionLanguagePolicy) and (folder / ADAPTER_FOLDER).is_dir():
        _load_adapter(policy, folder / ADAPTER_FOLDER)
    return policy.to(device).eval()


def _load_vision_language(folder: Path, config: PolicyConfig, statistics: ActionStatistics) -> VisionLanguagePolicy:
    """The policy with its backbone's weights; those of its head are still to be loaded."""
    backbone = Backbone(load_qwen(str(folder), config))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    with torch.random.fork_rng(devices=[]):
        return VisionLanguagePolicy(config, backbone, tokenizer, statistics)


def read_policy_config(folder: Path | str) -> PolicyConfig:
    """Configuration of the policy in `folder`. Raises `PolicyError` when it is none or of another format version."""
    folder = Path(folder)
    if not folder.is_dir():
        raise PolicyError(f"policy {folder}: no such folder; expected one written by save_pretrained")
    description = _read_json(folder / POLICY_FILE)
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise PolicyError(
            f"{folder / POLICY_FILE}: found format_version {version}, expected {FORMAT_VERSION}; "
            "write the checkpoint again with this version of roadloop"
        )
    return PolicyConfig.from_json(description["policy"])


def policy_hash(folder: Path | str) -> str:
    """Short hash of everything that decides a policy's plans: weights, adapters, statistics and configuration."""
    folder = Path(folder)
    read_policy_config(folder)
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors" or relative in HASHED_FILES:
            digest.update(relative.encode() + b"\0")
            _update(digest, path)
    return digest.hexdigest()[:HASH_LENGTH]


def describe_checkpoint(folder: Path | str) -> tuple[list[str], list[str]]:
    """Facts about the checkpoint in `folder`, one line each, and problems; weights are read but no model is built."""
    folder = Path(folder)
    has_backbone = not _is_regressor(folder)
    needed = (*(BACKBONE_FILES if has_backbone else ()), HEAD_FILE)
    problems = [f"{folder / name}: missing" for name in needed if not (folder / name).is_file()]
    if has_backbone and not list(folder.glob("model*.safetensors")):
        problems.append(f"{folder / 'model.safetensors'}: missing")
    parameters = 0
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            parameters += _check_tensors(path)
        except PolicyError as error:
            problems.append(str(error))
    facts = [f"{parameters:,} parameters{', with a LoRA adapter' if (folder / ADAPTER_FOLDER).is_dir() else ''}"]
    try:
        facts += _policy_facts(folder)
    except PolicyError as error:
        problems.append(str(error))
    return facts, problems


def _is_regressor(folder: Path) -> bool:
    try:
        return read_policy_config(folder).backbone == REGRESSOR
    except PolicyError:
        return False


def _policy_facts(folder: Path) -> list[str]:
    config = read_policy_config(folder)
    statistics = ActionStatistics.from_json(_read_json(folder / STATISTICS_FILE)).to_json()
    size = f"{config.image_width_px}x{config.image_height_px} px"
    return [
        f"backbone {config.backbone}, hash {policy_hash(folder)}",
        f"sees {config.num_frames} frames of {', '.join(config.cameras)} at {size}",
        "action statistics: " + ", ".join(f"{name} {value}" for name, value in statistics.items()),
    ]


def _write(policy: DrivingPolicy, folder: Path) -> None:
    if isinstance(policy, VisionLanguagePolicy):
        _write_backbone(policy, folder)
    save_file(_head_tensors(policy), folder / HEAD_FILE, metadata={"format": "pt"})
    _write_json(folder / STATISTICS_FILE, policy.statistics.to_json())
    _write_json(folder / POLICY_FILE, {"format_version": FORMAT_VERSION, "policy": policy.config.to_json()})


def _write_backbone(policy: VisionLanguagePolicy, folder: Path) -> None:
    model = policy.backbone.model
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=_without_adapters(model.state_dict()))
    policy.tokenizer.save_pretrained(folder)
    _write_json(folder / "preprocessor_config.json", _preprocessor(policy.backbone.image_settings, policy.config))
    if policy.lora_config is not None:
        _write_adapter(policy, folder / ADAPTER_FOLDER)


def _without_adapters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}


def _head(policy: DrivingPolicy) -> dict[str, nn.Module]:
    """The modules of a policy outside its backbone, by name."""
    return {name: module for name, module in policy.named_children() if name != "backbone"}


def _head_tensors(policy: DrivingPolicy) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, module in _head(policy).items()
        for name, tensor in module.state_dict().items()
    }


def _preprocessor(settings: ImageSettings, config: PolicyConfig) -> dict[str, Any]:
    pixels = config.image_width_px * config.image_height_px
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": settings.patch_px,
        "temporal_patch_size": settings.temporal_patch,
        "merge_size": settings.merge,
        "image_mean": list(settings.mean),
        "image_std": list(settings.std),
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
    }


def _write_adapter(policy: VisionLanguagePolicy, folder: Path) -> None:
    assert policy.lora_config is not None
    folder.mkdir()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _adapter_tensors(policy).items()}
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    policy.lora_config.save_pretrained(str(folder))


def _adapter_tensors(policy: VisionLanguagePolicy) -> dict[str, Tensor]:
    # Embeddings are never adapted; looking for resized ones would need the base model's folder.
    state = get_peft_model_state_dict(policy.backbone.model, save_embedding_layers=False)
    return {f"base_model.model.{name}": tensor for name, tensor in state.items()}


def _load_adapter(policy: VisionLanguagePolicy, folder: Path) -> None:
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise PolicyError(f"{folder / 'adapter_config.json'}: cannot be read ({error})") from error
    assert isinstance(config, LoraConfig)
    config.inference_mode = False
    inject_adapter_in_model(config, policy.backbone.model)
    policy.lora_config = config
    found = _read_tensors(folder / ADAPTER_FILE)
    _check_match(folder / ADAPTER_FILE, found, _adapter_tensors(policy))
    set_peft_model_state_dict(
        policy.backbone.model, {name.removeprefix("base_model.model."): tensor for name, tensor in found.items()}
    )


def _load_head(policy: DrivingPolicy, path: Path) -> None:
    found = _read_tensors(path)
    _check_match(path, found, _head_tensors(policy))
    for part, module in _head(policy).items():
        prefix = f"{part}."
        module.load_state_dict({n.removeprefix(prefix): t for n, t in found.items() if n.startswith(prefix)})


def _check_match(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for kind, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            raise PolicyError(f"{path}: {kind} tensors {', '.join(sorted(names))}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise PolicyError(f"{path}: {name} has shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise PolicyError(f"{path}: missing; the checkpoint is incomplete")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise PolicyError(f"{path}: damaged ({error}); copy or write the checkpoint again") from error


def _check_tensors(path: Path) -> int:
    """Number of values in a safetensors file. Raises `PolicyError` naming a tensor that is not finite."""
    try:
        with safe_open(path, framework="pt") as file:
            count = 0
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)
                count += tensor.numel()
                if not bool(torch.isfinite(tensor).all()):
                    raise PolicyError(f"{path}: tensor {name} is not finite")
            return count
    except (SafetensorError, OSError) as error:
        raise PolicyError(f"{path}: damaged ({error})") from error


def _update(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise PolicyError(f"{path}: missing; expected a folder written by save_pretrained") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise PolicyError(f"{path}: found {type(value).__name__}, expected a JSON object")
    return value


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
