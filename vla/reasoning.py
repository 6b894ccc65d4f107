"""Chain-of-causation text before the plan: an optional output with a loss of its own.

The answer is `<|cot_start|>` text `<|cot_end|><|traj_future_start|>`, and the plan sees the text. Examples without
text, and sampling with generation off, ask for the plan alone; each request has one wording in training and sampling.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from vla.backbone import Backbone, PromptCache
from vla.config import PolicyConfig
from vla.errors import PolicyError
from vla.policy import TrainingBatch
from vla.prompt import PromptBatch
from vla.tokenizer import PLAN_TOKEN, REASONING_END, token_id


def reasoning_texts(batch: TrainingBatch, config: PolicyConfig) -> tuple[str | None, ...] | None:
    """Text of each example, None where it has none; None for the batch when the configuration trains no text."""
    if not config.reasoning_loss_weight:
        return None
    return tuple(text or None for text in batch.reasoning or ("",) * len(batch.t_us))


def reasoning_loss(backbone: Backbone, cache: PromptCache, prompt: PromptBatch, weight: Float[Tensor, "b"]) -> Tensor:
    """Cross-entropy of the reasoning tokens, from the start token to the end token, each from those before it.

    The mean over these tokens by the weights of their examples; 0 for a batch without text. It depends on the same
    weights of the model either way, because processes that train together must have gradients for the same weights.
    """
    assert cache.hidden is not None
    labelled = prompt.is_reasoning[:, 1:]
    if not bool(labelled.any()):
        return 0.0 * backbone.logits(cache.hidden[:, -1]).sum()
    errors = functional.cross_entropy(
        backbone.logits(cache.hidden[:, :-1][labelled]), prompt.ids[:, 1:][labelled], reduction="none"
    )
    by_token = weight.to(errors)[:, None].expand(labelled.shape)[labelled]
    return (errors * by_token).sum() / by_token.sum().clamp_min(torch.finfo(errors.dtype).tiny)


def write_reasoning(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, cache: PromptCache, max_tokens: int
) -> tuple[list[list[int]], PromptCache]:
    """Continue prompts that end with the start token, always with the likeliest token.

    A row ends at `<|cot_end|>` or after `max_tokens`; the end token and the start of the plan are then appended.
    Returns the ids of each row's text and the cache for the plans.
    """
    if max_tokens < 1:
        raise PolicyError(f"reasoning_tokens: found {max_tokens}, expected 1 or more to write text")
    assert cache.hidden is not None
    end, plan = token_id(tokenizer, REASONING_END), token_id(tokenizer, PLAN_TOKEN)
    rows: list[list[int]] = [[] for _ in range(len(cache.mask))]
    going = torch.ones(len(rows), dtype=torch.bool, device=cache.mask.device)
    for _ in range(max_tokens):
        assert cache.hidden is not None
        ids = backbone.logits(cache.hidden[:, -1]).argmax(-1)
        going = going & (ids != end)
        if not bool(going.any()):
            break
        for row, token, is_going in zip(rows, ids.tolist(), going.tolist(), strict=True):
            if is_going:
                row.append(token)
        cache = backbone.extend(cache, ids, going)
    for token in (end, plan):
        cache = backbone.extend(cache, _repeated(token, going), torch.ones_like(going))
    return rows, cache


def _repeated(token: int, like: Tensor) -> Int[Tensor, "b"]:
    return torch.full(like.shape, token, device=like.device)
