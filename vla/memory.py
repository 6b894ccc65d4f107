"""What training takes before any machine is rented: parameters and memory per GPU, from a model without weights.

Mixed precision as DeepSpeed does it: bfloat16 weights and gradients (2 bytes each), and for trained parameters
float32 master weights and the two moments of AdamW (12 bytes). ZeRO 2 splits gradients and optimiser state over the
GPUs, ZeRO 3 the weights as well. Activations are an estimate, see `activation_bytes`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration

from vla.action_space import ActionStatistics
from vla.backbone import Backbone
from vla.config import PolicyConfig
from vla.model import VisionLanguagePolicy
from vla.prompt import tokenizer_corpus
from vla.tokenizer import build_tiny_tokenizer
from vla.training_modes import Mode, ParameterTable, TrainingModeConfig, apply_training_mode

WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2, 2, 12
GB = 1e9
# Communication buckets of configs/deepspeed: 2e8 values of bfloat16, one to reduce and one to gather.
BUCKET_BYTES = 2 * 2 * 200_000_000

ROAD_2B = PolicyConfig(
    backbone="Qwen/Qwen3-VL-2B-Instruct",
    cameras=("camera_front_wide_120fov", "camera_front_tele_30fov"),
    num_frames=4,
    image_width_px=576,
    image_height_px=320,
    expert_hidden=1024,
    expert_ffn=4096,
    expert_heads=8,
    waypoints_per_token=1,
    action_features="fourier",
    euler_steps=10,
    dtype="bfloat16",
)
"""A policy of the 2B class with RoaD's two cameras: 1440 image tokens."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one GPU in training, bytes."""

    weights: float
    gradients: float
    optimizer: float
    buckets: float
    activations: float

    @property
    def total(self) -> float:
        """The sum, bytes."""
        return sum(dataclasses.astuple(self))


def qwen3_vl_2b_config() -> Qwen3VLConfig:
    """Shapes of Qwen3-VL-2B (and Cosmos-Reason2-2B), from its published configuration; nothing is downloaded."""
    text = {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": [24, 20, 20]},
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


def build_on_meta(config: PolicyConfig, backbone: Qwen3VLConfig) -> VisionLanguagePolicy:
    """A policy of these shapes on the `meta` device: it has parameters but no memory behind them.

    Its tokenizer is the tiny one, so text takes a few tokens less or more than with the real one.
    """
    tokenizer = build_tiny_tokenizer(tokenizer_corpus(config))
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration._from_config(backbone, dtype=getattr(torch, config.dtype))
        return VisionLanguagePolicy(config, Backbone(model), tokenizer, ActionStatistics())


def parameters_by_mode(
    config: PolicyConfig, backbone: Qwen3VLConfig, modes: tuple[Mode, ...], lora_rank: int = 16
) -> dict[Mode, ParameterTable]:
    """The parameter table of each training mode."""
    return {
        mode: apply_training_mode(build_on_meta(config, backbone), TrainingModeConfig(mode, lora_rank=lora_rank))
        for mode in modes
    }


def training_memory(table: ParameterTable, zero_stage: int, num_gpus: int, activations: float) -> MemoryEstimate:
    """Memory of each of `num_gpus` GPUs under ZeRO `zero_stage` (2 or 3), with `activations` bytes besides."""
    trained = table.total.trained
    weights = table.total.total * WEIGHT_BYTES / (num_gpus if zero_stage == 3 else 1)
    return MemoryEstimate(
        weights=weights,
        gradients=trained * GRADIENT_BYTES / num_gpus,
        optimizer=trained * OPTIMIZER_BYTES / num_gpus,
        buckets=min(BUCKET_BYTES, 2 * WEIGHT_BYTES * trained),
        activations=activations,
    )


def activation_bytes(
    policy: VisionLanguagePolicy, mode: Mode, micro_batch: int = 1, checkpointing: bool = True
) -> float:
    """Estimated activations kept for the backward pass, bytes, in bfloat16 with fused attention.

    A layer of width h and feed-forward width f keeps about 8 h + 4 f values per token (norms, projections, residuals,
    gate and products). With gradient checkpointing the encoder and the language model keep their inputs, h per token
    and layer, and one layer at a time whole. A frozen part before the first trained one keeps nothing.
    """
    text = policy.backbone.text_config
    vision: Any = policy.backbone.model.config.vision_config
    config, shape = policy.config, policy.expert.shape
    settings = policy.backbone.image_settings
    image_tokens = settings.tokens_per_image(config.image_width_px, config.image_height_px)
    patches = image_tokens * settings.merge**2 * config.images_per_observation
    expert_tokens = config.training_draws * shape.tokens
    prompt = policy.tokens_per_example - expert_tokens
    values = _kept(shape.layers, expert_tokens, shape.hidden, shape.ffn, checkpointing=False)
    # The cache, whether or not it carries gradients.
    values += 2 * text.num_hidden_layers * prompt * text.num_key_value_heads * text.head_dim
    if mode != "freeze_backbone":
        values += _kept(
            text.num_hidden_layers, prompt, text.hidden_size, text.intermediate_size, checkpointing=checkpointing
        )
    if mode == "all":
        values += _kept(vision.depth, patches, vision.hidden_size, vision.intermediate_size, checkpointing)
    return 2.0 * micro_batch * values


def _kept(layers: int, tokens: int, hidden: int, ffn: int, checkpointing: bool) -> int:
    """Values that a stack of layers keeps."""
    whole = 8 * hidden + 4 * ffn
    return tokens * (layers * hidden + whole if checkpointing else layers * whole)


def memory_table(
    config: PolicyConfig = ROAD_2B,
    gpus: tuple[int, ...] = (1, 8, 64),
    modes: tuple[Mode, ...] = ("lora", "freeze_backbone", "freeze_vision", "all"),
) -> list[str]:
    """Markdown lines: one row per training mode and ZeRO stage, memory per GPU in GB for each number of GPUs."""
    backbone = qwen3_vl_2b_config()
    policy = build_on_meta(config, backbone)
    lines = [
        "| mode | trained | frozen | activations, GB | ZeRO | " + " | ".join(f"{n} GPU, GB" for n in gpus) + " |",
        "|---" * (5 + len(gpus)) + "|",
    ]
    for mode, table in parameters_by_mode(config, backbone, modes).items():
        kept = activation_bytes(policy, mode)
        counts = f"{mode} | {table.total.trained / GB:.3f} B | {table.total.frozen / GB:.3f} B | {kept / GB:.1f}"
        for stage in (2, 3):
            totals = [training_memory(table, stage, count, kept).total / GB for count in gpus]
            lines.append(f"| {counts} | {stage} | " + " | ".join(f"{total:.1f}" for total in totals) + " |")
    return lines
