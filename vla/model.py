"""The driving policy: a vision-language backbone, an action expert and a unicycle action space."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vla.action_expert import ActionExpert, ExpertShape
from vla.action_space import ActionStatistics, actions_to_plan, plan_to_actions, projection_error_m
from vla.backbone import Backbone, PromptCache, load_backbone
from vla.config import PolicyConfig
from vla.errors import PolicyError
from vla.flow_matching import draw_noise, draw_times, integrate, interpolate
from vla.history import HistoryEncoder
from vla.images import preprocess_images
from vla.open_loop import open_loop_errors
from vla.policy import Observation, PlanSamples, TrainingBatch
from vla.policy_input import check_generators, check_observation, check_training_batch
from vla.prompt import PromptBatch, PromptBuilder

# Plans inverted at a time when statistics are fitted: 64 x 64 systems of 1024 plans take about 100 MB.
FIT_CHUNK = 1024


class DrivingPolicy(nn.Module):
    """A vision-language-action policy behind the `Policy` protocol.

    Plans of one rollout do not depend on the other rollouts of a batch beyond float rounding (padding is masked and
    takes no rotary positions), and their noise comes from that rollout's generator alone.
    """

    def __init__(
        self, config: PolicyConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, statistics: ActionStatistics
    ) -> None:
        super().__init__()
        self.config = config
        self.statistics = statistics
        self.tokenizer = tokenizer
        self.lora_config: LoraConfig | None = None
        self.backbone = backbone
        dtype = getattr(torch, config.dtype)
        embedding_std = float(backbone.text_config.initializer_range)
        self.history_encoder = HistoryEncoder(backbone.hidden_size, config.history_tokens, embedding_std).to(dtype)
        self.expert = ActionExpert(_expert_shape(config, backbone)).to(dtype)
        tokens_per_image = backbone.image_settings.tokens_per_image(config.image_width_px, config.image_height_px)
        self._prompts = PromptBuilder(config, tokenizer, tokens_per_image)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.expert.action_out_proj.weight.device

    def encode(self, observation: Observation) -> PromptCache:
        """Encode checked observations into keys and values; the same path for training and sampling.

        Carries gradients to whatever of the backbone and history encoder is trained; with nothing trained there, no
        graph is built. Raises `PolicyError` when cameras, sizes, times or history differ from the configuration.
        """
        check_observation(observation, self.config)
        rows = self._prompts.rows(observation)
        length, longest = max(map(len, rows)), self.backbone.text_config.max_position_embeddings
        if length > longest:
            raise PolicyError(f"prompt: {length} tokens are longer than the backbone's context of {longest}")
        prompt = _to(self._prompts.batch(rows), self.device)
        images = np.stack([np.asarray(observation.images[camera]) for camera in self.config.cameras], axis=1)
        patches, grid = preprocess_images(torch.from_numpy(images).to(self.device), self.backbone.image_settings)
        trained = self.prompt_is_trained and torch.is_grad_enabled()
        with torch.set_grad_enabled(trained):
            history = self.history_encoder(_tensor(observation.ego_history, self.device))
            return self.backbone.encode(prompt, rows, patches, grid, history)

    @property
    def prompt_is_trained(self) -> bool:
        """Whether any weight that the prompt's encoding depends on is trained."""
        modules = (self.backbone, self.history_encoder)
        return any(parameter.requires_grad for module in modules for parameter in module.parameters())

    def forward(self, batch: TrainingBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Same as `loss`, so that wrappers that call the module train it."""
        return self.loss(batch, generator)

    def loss(self, batch: TrainingBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Flow-matching loss of a batch, and figures to log.

        Returns scalars: `loss` (weighted mean squared velocity error, to minimise), `projection_error_m` (mean
        distance of the targets from the unicycle manifold). `generator`: CPU, the only randomness.
        Raises `PolicyError` on unusable input.
        """
        size = check_training_batch(batch, self.config)
        target, v0_mps = torch.from_numpy(np.asarray(batch.target)).float(), _speed_now(batch)
        actions = plan_to_actions(target, v0_mps)
        error_m = projection_error_m(target, actions, v0_mps)
        draws = self.config.training_draws
        clean = self.statistics.normalise(actions)[:, None].expand(-1, draws, -1, -1)
        noise = torch.randn(clean.shape, generator=generator)
        time = draw_times((size, draws), generator)
        noisy, velocity = (part.to(self.device) for part in interpolate(clean, noise, time))
        predicted = self._velocity(noisy, time.to(self.device), self.encode(batch))
        per_example = (predicted - velocity).square().mean(dim=(1, 2, 3))
        weight = _tensor(batch.weight, self.device)
        return {
            "loss": (per_example * weight).sum() / weight.sum(),
            "projection_error_m": error_m.mean(),
        }

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
        cache = self.encode(observation)
        chunk = self._samples_per_chunk(batch, cache.mask.shape[1])
        parts = [self._follow_flow(part.to(self.device), cache) for part in noise.split(chunk, dim=1)]
        actions = self.statistics.denormalise(torch.cat(parts, dim=1).cpu())
        poses = actions_to_plan(actions, _speed_now(observation)[:, None].expand(-1, num_samples))
        _check_plans(poses)
        return PlanSamples(poses)

    def fit_action_statistics(self, targets: Float[Tensor, "n 64 3"], v0_mps: Float[Tensor, "n"]) -> ActionStatistics:
        """Set and return the normalisation from training plans (x, y, yaw) and the speeds they start with."""
        parts = zip(targets.double().split(FIT_CHUNK), v0_mps.double().split(FIT_CHUNK), strict=True)
        self.statistics = ActionStatistics.fit(torch.cat([plan_to_actions(plan, v0) for plan, v0 in parts]))
        return self.statistics

    def open_loop_metrics(
        self,
        batch: TrainingBatch,
        generators: Sequence[torch.Generator],
        num_samples: int = 6,
        temperature: float = 1.0,
    ) -> dict[str, float]:
        """Distances of sampled plans from the targets of a batch, m; see `open_loop_errors`."""
        samples = self.sample(batch, num_samples, temperature, generators)
        return open_loop_errors(samples.poses, torch.from_numpy(np.asarray(batch.target)).float())

    def _follow_flow(self, noise: Tensor, cache: PromptCache) -> Tensor:
        rotary = self._rotary(cache)
        return integrate(lambda x, t: self.expert(x, t, cache, rotary), noise, self.config.euler_steps)

    def _velocity(self, noisy: Tensor, time: Tensor, cache: PromptCache) -> Tensor:
        return self.expert(noisy, time, cache, self._rotary(cache))

    def _rotary(self, cache: PromptCache) -> tuple[Tensor, Tensor]:
        tokens = torch.arange(self.expert.shape.tokens, device=cache.mask.device)
        return self.backbone.rotary_embedding(cache.keys[0], cache.next_position[:, None] + tokens)

    def _samples_per_chunk(self, batch: int, prompt_length: int) -> int:
        shape = self.expert.shape
        floats = shape.tokens * (3 * shape.heads * (prompt_length + shape.tokens) + 8 * shape.hidden + 3 * shape.ffn)
        return max(1, int(self.config.sample_memory_mb * 1e6 / (4 * floats * batch)))


def build_policy(config: PolicyConfig, seed: int = 0) -> DrivingPolicy:
    """Build a policy: backbone from `config.backbone`, new history encoder and action expert, all from `seed`.

    Raises `PolicyError` when the backbone cannot be loaded or the expert does not fit it.
    """
    backbone, tokenizer = load_backbone(config, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DrivingPolicy(config, backbone, tokenizer, ActionStatistics())


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


def _speed_now(observation: Observation) -> Float[Tensor, "b"]:
    return torch.from_numpy(np.asarray(observation.ego_history)[:, -1, 3]).float()


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(values)).float().to(device)


def _to(prompt: PromptBatch, device: torch.device) -> PromptBatch:
    return PromptBatch(*(part.to(device) for part in (prompt.ids, prompt.mask, prompt.is_image, prompt.is_history)))


def _check_plans(poses: Tensor) -> None:
    finite = torch.isfinite(poses).all(dim=-1).all(dim=-1)
    if not bool(finite.all()):
        rollout, sample = (~finite).nonzero()[0].tolist()
        raise PolicyError(
            f"plan: sample {sample} of rollout {rollout} is not finite; the weights are damaged or training diverged"
        )
