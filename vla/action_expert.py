"""The action expert: a transformer over action tokens that attends to every backbone layer's keys and values."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vla.backbone import PromptCache
from vla.policy import PLAN_STEPS

ACTION_SIZE = 2
FREQUENCIES = 10
HIGHEST_FREQUENCY = 100.0


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of an action expert.

    Attributes:
        layers, kv_heads, head_size: those of the backbone's text model, whose cache the expert reads.
        hidden, ffn, heads: its own width, feed-forward width and query heads.
        waypoints_per_token: waypoints that one token carries.
        fourier_actions: whether noisy actions enter as Fourier features.
        norm_eps: epsilon of the root-mean-square norms.
    """

    layers: int
    kv_heads: int
    head_size: int
    hidden: int
    ffn: int
    heads: int
    waypoints_per_token: int
    fourier_actions: bool
    norm_eps: float = 1e-6

    @property
    def tokens(self) -> int:
        """Action tokens per sample."""
        return PLAN_STEPS // self.waypoints_per_token


def fourier_features(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n 20"]:
    """Sine and cosine of 2 pi f x at 10 log-spaced frequencies from 1 to 100, times sqrt 2."""
    exponents = torch.linspace(0.0, math.log(HIGHEST_FREQUENCY), FREQUENCIES, device=values.device)
    angles = values[..., None] * (2.0 * math.pi * exponents.exp()).to(values.dtype)
    return math.sqrt(2.0) * torch.cat([angles.sin(), angles.cos()], dim=-1)


class ExpertAttention(nn.Module):
    """Attention of action tokens to [prompt keys of one backbone layer, keys of the same sample], both directions.

    Projections and norms have the names and shapes of a Qwen3 attention, so weights of that layout map one to one.
    """

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.q_proj = nn.Linear(shape.hidden, queries, bias=False)
        self.k_proj = nn.Linear(shape.hidden, keys, bias=False)
        self.v_proj = nn.Linear(shape.hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_size, eps=shape.norm_eps)
        self.k_norm = nn.RMSNorm(shape.head_size, eps=shape.norm_eps)

    def forward(
        self,
        hidden: Float[Tensor, "b k t h"],
        rotary: tuple[Tensor, Tensor],
        prompt_key: Float[Tensor, "b g l d"],
        prompt_value: Float[Tensor, "b g l d"],
        mask: Float[Tensor, "b 1 1 l"],
    ) -> Float[Tensor, "b k t h"]:
        """Attend; `mask` is added to the scores of the prompt (0, or minus infinity on padding)."""
        batch, samples, tokens, _ = hidden.shape
        groups, size = self.shape.kv_heads, self.shape.head_size
        split = (batch, samples, tokens, -1, size)
        cos, sin = (part[:, None, :, None] for part in rotary)
        query = _rotate(self.q_norm(self.q_proj(hidden).view(split)), cos, sin)
        key = _rotate(self.k_norm(self.k_proj(hidden).view(split)), cos, sin)
        value = self.v_proj(hidden).view(split)
        # query [B, G, K, R, T, D] with R query heads per KV head; key and value [B, G, K, T, D]
        query = query.unflatten(3, (groups, -1)).permute(0, 3, 1, 4, 2, 5)
        key, value = (part.permute(0, 3, 1, 2, 4) for part in (key, value))
        attend = attend_single if samples == 1 else attend_shared
        attended = attend(query, key, value, prompt_key, prompt_value, mask)
        return self.o_proj(attended.permute(0, 2, 4, 1, 3, 5).reshape(batch, samples, tokens, -1))


def attend_shared(
    query: Float[Tensor, "b g k r t d"],
    key: Float[Tensor, "b g k t d"],
    value: Float[Tensor, "b g k t d"],
    prompt_key: Float[Tensor, "b g l d"],
    prompt_value: Float[Tensor, "b g l d"],
    mask: Float[Tensor, "b 1 1 l"],
) -> Float[Tensor, "b g k r t d"]:
    """Attention of K samples that share the prompt's keys without copies of them: one softmax over both parts."""
    batch, groups, samples, heads, tokens, size = query.shape
    length = prompt_key.shape[2]
    query = (query * size**-0.5).reshape(batch, groups, samples * heads * tokens, size)
    prompt_scores = query @ prompt_key.transpose(-1, -2) + mask
    own_scores = query.view(batch, groups, samples, heads * tokens, size) @ key.transpose(-1, -2)
    scores = torch.cat([prompt_scores, own_scores.view(batch, groups, -1, tokens)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    own_weights = weights[..., length:].reshape(batch, groups, samples, heads * tokens, tokens)
    mixed = weights[..., :length] @ prompt_value + (own_weights @ value).view(batch, groups, -1, size)
    return mixed.view(batch, groups, samples, heads, tokens, size)


def attend_single(
    query: Float[Tensor, "b g 1 r t d"],
    key: Float[Tensor, "b g 1 t d"],
    value: Float[Tensor, "b g 1 t d"],
    prompt_key: Float[Tensor, "b g l d"],
    prompt_value: Float[Tensor, "b g l d"],
    mask: Float[Tensor, "b 1 1 l"],
) -> Float[Tensor, "b g 1 r t d"]:
    """The same for one sample, through the fused kernel with an explicit 4-D mask and no causality."""
    batch, groups, _, heads, tokens, size = query.shape
    keys = torch.cat([prompt_key, key[:, :, 0]], dim=2)
    values = torch.cat([prompt_value, value[:, :, 0]], dim=2)
    # The query heads of one KV head become rows of that head: no repeated keys.
    rows = query.reshape(batch, groups, heads * tokens, size)
    full_mask = functional.pad(mask, (0, tokens)).expand(batch, 1, heads * tokens, -1)
    mixed = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=full_mask)
    return mixed.view(batch, groups, 1, heads, tokens, size)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class ExpertFeedForward(nn.Module):
    """Gated feed-forward (SwiGLU)."""

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n h"]:
        """Apply."""
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class ExpertLayer(nn.Module):
    """One pre-norm transformer layer of the expert."""

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.self_attn = ExpertAttention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.mlp = ExpertFeedForward(shape)

    def forward(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], key: Tensor, value: Tensor, mask: Tensor
    ) -> Tensor:
        """Attend to one backbone layer and to the other action tokens, then feed forward; shapes as in attention."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotary, key, value, mask)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class ActionExpert(nn.Module):
    """Velocity of the flow from noisy actions, flow time and the encoded prompt."""

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__()
        self.shape = shape
        per_action = 2 * FREQUENCIES if shape.fourier_actions else 1
        features = shape.waypoints_per_token * ACTION_SIZE * per_action + 2 * FREQUENCIES
        wide = max(shape.hidden, 512) if shape.fourier_actions else shape.hidden
        self.action_in_proj = nn.Sequential(
            nn.Linear(features, wide),
            nn.SiLU(),
            nn.RMSNorm(wide, eps=shape.norm_eps),
            nn.Linear(wide, shape.hidden),
            nn.LayerNorm(shape.hidden),
        )
        self.layers = nn.ModuleList(ExpertLayer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.action_out_proj = nn.Linear(shape.hidden, shape.waypoints_per_token * ACTION_SIZE)

    def forward(
        self,
        noisy: Float[Tensor, "b k 64 2"],
        time: Float[Tensor, "b k"],
        cache: PromptCache,
        rotary: tuple[Tensor, Tensor],
    ) -> Float[Tensor, "b k 64 2"]:
        """Velocity at normalised noisy actions and flow times (0 noise, 1 data), float32.

        `rotary`: cosine and sine [B, tokens, head size] of the positions that follow each prompt.
        """
        hidden = self._embed(noisy, time)
        mask = prompt_mask(cache, hidden.dtype)
        for layer, key, value in zip(self.layers, cache.keys, cache.values, strict=True):
            hidden = layer(hidden, rotary, key, value, mask)
        velocity = self.action_out_proj(self.norm(hidden)).float()
        return velocity.reshape(*noisy.shape)

    def _embed(self, noisy: Tensor, time: Tensor) -> Tensor:
        """Tokens [B, K, T, hidden] of grouped waypoints; time enters only here."""
        batch, samples = time.shape
        actions = fourier_features(noisy) if self.shape.fourier_actions else noisy
        grouped = actions.reshape(batch, samples, self.shape.tokens, -1)
        times = fourier_features(time)[:, :, None].expand(-1, -1, self.shape.tokens, -1)
        features = torch.cat([grouped, times], dim=-1)
        return self.action_in_proj(features.to(self.action_out_proj.weight.dtype))


def prompt_mask(cache: PromptCache, dtype: torch.dtype) -> Float[Tensor, "b 1 1 l"]:
    """Additive mask over the prompt: 0, or minus infinity on padding."""
    mask = torch.zeros(cache.mask.shape, dtype=dtype, device=cache.mask.device)
    return mask.masked_fill(~cache.mask, -math.inf)[:, None, None]
