"""Which weights a fine-tune trains: everything, all but vision, the expert only, or adapters on the language model."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from vla.driving_policy import DrivingPolicy
from vla.errors import PolicyError
from vla.model import VisionLanguagePolicy

Mode = Literal["all", "freeze_vision", "freeze_backbone", "lora"]
MODES: tuple[Mode, ...] = ("all", "freeze_vision", "freeze_backbone", "lora")
PARTS = ("vision", "language", "lora", "history", "expert", "unread")
# Parts with a learning rate of their own; the history encoder is as new as the expert and follows its rate.
RATE_OF_PART = {"vision": "vision", "language": "language", "lora": "lora", "history": "expert", "expert": "expert"}
TRAINED_PARTS: dict[Mode, frozenset[str]] = {
    "all": frozenset({"vision", "language", "history", "expert"}),
    "freeze_vision": frozenset({"language", "history", "expert"}),
    "freeze_backbone": frozenset({"expert"}),
    "lora": frozenset({"lora", "history", "expert"}),
}


@dataclass(frozen=True)
class TrainingModeConfig:
    """What is trained."""

    mode: Mode = "freeze_vision"
    """`all`; `freeze_vision` (language model, history encoder, expert); `freeze_backbone` (expert only, the prompt is
    encoded without a graph); `lora` (adapters on the language model, history encoder, expert)."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: float = 32.0
    """Scale of the adapters, times 1 / rank."""
    lora_dropout: float = 0.0
    """Dropout on the adapters' inputs."""
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Linear layers of the language model that get adapters; also gate_proj, up_proj, down_proj."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        if self.mode not in MODES:
            raise PolicyError(f"mode: found {self.mode!r}, expected one of {', '.join(MODES)}")
        if self.lora_rank < 1 or not self.lora_targets:
            raise PolicyError(f"lora_rank: found {self.lora_rank}, expected 1 or more, with at least one lora_targets")


@dataclass(frozen=True)
class ParameterRow:
    """Parameters of one part: how many there are, and how many are trained."""

    part: str
    total: int
    trained: int

    @property
    def frozen(self) -> int:
        """Parameters that do not train."""
        return self.total - self.trained


