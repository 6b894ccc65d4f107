"""Attention of the vision encoder over all images at once."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention, apply_rotary_pos_emb_vision


class BatchedVisionAttention(Qwen3VLVisionAttention):
    """The same attention with the images of a batch as one batched kernel, where all have one size.

    The library calls the kernel once per image and layer, which on the CPU costs more than the attention itself.
    """

    def forward(
        self,
        hidden_states: Float[Tensor, "p d"],
        cu_seqlens: Int[Tensor, "m"],
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "p d"]:
        """Attend within each image; `cu_seqlens` are the first patch of each image and the end."""
        lengths = cu_seqlens.diff().unique()
        if position_embeddings is None or self.config._attn_implementation != "sdpa" or len(lengths) != 1:
            return super().forward(hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
        patches = hidden_states.shape[0]
        query, key, value = self.qkv(hidden_states).view(patches, 3, self.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        images = (patches // int(lengths), int(lengths), self.num_heads, -1)
        query, key, value = (part.reshape(images).transpose(1, 2) for part in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=self.scaling)
        return self.proj(mixed.transpose(1, 2).reshape(patches, -1))


def use_batched_attention(vision: nn.Module) -> None:
    """Give every attention of a Qwen3-VL vision encoder the batched form, in place; weights and names stay."""
    for inner in vision.modules():
        if type(inner) is Qwen3VLVisionAttention:
            inner.__class__ = BatchedVisionAttention
