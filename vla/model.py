"""The driving policy: a vision-language backbone, an action expert and a unicycle action space."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vla.action_expert import ActionExpert, ExpertShape, PreparedPrompt
from vla.action_space import ActionStatistics, actions_to_plan
from vla.backbone import Backbone, PromptCache, load_backbone
from vla.config import REGRESSOR, PolicyConfig
from vla.driving_policy import DrivingPolicy, check_plans, speed_now_mps, stacked_images, weighted_mean
from vla.errors import PolicyError
from vla.flow_matching import draw_noise, draw_times, integrate, interpolate
from vla.history import HistoryEncoder
from vla.images import preprocess_images
from vla.policy import Observation, PlanSamples, TrainingBatch
from vla.policy_input import check_generators, check_observation
from vla.prompt import PromptBatch, PromptBuilder
from vla.reasoning import reasoning_loss, reasoning_texts, write_reasoning
from vla.regressor import build_regressor
from vla.route import RouteEncoder

# Action tokens that the expert takes at a time on a CPU, so that their activations stay near a core.
CPU_BLOCK_TOKENS = 2048


class VisionLanguagePolicy(DrivingPolicy):
    """A vision-language-action policy.

    Plans of one rollout do not depend on the other rollouts of a batch beyond float rounding (padding is masked and
    takes no rotary positions), and their noise comes from that rollout's generator alone.
    """

    def __init__(
        self, config: PolicyConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, statistics: ActionStatistics
    ) -> None:
        super().__init__(config, statistics)
        self.tokenizer = tokenizer
        self.backbone = backbone
        dtype = getattr(torch, config.dtype)
        embedding_std = float(backbone.text_config.initializer_range)
        self.history_encoder = HistoryEncoder(
            backbone.hidden_size, config.history_tokens, embedding_std, config.history
        ).to(dtype)
        self.route_encoder = None
        if config.route_tokens:
            self.route_encoder = RouteEncoder(backbone.hidden_size, config.route_tokens, embedding_std).to(dtype)
        self.expert = ActionExpert(_expert_shape(config, backbone)).to(dtype)
        tokens_per_image = backbone.image_settings.tokens_per_image(config.image_width_px, config.image_height_px)
        self._prompts = PromptBuilder(config, tokenizer, tokens_per_image)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.expert.action_out_proj.weight.device

    @property
    def tokens_per_example(self) -> int:
        """Tokens of the prompt with the default navigation, and of the noisy plans of all draws."""
        interval_us = self.config.frame_interval_us
        offsets_us = tuple(-interval_us * age for age in range(self.config.num_frames - 1, -1, -1))
        prompt = self._prompts.row((offsets_us,) * len(self.config.cameras), "")
        return len(prompt) + self.config.training_draws * self.expert.shape.tokens

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the backbone's layers in the backward pass instead of keeping their activations."""
        self.backbone.set_gradient_checkpointing(enabled)

    def encode(self, observation: Observation, reasoning: Sequence[str | None] | None = None) -> PromptCache:
        """Encode checked observations into keys and values; the same path for training and sampling.

        `reasoning`: text of each row before its plan, as in `prompt_text`; the outputs of the language model are then
        kept as well. Carries gradients to whatever of the backbone and history encoder is trained; with nothing
        trained there, no graph is built. Raises `PolicyError` when cameras, sizes, times or history differ from the
        configuration.
        """
        check_observation(observation, self.config)
        rows = self._prompts.rows(observation, reasoning)
        length, longest = max(map(len, rows)), self.backbone.text_config.max_position_embeddings
        if length > longest:
            raise PolicyError(f"prompt: {length} tokens are longer than the backbone's context of {longest}")
        prompt = _to(self._prompts.batch(rows), self.device)
        images = stacked_images(observation, self.config).to(self.device)
        patches, grid = preprocess_images(images, self.backbone.image_settings)
        trained = self.prompt_is_trained and torch.is_grad_enabled()
        with torch.set_grad_enabled(trained):
            history = self.history_encoder(_tensor(observation.ego_history, self.device))
            route = None
            if self.route_encoder is not None:
                route = self.route_encoder(_tensor(observation.route, self.device))
            return self.backbone.encode(prompt, rows, patches, grid, history, reasoning is not None, route)

    @property
    def prompt_is_trained(self) -> bool:
        """Whether any weight that the prompt's encoding depends on is trained."""
        modules = (module for name, module in self.named_children() if name != "expert")
        return any(parameter.requires_grad for module in modules for parameter in module.parameters())

    def loss(self, batch: TrainingBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Flow-matching loss of a batch, and figures to log.

        Returns scalars: `loss` (weighted mean squared velocity error, to minimise), `projection_error_m` (mean
        distance of the targets from the unicycle manifold), and where reasoning text is trained the parts of the loss,
        `flow_loss` and `reasoning_loss`. `generator`: CPU, the only randomness.
        Raises `PolicyError` on unusable input.
        """
        target, error_m = self.target_actions(batch)
        draws = self.config.training_draws
        clean = target[:, None].expand(-1, draws, -1, -1)
        noise = torch.randn(clean.shape, generator=generator)
        time = draw_times(tuple(clean.shape[:2]), generator)
        noisy, velocity = (part.to(self.device) for part in interpolate(clean, noise, time))
        texts = reasoning_texts(batch, self.config)
        cache = self.encode(batch, texts)
        predicted = self.expert(noisy, time.to(self.device), self._prepare(cache))
        per_example = (predicted - velocity).square().mean(dim=(1, 2, 3))
        figures = {"loss": weighted_mean(per_example, batch), "projection_error_m": error_m.mean()}
        if texts is None:
            return figures
        prompt = self._prompts.batch(self._prompts.rows(batch, texts))
        weight = torch.from_numpy(np.asarray(batch.weight))
        text_loss = reasoning_loss(self.backbone, cache, _to(prompt, self.device), weight)
        return {**figures, "loss": figures["loss"] + self.config.reasoning_loss_weight * text_loss,
                "flow_loss": figures["loss"].detach(), "reasoning_loss": text_loss.detach()}  # fmt: skip

    @torch.no_grad()
    def sample(
        self,
        observation: Observation,
        num_samples: int,
        temperature: float,
        generators: Sequence[torch.Generator],
    ) -> PlanSamples:
        """Draw `num_samples` plans per rollout; see `Policy.sample`.

        `temperature` scales the initial noise of the flow: 1 is the trained distribution, 0 the flow from its mean.
        One prompt encoding serves all samples. Plans are float32 on the CPU. Raises `PolicyError` on unusable input
        and when a plan is not finite.
        """
        batch = check_observation(observation, self.config)
        check_generators(generators, batch, num_samples, temperature)
        noise = draw_noise(generators, num_samples, temperature)
        cache = self.reason(observation)[1] if self.config.reasoning_tokens else self.encode(observation)
        normalised = self._flow(noise.to(self.device), self._prepare(cache), cache.mask.shape[1])
        actions = self.statistics.denormalise(normalised.cpu())
        poses = actions_to_plan(actions, speed_now_mps(observation)[:, None].expand(-1, num_samples))
        check_plans(poses)
        return PlanSamples(poses)

    @torch.no_grad()
    def reason(self, observation: Observation, max_tokens: int | None = None) -> tuple[tuple[str, ...], PromptCache]:
        """Chain-of-causation text of each observation, and the cache that goes on to plans; see `vla.reasoning`.

        `max_tokens`: at most so many tokens of text, `config.reasoning_tokens` by default.
        """
        count = self.config.reasoning_tokens if max_tokens is None else max_tokens
        started = self.encode(observation, ("",) * len(observation.navigation))
        ids, cache = write_reasoning(self.backbone, self.tokenizer, started, count)
        return tuple(str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in ids), cache

    def _prepare(self, cache: PromptCache) -> PreparedPrompt:
        tokens = torch.arange(self.expert.shape.tokens, device=cache.mask.device)
        rotary = self.backbone.rotary_embedding(cache.keys[0], cache.next_position[:, None] + tokens)
        return self.expert.prepare(cache, rotary)

    def _flow(
        self, noise: Float[Tensor, "b k 64 2"], prompt: PreparedPrompt, prompt_length: int
    ) -> Float[Tensor, "b k 64 2"]:
        """Normalised actions from noise, in blocks of samples that fit the memory budget.

        On a CPU also in blocks of rollouts: activations beyond a core's cache cost more than the further calls.
        """
        batch, samples = noise.shape[:2]
        samples = min(samples, self._samples_per_chunk(batch, prompt_length))
        rows = max(1, CPU_BLOCK_TOKENS // (samples * self.expert.shape.tokens)) if noise.device.type == "cpu" else batch
        found = torch.empty_like(noise)
        for first in range(0, batch, rows):
            some = slice(first, first + rows)
            here = prompt.rows(some)
            for start in range(0, noise.shape[1], samples):
                block = (some, slice(start, start + samples))
                found[block] = integrate(
                    lambda x, t, here=here: self.expert(x, t, here), noise[block], self.config.euler_steps
                )
        return found

    def _samples_per_chunk(self, batch: int, prompt_length: int) -> int:
        shape = self.expert.shape
        floats = shape.tokens * (3 * shape.heads * (prompt_length + shape.tokens) + 8 * shape.hidden + 3 * shape.ffn)
        return max(1, int(self.config.sample_memory_mb * 1e6 / (4 * floats * batch)))


def build_policy(config: PolicyConfig, seed: int = 0) -> DrivingPolicy:
    """Build a policy: backbone from `config.backbone`, new history encoder and action expert, all from `seed`.

    The backbone `regressor` gives the plain baseline without a language model. Raises `PolicyError` when the backbone
    cannot be loaded or the expert does not fit it.
    """
    if config.backbone == REGRESSOR:
        return build_regressor(config, seed)
    backbone, tokenizer = load_backbone(config, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionLanguagePolicy(config, backbone, tokenizer, ActionStatistics())


def _expert_shape(config: PolicyConfig, backbone: Backbone) -> ExpertShape:
    text: Any = backbone.text_config
    if config.expert_heads % text.num_key_value_heads:
        raise PolicyError(
            f"expert_heads: found {config.expert_heads}, expected a multiple of the backbone's "
            f"{text.num_key_value_heads} KV heads"
        )
    return ExpertShape(
        layers=text.num_hidden_layers,
        kv_heads=text.num_key_value_heads,
        head_size=text.head_dim,
        hidden=config.expert_hidden,
        ffn=config.expert_ffn,
        heads=config.expert_heads,
        waypoints_per_token=config.waypoints_per_token,
        fourier_actions=config.action_features == "fourier",
        norm_eps=text.rms_norm_eps,
    )


def _tensor(values: np.ndarray | None, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(values)).float().to(device)


def _to(prompt: PromptBatch, device: torch.device) -> PromptBatch:
    return PromptBatch(*(getattr(prompt, field.name).to(device) for field in fields(prompt)))
