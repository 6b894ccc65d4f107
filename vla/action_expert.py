"""The action expert: a transformer over action tokens that attends to every backbone layer's keys and values."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vla.backbone import PromptCache
from vla.linear import Linear, linear
from vla.policy import PLAN_STEPS

ACTION_SIZE = 2
FREQUENCIES = 10
HIGHEST_FREQUENCY = 100.0
FOURIER_WIDTH = 512
FOURIER_NORM_EPS = 1e-5


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


def fourier_frequencies(device: torch.device | None = None) -> Float[Tensor, "10"]:
    """10 log-spaced frequencies from 1 to 100."""
    return torch.linspace(0.0, math.log(HIGHEST_FREQUENCY), FREQUENCIES, device=device).exp()


def fourier_features(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n 20"]:
    """Sine and cosine of 2 pi f x at 10 log-spaced frequencies from 1 to 100, times sqrt 2."""
    angles = values[..., None] * (2.0 * math.pi * fourier_frequencies(values.device)).to(values.dtype)
    return math.sqrt(2.0) * torch.cat([angles.sin(), angles.cos()], dim=-1)


@dataclass(frozen=True)
class PreparedLayer:
    """What of one layer depends on neither noise nor time; every step of the flow reads it.

    Attributes:
        prompt_key, prompt_value: keys and values [B, KV heads, L, head size] of the backbone's layer.
        cos, sin: [B, 1, T, query and KV heads, head size], rotary factors times the weights of the query and key norms.
        qkv_weight, gate_up_weight: projections joined to one matrix each, or None to apply them one by one.
    """

    prompt_key: Float[Tensor, "b g l d"]
    prompt_value: Float[Tensor, "b g l d"]
    cos: Float[Tensor, "b 1 t h d"]
    sin: Float[Tensor, "b 1 t h d"]
    qkv_weight: Float[Tensor, "qkv h"] | None
    gate_up_weight: Float[Tensor, "f h"] | None

    def rows(self, chosen: slice) -> "PreparedLayer":
        """The same for some rollouts of the batch."""
        key, value, cos, sin = (part[chosen] for part in (self.prompt_key, self.prompt_value, self.cos, self.sin))
        return PreparedLayer(key, value, cos, sin, self.qkv_weight, self.gate_up_weight)


@dataclass(frozen=True)
class PreparedPrompt:
    """What the expert reads of an encoded prompt: its layers, and the mask [B, 1, 1, L] added to the scores."""

    layers: tuple[PreparedLayer, ...]
    mask: Float[Tensor, "b 1 1 l"]

    def rows(self, chosen: slice) -> "PreparedPrompt":
        """The same for some rollouts of the batch."""
        return PreparedPrompt(tuple(layer.rows(chosen) for layer in self.layers), self.mask[chosen])


class ExpertAttention(nn.Module):
    """Attention of action tokens to [prompt keys of one backbone layer, keys of the same sample], both directions.

    Projections and norms have the names and shapes of a Qwen3 attention, so weights of that layout map one to one.
    """

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.q_proj = Linear(shape.hidden, queries, bias=False)
        self.k_proj = Linear(shape.hidden, keys, bias=False)
        self.v_proj = Linear(shape.hidden, keys, bias=False)
        self.o_proj = Linear(queries, shape.hidden, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_size, eps=shape.norm_eps)
        self.k_norm = nn.RMSNorm(shape.head_size, eps=shape.norm_eps)

    def rotary_factors(self, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine [B, 1, T, query and KV heads, head size] with the norms' weights folded in.

        With u = w * x / |x|, rotation is u cos + (-u2, u1) sin, so each half of the sine takes the other half's weight.
        Queries carry the scale of the scores as well.
        """
        cos, sin = (part[:, None, :, None] for part in rotary)
        scaled = self.q_norm.weight * self.shape.head_size**-0.5
        heads = (self.shape.heads, self.shape.kv_heads)
        weight = torch.cat([w.expand(n, -1) for w, n in zip((scaled, self.k_norm.weight), heads, strict=True)])
        first, second = weight.chunk(2, dim=-1)
        return cos * weight, sin * torch.cat([-second, first], dim=-1)

    def forward(
        self, hidden: Float[Tensor, "b k t h"], prepared: PreparedLayer, mask: Float[Tensor, "b 1 1 l"]
    ) -> Float[Tensor, "b k t h"]:
        """Attend; `mask` is added to the scores of the prompt (0, or minus infinity on padding)."""
        batch, samples, tokens, _ = hidden.shape
        groups, size = self.shape.kv_heads, self.shape.head_size
        heads = self._project(hidden, prepared.qkv_weight).view(batch, samples, tokens, -1, size)
        turned, value = heads.split([self.shape.heads + groups, groups], dim=3)
        turned = _normalise_and_rotate(turned, prepared.cos, prepared.sin, self.shape.norm_eps)
        query, key = turned.split([self.shape.heads, groups], dim=3)
        # query [B, G, K, T, R, D] with R query heads per KV head; key and value [B, G, K, T, D]
        query = query.unflatten(3, (groups, -1)).permute(0, 3, 1, 2, 4, 5)
        key, value = (part.permute(0, 3, 1, 2, 4) for part in (key, value))
        attend = attend_single if samples == 1 else attend_shared
        attended = attend(query, key, value, prepared.prompt_key, prepared.prompt_value, mask)
        return self.o_proj(attended.permute(0, 2, 3, 1, 4, 5).reshape(batch, samples, tokens, -1))

    def _project(self, hidden: Tensor, joined: Tensor | None) -> Tensor:
        if joined is not None:
            return linear(hidden, joined)
        return torch.cat([self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)], dim=-1)


