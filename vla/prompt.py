"""The prompt: camera names, frame times, images, ego history, route and navigation, as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vla.config import PolicyConfig
from vla.policy import Observation
from vla.tokenizer import (
    HISTORY_TOKEN,
    IMAGE_TOKEN,
    PAD_TOKEN,
    PLAN_TOKEN,
    REASONING_END,
    REASONING_START,
    ROUTE_TOKEN,
    token_id,
)

SYSTEM_TEXT = "You are a driving assistant that generates safe and accurate actions."
REQUEST_TEXT = "output the future trajectory."
REASONING_REQUEST_TEXT = (
    "output the chain-of-thought reasoning of the driving process, then output the future trajectory."
)
FRAME_TIME_STEP_US = 100_000


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of B observations, padded on the left to one length L.

    Attributes:
        ids: int64 [B, L] token ids.
        mask: bool [B, L], false on padding.
        is_image, is_history, is_route: bool [B, L], positions that embeddings of images, history and route replace.
        is_reasoning: bool [B, L], reasoning text from its start token to its end token, which the text loss learns.
    """

    ids: Int[Tensor, "b l"]
    mask: Bool[Tensor, "b l"]
    is_image: Bool[Tensor, "b l"]
    is_history: Bool[Tensor, "b l"]
    is_route: Bool[Tensor, "b l"]
    is_reasoning: Bool[Tensor, "b l"]


def camera_text(camera: str) -> str:
    """Readable name of a logical camera: `camera_front_wide_120fov` becomes `front wide 120fov`."""
    return camera.removeprefix("camera_").replace("_", " ")


def frame_time_text(offset_us: int) -> str:
    """Time of a frame relative to now, rounded to 0.1 s: `-0.1 s`."""
    tenths = round(offset_us / FRAME_TIME_STEP_US)
    return f"-{abs(tenths) / 10:.1f} s" if tenths < 0 else "0.0 s"


def prompt_text(
    config: PolicyConfig,
    tokens_per_image: int,
    offsets_us: tuple[tuple[int, ...], ...],
    navigation: str,
    reasoning: str | None = None,
) -> str:
    """The whole prompt of one observation in the chat format of Qwen, up to where the trajectory begins.

    `offsets_us`: time of each frame relative to now, us, by camera in the order of `config.cameras`. With `reasoning`
    the request asks for text first and the answer holds it; where it is empty the prompt ends after its start token.
    """
    image = "<|vision_start|>" + IMAGE_TOKEN * tokens_per_image + "<|vision_end|>"
    cameras = "".join(
        f"{camera_text(camera)} camera:\n" + "".join(f"{frame_time_text(offset)} {image}" for offset in offsets) + "\n"
        for camera, offsets in zip(config.cameras, offsets_us, strict=True)
    )
    history = "<|traj_history_start|>" + HISTORY_TOKEN * config.history_tokens + "<|traj_history_end|>"
    route = "<|route_start|>" + ROUTE_TOKEN * config.route_tokens + "<|route_end|>" if config.route_tokens else ""
    request, answer = REQUEST_TEXT, PLAN_TOKEN
    if reasoning is not None:
        request = REASONING_REQUEST_TEXT
        answer = REASONING_START + (reasoning + REASONING_END + PLAN_TOKEN if reasoning else "")
    return (
        f"<|im_start|>system\n{SYSTEM_TEXT}<|im_end|>\n<|im_start|>user\n{cameras}{history}{route}\n"
        f"navigation: {navigation or config.default_navigation}\n{request}<|im_end|>\n"
        f"<|im_start|>assistant\n{answer}"
    )


