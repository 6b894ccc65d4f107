"""Tokenizers: a small byte-level BPE trained offline on the prompt's own wording, and the tokens that driving adds."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vla.errors import PolicyError

# The 29 tokens of the public Alpamayo vocabulary, in the order in which it adds them.
DRIVING_TOKENS = (
    "<|prompt_start|>",
    "<|prompt_end|>",
    "<|image_start|>",
    "<|image_pre_tkn|>",
    "<|image_end|>",
    "<|traj_history_start|>",
    "<|traj_history_pre_tkn|>",
    "<|traj_history_end|>",
    "<|cot_start|>",
    "<|cot_end|>",
    "<|meta_action_start|>",
    "<|meta_action_end|>",
    "<|traj_future_start|>",
    "<|traj_future_pre_tkn|>",
    "<|traj_future_end|>",
    "<|traj_history|>",
    "<|traj_future|>",
    "<|image_pad|>",
    "<|vectorized_wm|>",
    "<|vectorized_wm_start|>",
    "<|vectorized_wm_end|>",
    "<|vectorized_wm_pre_tkn|>",
    "<|route_start|>",
    "<|route_pad|>",
    "<|route_end|>",
    "<|question_start|>",
    "<|question_end|>",
    "<|answer_start|>",
    "<|answer_end|>",
)
QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
HISTORY_TOKEN = "<|traj_history|>"
ROUTE_TOKEN = "<|route_pad|>"
REASONING_START = "<|cot_start|>"
REASONING_END = "<|cot_end|>"
PLAN_TOKEN = "<|traj_future_start|>"
IMAGE_TOKEN = "<|image_pad|>"
PAD_TOKEN = "<|endoftext|>"
TINY_VOCABULARY = 512


def build_tiny_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of `TINY_VOCABULARY` entries on `corpus`; whole phrases become one token.

    Every text can be encoded: what the corpus lacks falls back to bytes. Deterministic for a corpus.
    """
    specials = list(dict.fromkeys(QWEN_TOKENS + DRIVING_TOKENS))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD_TOKEN, eos_token="<|im_end|>")


def load_tokenizer(source: str, first: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Tokenizer of a local folder or hub name, with the driving tokens added where it lacks them, `first` before them.

    Raises `PolicyError` when there is none or when it lacks the chat and vision tokens of Qwen3-VL.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise PolicyError(f"tokenizer of {source}: cannot be loaded ({error}); expected tokenizer.json") from error
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in QWEN_TOKENS if token not in vocabulary]
    if missing:
        raise PolicyError(f"tokenizer of {source}: lacks {', '.join(missing)}; expected one of the Qwen3-VL family")
    new = [token for token in (*first, *DRIVING_TOKENS) if token not in vocabulary]
    tokenizer.add_tokens(new, special_tokens=True)
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Id of one token of the vocabulary. Raises `PolicyError` when it is not there."""
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise PolicyError(f"tokenizer: lacks {token}; expected one of the Qwen3-VL family with the driving tokens")
    return found