def attend_shared(
    query: Float[Tensor, "b g k t r d"],
    key: Float[Tensor, "b g k t d"],
    value: Float[Tensor, "b g k t d"],
    prompt_key: Float[Tensor, "b g l d"],
    prompt_value: Float[Tensor, "b g l d"],
    mask: Float[Tensor, "b 1 1 l"],
) -> Float[Tensor, "b g k t r d"]:
    """Attention of K samples that share the prompt's keys without copies of them: one softmax over both parts.

    Queries carry the scale of the scores.
    """
    batch, groups, samples, tokens, heads, size = query.shape
    length, rows = prompt_key.shape[2], tokens * heads
    query = query.reshape(batch, groups, samples * rows, size)
    prompt_scores = query @ prompt_key.transpose(-1, -2) + mask
    own_scores = query.view(batch, groups, samples, rows, size) @ key.transpose(-1, -2)
    scores = torch.cat([prompt_scores, own_scores.view(batch, groups, -1, tokens)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    own_weights = weights[..., length:].reshape(batch, groups, samples, rows, tokens)
    mixed = weights[..., :length] @ prompt_value + (own_weights @ value).view(batch, groups, -1, size)
    return mixed.view(batch, groups, samples, tokens, heads, size)


def attend_single(
    query: Float[Tensor, "b g 1 t r d"],
    key: Float[Tensor, "b g 1 t d"],
    value: Float[Tensor, "b g 1 t d"],
    prompt_key: Float[Tensor, "b g l d"],
    prompt_value: Float[Tensor, "b g l d"],
    mask: Float[Tensor, "b 1 1 l"],
) -> Float[Tensor, "b g 1 t r d"]:
    """The same for one sample, through the fused kernel with an explicit 4-D mask and no causality."""
    batch, groups, _, tokens, heads, size = query.shape
    keys = torch.cat([prompt_key, key[:, :, 0]], dim=2)
    values = torch.cat([prompt_value, value[:, :, 0]], dim=2)
    # The query heads of one KV head become rows of that head: no repeated keys.
    rows = query.reshape(batch, groups, tokens * heads, size)
    full_mask = functional.pad(mask, (0, tokens)).expand(batch, 1, tokens * heads, -1)
    mixed = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=full_mask, scale=1.0)
    return mixed.view(batch, groups, 1, tokens, heads, size)


def _normalise_and_rotate(x: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis, then rotation by factors that carry the norm's weight."""
    exact = x.float()
    mean_square = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square() / x.shape[-1]
    rolled = x.roll(x.shape[-1] // 2, dims=-1)
    return (torch.addcmul(x * cos, rolled, sin) * torch.rsqrt(mean_square + eps)).to(x.dtype)


class ExpertFeedForward(nn.Module):
    """Gated feed-forward (SwiGLU)."""

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = Linear(shape.ffn, shape.hidden, bias=False)

    def forward(
        self, hidden: Float[Tensor, "*n h"], joined: Float[Tensor, "f h"] | None = None
    ) -> Float[Tensor, "*n h"]:
        """Apply; `joined` is the gate's weight on top of the other's, where they are joined."""
        if joined is None:
            gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        else:
            gate, up = linear(hidden, joined).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate) * up)


class ExpertLayer(nn.Module):
    """One pre-norm transformer layer of the expert."""

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.self_attn = ExpertAttention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.mlp = ExpertFeedForward(shape)

    def prepare(self, key: Tensor, value: Tensor, rotary: tuple[Tensor, Tensor], join: bool) -> PreparedLayer:
        """Gather what every step reads; `join`: also join weights, which carries no gradient to them."""
        attention, mlp = self.self_attn, self.mlp
        qkv = gate_up = None
        if join:
            qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
            gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        return PreparedLayer(key, value, *attention.rotary_factors(rotary), qkv, gate_up)

    def forward(self, hidden: Tensor, prepared: PreparedLayer, mask: Tensor) -> Tensor:
        """Attend to one backbone layer and to the other action tokens, then feed forward; shapes as in attention."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), prepared, mask)
        return hidden + self.mlp(self.post_attention_layernorm(hidden), prepared.gate_up_weight)


class ActionExpert(nn.Module):
    """Velocity of the flow from noisy actions, flow time and the encoded prompt."""

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__()
        self.shape = shape
        self.action_in_proj = _fourier_embedding(shape) if shape.fourier_actions else _raw_embedding(shape)
        self.layers = nn.ModuleList(ExpertLayer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.action_out_proj = Linear(shape.hidden, shape.waypoints_per_token * ACTION_SIZE)

    def prepare(self, cache: PromptCache, rotary: tuple[Tensor, Tensor]) -> PreparedPrompt:
        """Gather what neither noise nor time changes, once for all steps and samples.

        `rotary`: cosine and sine [B, tokens, head size] of the positions that follow each prompt. Without gradients
        the projections are joined into fewer, larger products; with them each stays a module, as ZeRO 3 requires.
        """
        join = not torch.is_grad_enabled()
        layers: Any = self.layers
        parts = zip(layers, cache.keys, cache.values, strict=True)
        prepared = tuple(layer.prepare(key, value, rotary, join) for layer, key, value in parts)
        return PreparedPrompt(prepared, prompt_mask(cache, self.action_out_proj.weight.dtype))

    def forward(
        self, noisy: Float[Tensor, "b k 64 2"], time: Float[Tensor, "b k"], prompt: PreparedPrompt
    ) -> Float[Tensor, "b k 64 2"]:
        """Velocity at normalised noisy actions and flow times (0 noise, 1 data), float32."""
        hidden = self._embed(noisy, time)
        for layer, prepared in zip(self.layers, prompt.layers, strict=True):
            hidden = layer(hidden, prepared, prompt.mask)
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


def _raw_embedding(shape: ExpertShape) -> nn.Sequential:
    """From grouped noisy actions and the time's features to tokens."""
    features = shape.waypoints_per_token * ACTION_SIZE + 2 * FREQUENCIES
    return nn.Sequential(
        Linear(features, shape.hidden),
        nn.SiLU(),
        nn.RMSNorm(shape.hidden, eps=shape.norm_eps),
        Linear(shape.hidden, shape.hidden),
        nn.LayerNorm(shape.hidden),
    )


def _fourier_embedding(shape: ExpertShape) -> nn.Sequential:
    """The same from Fourier features, with the layers of the published Alpamayo configuration in their order."""
    features = (shape.waypoints_per_token * ACTION_SIZE + 1) * 2 * FREQUENCIES
    return nn.Sequential(
        Linear(features, FOURIER_WIDTH),
        nn.SiLU(),
        nn.RMSNorm(FOURIER_WIDTH, eps=FOURIER_NORM_EPS),
        Linear(FOURIER_WIDTH, FOURIER_WIDTH),
        nn.SiLU(),
        nn.RMSNorm(FOURIER_WIDTH, eps=FOURIER_NORM_EPS),
        Linear(FOURIER_WIDTH, shape.hidden),
        nn.LayerNorm(shape.hidden),
    )


def prompt_mask(cache: PromptCache, dtype: torch.dtype) -> Float[Tensor, "b 1 1 l"]:
    """Additive mask over the prompt: 0, or minus infinity on padding."""
    mask = torch.zeros(cache.mask.shape, dtype=dtype, device=cache.mask.device)
    return mask.masked_fill(~cache.mask, -math.inf)[:, None, None]
