"""The vision-language backbone: a Qwen3-VL class model that encodes the prompt into keys and values of every layer."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast, Qwen3VLConfig
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration, apply_rotary_pos_emb
from transformers.utils import logging as transformers_logging

from vla.config import TINY_BACKBONE, PolicyConfig
from vla.errors import PolicyError
from vla.images import ImageSettings
from vla.linear import linear, use_fast_linear
from vla.prompt import PromptBatch, tokenizer_corpus
from vla.tokenizer import build_tiny_tokenizer, load_tokenizer, token_id
from vla.vision_attention import use_batched_attention

POSITION_EMBEDDING_STD = 1.0
"""Of the tiny backbone when it is new; its patch embeddings have about this size."""

PATCH_PROJECTION_SCALE = 0.3
"""Of the tiny backbone's initial patch projection: neighbouring pixels are alike, so 1536 of them add up."""


@dataclass(frozen=True)
class PromptCache:
    """What the action expert reads of an encoded prompt.

    Attributes:
        keys, values: one tensor [B, KV heads, L, head size] for each text layer; keys carry their rotary position.
        mask: bool [B, L], false on padding.
        next_position: int64 [B], rotary position that follows the prompt.
        hidden: [B, L, hidden size] outputs of the language model, where they were asked for.
    """

    keys: tuple[Float[Tensor, "b g l d"], ...]
    values: tuple[Float[Tensor, "b g l d"], ...]
    mask: Bool[Tensor, "b l"]
    next_position: Int[Tensor, "b"]
    hidden: Float[Tensor, "b l h"] | None = None


class _KeyValueRecorder:
    """Stands in for a cache: keeps the keys and values a layer computes, after those of earlier tokens."""

    def __init__(self, earlier: tuple[Tensor, Tensor] | None = None) -> None:
        self.key_value = earlier

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.key_value is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self.key_value, (key, value), strict=True))
        self.key_value = (key, value)
        return key, value


class PatchProjection(nn.Conv3d):
    """The patch embedding as one matrix product: a patch is as large as the kernel, and convolution is slower."""

    @classmethod
    def of(cls, convolution: nn.Conv3d) -> "PatchProjection":
        """The same weights under the same names."""
        size: Any = convolution.kernel_size
        with torch.device("meta"):
            projection = cls(convolution.in_channels, convolution.out_channels, size, size)
        projection.weight, projection.bias = convolution.weight, convolution.bias
        return projection

    def forward(self, input: Float[Tensor, "p c t y x"]) -> Float[Tensor, "p d 1 1 1"]:
        """Project patches."""
        projected = linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return projected[:, :, None, None, None]