def tokenizer_corpus(config: PolicyConfig) -> list[str]:
    """Text on which the tiny tokenizer is trained: the prompt's wording with usual instructions and frame times."""
    rigs = (config.cameras, ("camera_front_wide_120fov", "camera_front_tele_30fov", "camera_front", "camera_left"))
    instructions = (
        config.default_navigation,
        *("follow the road", "turn left", "turn right", "go straight", "keep left", "keep right", "stop"),
        *("turn left in 50 m", "turn right in 100 m", "change to the left lane", "change to the right lane"),
    )
    texts = [f"<|im_start|>system\n{SYSTEM_TEXT}<|im_end|>\n<|im_start|>user\n"] * 20
    texts += [f"\nnavigation: {instruction}\n{REQUEST_TEXT}<|im_end|>\n" for instruction in instructions] * 4
    texts += ["<|im_start|>assistant\n<|traj_future_start|>"] * 20
    texts += [f"{camera_text(camera)} camera:\n" for rig in rigs for camera in rig] * 6
    texts += [f"{frame_time_text(-FRAME_TIME_STEP_US * tenths)} " for tenths in range(20)] * 6
    return [piece for text in texts for piece in _without_special_tokens(text)]


def _without_special_tokens(text: str) -> list[str]:
    pieces = (piece.rpartition("|>")[2] for piece in text.split("<|"))
    return [piece for piece in pieces if piece]


class PromptBuilder:
    """Turns observations into token ids; equal texts are tokenised once."""

    def __init__(self, config: PolicyConfig, tokenizer: PreTrainedTokenizerFast, tokens_per_image: int) -> None:
        self._config = config
        self._tokens_per_image = tokens_per_image
        self._tokenizer = tokenizer
        self._image_id, self._history_id, self._route_id, self._pad_id = (
            token_id(tokenizer, token) for token in (IMAGE_TOKEN, HISTORY_TOKEN, ROUTE_TOKEN, PAD_TOKEN)
        )
        self._reasoning_ids = tuple(token_id(tokenizer, token) for token in (REASONING_START, REASONING_END))
        self._encode = lru_cache(maxsize=4096)(self._encode_text)

    def _encode_text(
        self, offsets_us: tuple[tuple[int, ...], ...], navigation: str, reasoning: str | None
    ) -> tuple[int, ...]:
        text = prompt_text(self._config, self._tokens_per_image, offsets_us, navigation, reasoning)
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def row(
        self, offsets_us: tuple[tuple[int, ...], ...], navigation: str, reasoning: str | None = None
    ) -> tuple[int, ...]:
        """Token ids of one prompt; arguments as in `prompt_text`."""
        return self._encode(offsets_us, navigation, reasoning)

    def rows(self, observation: Observation, reasoning: Sequence[str | None] | None = None) -> list[tuple[int, ...]]:
        """Token ids of each observation, unpadded; `reasoning` of each as in `prompt_text`, None for none at all."""
        texts = reasoning if reasoning is not None else (None,) * len(observation.navigation)
        times_us = np.stack([np.asarray(observation.image_times_us[camera]) for camera in self._config.cameras], axis=1)
        offsets_us = times_us - np.asarray(observation.t_us)[:, None, None]
        # Rounded before the lookup: the text only shows tenths of a second.
        tenths = np.rint(np.minimum(offsets_us, 0) / FRAME_TIME_STEP_US).astype(int) * FRAME_TIME_STEP_US
        return [
            self.row(tuple(map(tuple, row.tolist())), navigation, text)
            for row, navigation, text in zip(tenths, observation.navigation, texts, strict=True)
        ]

    def batch(self, rows: list[tuple[int, ...]]) -> PromptBatch:
        """Pad rows of token ids on the left to one length."""
        length = max(map(len, rows))
        ids = torch.tensor([(self._pad_id,) * (length - len(row)) + row for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(length)[None] >= length - lengths[:, None]
        start, end = ((ids == token).long() for token in self._reasoning_ids)
        is_reasoning = (start.cumsum(1) > 0) & (end.cumsum(1) - end == 0)
        image, history, route = (ids == token for token in (self._image_id, self._history_id, self._route_id))
        return PromptBatch(ids, mask, image, history, route, is_reasoning)