@dataclass(frozen=True)
class ParameterTable:
    """Trained and frozen parameters by part; `unread` are weights that no plan depends on."""

    rows: tuple[ParameterRow, ...]

    @property
    def total(self) -> ParameterRow:
        """The sum over parts."""
        return ParameterRow("total", sum(row.total for row in self.rows), sum(row.trained for row in self.rows))

    def __str__(self) -> str:
        lines = [f"{'part':<10}{'parameters':>16}{'trained':>16}{'frozen':>16}"]
        for row in (*self.rows, self.total):
            lines.append(f"{row.part:<10}{row.total:>16,}{row.trained:>16,}{row.frozen:>16,}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, dict[str, int]]:
        """Counts by part as plain JSON."""
        rows = (*self.rows, self.total)
        return {row.part: {"total": row.total, "trained": row.trained, "frozen": row.frozen} for row in rows}


def apply_training_mode(policy: DrivingPolicy, config: TrainingModeConfig, seed: int = 0) -> ParameterTable:
    """Set which parameters of `policy` require gradients, adding adapters for `lora`; returns the parameter table.

    `seed` draws new adapters.

    Only weights that a plan depends on are trained: the last text layer is read for its keys and values alone.
    Raises `PolicyError` when a LoRA target matches nothing or when other adapters are already there.
    """
    if config.mode == "lora":
        add_lora(policy, config, seed)
    trained = TRAINED_PARTS[config.mode]
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(part_of(policy, name) in trained)
    return parameter_table(policy)


def add_lora(policy: DrivingPolicy, config: TrainingModeConfig, seed: int = 0) -> None:
    """Put adapters drawn from `seed` on the language model in place; does nothing when equal ones are there.

    Raises `PolicyError` when a target matches nothing or when different adapters are there.
    """
    if not isinstance(policy, VisionLanguagePolicy):
        raise PolicyError("mode lora: this policy has no language model to adapt; choose all or freeze_vision")
    if policy.lora_config is not None:
        _check_same_lora(policy.lora_config, config)
        return
    pattern = _lora_pattern(policy, config)
    adapted = [name for name, _ in policy.backbone.model.named_modules() if re.fullmatch(pattern, name)]
    for target in config.lora_targets:
        if not any(name.endswith(f".{target}") for name in adapted):
            raise PolicyError(f"lora_targets: {target!r} matches no linear layer of the language model")
    scale: Any = config.lora_alpha  # declared whole by peft, used as a float
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=scale,
        lora_dropout=config.lora_dropout,
        target_modules=pattern,
        base_model_name_or_path=policy.config.backbone,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(lora, policy.backbone.model)
    policy.lora_config = lora


def merge_lora(policy: DrivingPolicy) -> None:
    """Fold the adapters into the weights they adapt and remove them; does nothing when there are none."""
    if not isinstance(policy, VisionLanguagePolicy):
        return
    adapted = [(name, layer) for name, layer in policy.backbone.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in adapted:
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(policy.backbone.get_submodule(parent), child, layer.get_base_layer())
    # peft leaves its configuration on the model, which would let a later save look for adapters.
    if hasattr(policy.backbone.model, "peft_config"):
        del policy.backbone.model.peft_config
    policy.lora_config = None


def part_of(policy: DrivingPolicy, name: str) -> str:
    """The part that a parameter of `policy.named_parameters()` belongs to, one of `PARTS`."""
    if name.startswith("expert."):
        return "expert"
    if name.startswith(("history_encoder.", "route_encoder.")):
        return "history"
    if not isinstance(policy, VisionLanguagePolicy):
        return "vision"
    if not policy.config.reasons and _is_unread(name, policy.backbone.text_config.num_hidden_layers - 1):
        return "unread"
    if ".lora_" in name:
        return "lora"
    return "vision" if ".visual." in name else "language"


def parameter_table(policy: DrivingPolicy) -> ParameterTable:
    """Count the parameters of each part and those that require gradients."""
    counts = {part: [0, 0] for part in PARTS}
    for name, parameter in policy.named_parameters():
        count = counts[part_of(policy, name)]
        count[0] += parameter.numel()
        count[1] += parameter.numel() if parameter.requires_grad else 0
    return ParameterTable(tuple(ParameterRow(part, *count) for part, count in counts.items()))


def parameter_groups(policy: DrivingPolicy, learning_rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Optimiser groups of the trained parameters with a rate for each of vision, language, lora and expert.

    The history encoder takes the expert's rate. Each group has `name`, `params` and `lr`. Raises `PolicyError` when
    a trained group has no rate or a rate has an unknown name.
    """
    unknown = sorted(set(learning_rates) - set(RATE_OF_PART.values()))
    if unknown:
        raise PolicyError(
            f"learning rates: unknown groups {', '.join(unknown)}; expected vision, language, lora, expert"
        )
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(RATE_OF_PART[part_of(policy, name)], []).append(parameter)
    missing = sorted(set(groups) - set(learning_rates))
    if missing:
        raise PolicyError(f"learning rates: none for the trained groups {', '.join(missing)}")
    return [{"name": name, "params": params, "lr": learning_rates[name]} for name, params in groups.items()]


def _is_unread(name: str, last_layer: int) -> bool:
    """What neither keys nor values depend on: the head, the last norm, most of the last layer; only text reads it."""
    if ".lm_head." in name or ".language_model.norm." in name:
        return True
    _, found, rest = name.partition(f".language_model.layers.{last_layer}.")
    return bool(found) and not re.match(r"input_layernorm|self_attn\.(k_proj|v_proj|k_norm)", rest)


def _lora_pattern(policy: VisionLanguagePolicy, config: TrainingModeConfig) -> str:
    """Regular expression over module names of the backbone's model: the targets of every layer that is read."""
    last = policy.backbone.text_config.num_hidden_layers - 1
    unread = "" if policy.config.reasons else rf"(?!{last}\.(mlp|self_attn\.[qo]_proj))"
    targets = "|".join(map(re.escape, config.lora_targets))
    return rf"model\.language_model\.layers\.{unread}\d+\.(self_attn|mlp)\.({targets})"


def _check_same_lora(found: LoraConfig, config: TrainingModeConfig) -> None:
    if (found.r, found.lora_alpha) != (config.lora_rank, config.lora_alpha):
        raise PolicyError(
            f"lora: the policy already has adapters of rank {found.r} and alpha {found.lora_alpha}, expected "
            f"{config.lora_rank} and {config.lora_alpha}; merge them first or use the same values"
        )


def mode_to_json(config: TrainingModeConfig) -> dict[str, Any]:
    """Plain JSON values of a training mode."""
    return {**asdict(config), "lora_targets": list(config.lora_targets)}