class Backbone(nn.Module):
    """A Qwen3-VL model reduced to what driving needs: images and token embeddings in, keys and values out."""

    def __init__(self, model: Qwen3VLForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        use_fast_linear(model)
        use_batched_attention(model.model.visual)
        patch_embed = model.model.visual.patch_embed
        patch_embed.proj = PatchProjection.of(patch_embed.proj)
        self.gradient_checkpointing = False
        self._positions: dict[tuple[int, ...], tuple[Tensor, int]] = {}

    @property
    def text_config(self) -> Any:
        """Configuration of the text model (layers, heads, head size, hidden size)."""
        return self.model.config.text_config

    @property
    def hidden_size(self) -> int:
        """Width of the text model."""
        return self.text_config.hidden_size

    @property
    def image_settings(self) -> ImageSettings:
        """Patch geometry of the vision encoder."""
        vision: Any = self.model.config.vision_config
        return ImageSettings(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute layers in the backward pass instead of keeping their activations; active in training mode."""
        self.gradient_checkpointing = enabled
        vision = self.model.model.visual
        if enabled:
            vision.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            vision.gradient_checkpointing_disable()

    def encode(
        self,
        prompt: PromptBatch,
        rows: list[tuple[int, ...]],
        patches: Float[Tensor, "p d"],
        grid: Int[Tensor, "m 3"],
        history: Float[Tensor, "n hidden"],
        with_hidden: bool = False,
        route: Float[Tensor, "r hidden"] | None = None,
    ) -> PromptCache:
        """Encode prompts, images, history and route embeddings (all of the batch, in order) into keys and values.

        `with_hidden`: also run the rest of the last layer and keep its outputs.
        """
        text = self.model.model.language_model
        embeddings = text.embed_tokens(prompt.ids)
        vision = self.model.model.visual(patches.to(embeddings.dtype), grid_thw=grid, return_dict=True)
        embeddings = _replace(embeddings, prompt.is_image, vision.pooler_output)
        embeddings = _replace(embeddings, prompt.is_history, history)
        if route is not None:
            embeddings = _replace(embeddings, prompt.is_route, route)
        positions, next_position = self.rotary_positions(rows, prompt, grid)
        keys, values, hidden = self._run_layers(embeddings, positions, prompt, vision.deepstack_features, with_hidden)
        return PromptCache(keys, values, prompt.mask, next_position, hidden)

    def logits(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n v"]:
        """Scores of the next token, float32, from outputs of the language model."""
        return self.model.lm_head(hidden).float()

    def extend(self, cache: PromptCache, ids: Int[Tensor, "b"], lengthen: Bool[Tensor, "b"]) -> PromptCache:
        """The cache after one more text token a row; rows that `lengthen` leaves out get a masked one instead."""
        text = self.model.model.language_model
        mask = torch.cat([cache.mask, lengthen[:, None]], dim=1)
        hidden = text.embed_tokens(ids)[:, None]
        rotary = self.rotary_embedding(hidden, cache.next_position[:, None])
        added = torch.zeros(mask.shape, dtype=hidden.dtype, device=mask.device).masked_fill(~mask, -math.inf)
        keys, values = [], []
        for layer, key, value in zip(text.layers, cache.keys, cache.values, strict=True):
            hidden, key, value = _run_layer(layer, added[:, None, None], rotary, hidden, (key, value))
            keys.append(key)
            values.append(value)
        return PromptCache(tuple(keys), tuple(values), mask, cache.next_position + lengthen.long(), text.norm(hidden))

    def rotary_positions(
        self, rows: list[tuple[int, ...]], prompt: PromptBatch, grid: Int[Tensor, "m 3"]
    ) -> tuple[Int[Tensor, "3 b l"], Int[Tensor, "b"]]:
        """Rotary positions (time, height, width) of left-padded rows, and the position that follows each prompt.

        Each row is placed without its padding, so neither depends on how long the other rows are. The images of a
        batch have one size, so `grid[0]` stands for all.
        """
        device = prompt.ids.device
        positions = torch.zeros(3, len(rows), prompt.ids.shape[1], dtype=torch.int64)
        following = []
        for index, row in enumerate(rows):
            row_positions, next_position = self._row_positions(row, grid)
            positions[:, index, prompt.ids.shape[1] - len(row) :] = row_positions
            following.append(next_position)
        return positions.to(device), torch.tensor(following, device=device)

    def _row_positions(self, row: tuple[int, ...], grid: Tensor) -> tuple[Tensor, int]:
        key = (*row, *grid[0].tolist())
        if key not in self._positions:
            ids = torch.tensor([row])
            kinds = (ids == self.model.config.image_token_id).int()
            place: Any = self.model.model.get_rope_index
            positions, _ = place(ids, kinds, image_grid_thw=grid.cpu())
            if len(self._positions) >= 4096:
                self._positions.clear()
            self._positions[key] = (positions[:, 0], int(positions.max()) + 1)
        return self._positions[key]

    def rotary_embedding(self, like: Tensor, positions: Int[Tensor, "b t"]) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, T, head size] of text positions, in the dtype of `like`."""
        return self.model.model.language_model.rotary_emb(like, positions[None].expand(3, -1, -1))

    def _run_layers(
        self, hidden: Tensor, positions: Tensor, prompt: PromptBatch, deepstack: list[Tensor], with_hidden: bool
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor | None]:
        """Text layers with their keys and values; without `with_hidden` only these are computed of the last layer."""
        text = self.model.model.language_model
        mask = create_causal_mask(
            config=text.config,
            inputs_embeds=hidden,
            attention_mask=None if bool(prompt.mask.all()) else prompt.mask,
            past_key_values=None,
        )
        rotary = text.rotary_emb(hidden, positions)
        recompute = self.gradient_checkpointing and self.training
        recorded = []
        for index, layer in enumerate(text.layers if with_hidden else text.layers[:-1]):
            step = partial(_run_layer, layer, mask, rotary)
            hidden, key, value = checkpoint(step, hidden, use_reentrant=False) if recompute else step(hidden)
            recorded.append((key, value))
            if index < len(deepstack):
                hidden = _add(hidden, prompt.is_image, deepstack[index])
        if not with_hidden:
            recorded.append(_keys_and_values(text.layers[-1], hidden, rotary))
        keys, values = zip(*recorded, strict=True)
        return keys, values, text.norm(hidden) if with_hidden else None


def _run_layer(
    layer: Any,
    mask: Tensor | None,
    rotary: tuple[Tensor, Tensor],
    hidden: Tensor,
    earlier: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    recorder = _KeyValueRecorder(earlier)
    hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, past_key_values=recorder)
    assert recorder.key_value is not None
    return hidden, *recorder.key_value


def _keys_and_values(layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (*normed.shape[:-1], -1, attention.head_dim)
    key = attention.k_norm(attention.k_proj(normed).view(shape)).transpose(1, 2)
    value = attention.v_proj(normed).view(shape).transpose(1, 2)
    _, key = apply_rotary_pos_emb(key, key, *rotary)
    return key, value


def _replace(embeddings: Tensor, where: Tensor, rows: Tensor) -> Tensor:
    return embeddings.masked_scatter(where[..., None], rows.to(embeddings.dtype))


def _add(hidden: Tensor, where: Tensor, rows: Tensor) -> Tensor:
    return hidden + torch.zeros_like(hidden).masked_scatter(where[..., None], rows.to(hidden.dtype))


def load_backbone(config: PolicyConfig, seed: int) -> tuple[Backbone, PreTrainedTokenizerFast]:
    """Build the tiny backbone from `seed`, or load a Qwen3-VL class model, with its tokenizer.

    Raises `PolicyError` when `config.backbone` cannot be loaded or is of another class.
    """
    if config.backbone == TINY_BACKBONE:
        tokenizer = build_tiny_tokenizer(tokenizer_corpus(config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen3VLForConditionalGeneration._from_config(
                tiny_backbone_config(tokenizer),
                attn_implementation=config.attention,
                dtype=getattr(torch, config.dtype),
            )
            _tell_places_apart(model)
        return Backbone(model), tokenizer
    backbone, tokenizer = Backbone(load_qwen(config.backbone, config)), load_tokenizer(config.backbone)
    if len(tokenizer) > backbone.text_config.vocab_size:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone.model.resize_token_embeddings(len(tokenizer))
    return backbone, tokenizer


@torch.no_grad()
def _tell_places_apart(model: Qwen3VLForConditionalGeneration) -> None:
    """Start a new vision encoder with what is where in the image as audible as what is there.

    The usual initialisation leaves the position embeddings at 1/20 of the patch embeddings. Trained from that on a few
    hundred drives, the policy continued its past motion and never looked: plans were as good with shuffled images.
    """
    visual = model.model.visual
    nn.init.normal_(visual.pos_embed.weight, std=POSITION_EMBEDDING_STD)
    visual.patch_embed.proj.weight.mul_(PATCH_PROJECTION_SCALE)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars and loading reports of transformers: ours follow as one bar and one error."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def load_qwen(source: str, config: PolicyConfig) -> Qwen3VLForConditionalGeneration:
    """Load a Qwen3-VL class model from a local folder or hub name; every tensor must be present and of its shape.

    Raises `PolicyError` naming missing, unexpected or wrongly shaped tensors, or when the class is another one.
    """
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                source,
                dtype=getattr(torch, config.dtype),
                attn_implementation=config.attention,
                output_loading_info=True,
                # Listed like the others below instead of ending in a message that names no tensor.
                ignore_mismatched_sizes=True,
            )
    # The library raises a dozen kinds of errors for a damaged or foreign folder; all mean the same to the user.
    except Exception as error:
        raise PolicyError(f"backbone {source}: cannot be loaded ({type(error).__name__}: {error})") from error
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise PolicyError(f"backbone {source}: {kind.replace('_keys', '')} tensors {sorted(map(str, info[kind]))}")
    if not isinstance(model, Qwen3VLForConditionalGeneration):
        raise PolicyError(f"backbone {source}: found {type(model).__name__}, expected a Qwen3-VL class model")
    return model


def tiny_backbone_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Configuration of the tiny backbone: 4 text layers of width 128, 3 vision layers of width 96."""
    image, video, start, end, pad = (
        token_id(tokenizer, token)
        for token in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>")
    )
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
        "pad_token_id": pad,
        "initializer_range": 0.05,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 3,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 4,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 128,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [1],
        "initializer_range": 0.05,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )
