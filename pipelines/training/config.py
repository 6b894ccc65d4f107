"""How a policy is trained."""

from dataclasses import dataclass, field
from typing import Literal

from neural_sim.errors import InputError
from pipelines.training.weighting import WeightingConfig

Offload = Literal["none", "optimizer", "all"]
TrainingMode = Literal["all", "freeze_vision", "freeze_backbone", "lora"]


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation of a policy on shards with DeepSpeed."""

    steps: int = 4200
    """Optimiser steps; the paper takes 4200, about one epoch of its windows."""

    batch_size: int = 16
    """Examples per optimiser step over all processes."""

    micro_batch_size: int = 4
    """Examples per forward pass of one process. Gradients accumulate until `batch_size`. Together they fix the result:
    the number of processes changes it only by rounding."""

    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""

    vision_lr_scale: float = 0.1
    """Learning rate of the vision encoder relative to `learning_rate`."""

    language_lr_scale: float = 1.0
    """Learning rate of the language model relative to `learning_rate`."""

    lora_lr_scale: float = 1.0
    """Learning rate of the adapters relative to `learning_rate`."""

    expert_lr_scale: float = 1.0
    """Learning rate of the action expert and its projections relative to `learning_rate`."""

    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from 0."""

    final_lr_scale: float = 0.01
    """Learning rate at the last step relative to the peak, at the end of the cosine."""

    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""

    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""

    mode: TrainingMode = "freeze_vision"
    """What is trained: `all`; `freeze_vision`, the paper's choice; `freeze_backbone`, only the action expert; `lora`,
    adapters on the language model, and the action expert whole."""

    lora_rank: int = 16
    """Rank of the adapters."""

    lora_alpha: float = 32.0
    """Scale of the adapters; they are multiplied by `lora_alpha / lora_rank`."""

    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Linear layers of the language model that get adapters."""

    merge_lora: bool = False
    """Fold the adapters into the weights at the end instead of saving them beside."""

    fit_action_statistics: bool = False
    """Fit the mean and deviation of the policy's actions to the targets before training; for a policy that starts
    from nothing. A trained policy needs the statistics it was trained with."""

    source_weights: tuple[float, ...] = ()
    """Share of each folder of shards in the examples of every step, in the order of `--shards`, any positive numbers
    (co-training on recorded drives, rollouts of several rounds); empty draws every example equally often."""

    weighting: WeightingConfig = field(default_factory=WeightingConfig)
    """Weights of examples in the loss."""

    zero_stage: int = 1
    """DeepSpeed ZeRO: 0 splits nothing over processes, 1 the optimiser state, 2 also gradients, 3 also weights."""

    bf16: bool = False
    """Compute in bfloat16 with float32 master weights; from ZeRO 1 on."""

    gradient_checkpointing: bool = False
    """Recompute the backbone's layers in the backward pass instead of keeping their activations."""

    offload: Offload = "none"
    """What lies in the memory of the host instead of the GPU: `none`; `optimizer`, from ZeRO 1 on; `all`, also the
    weights, with ZeRO 3."""

    num_processes: int = 0
    """Processes on this machine; 0 for one per CUDA device, or one on the CPU. `torchrun` and `deepspeed` set their
    own number."""

    loader_workers: int = 0
    """Processes per training process that decode examples, for large images and many cameras; 0 decodes in threads.
    The examples and their order are the same for any number."""

    loader_threads: int = 2
    """Threads per process that decode examples where `loader_workers` is 0."""

    prefetch: int = 4
    """Micro-batches per process that are decoded ahead."""

    save_every: int = 500
    """Steps between checkpoints; each is a policy folder and the state to resume from."""

    keep: int = 2
    """Checkpoints kept: this many of the newest, and the best."""

    log_every: int = 5
    """Steps between entries of the log."""

    stall_s: float = 120.0
    """Time without progress after which the log names the process that the others wait for, and its phase, s."""

    wandb_project: str = "roadloop"
    """Weights & Biases project to log to where wandb is installed (offline without a key); empty for none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        object.__setattr__(self, "source_weights", tuple(self.source_weights))
        for name in ("steps", "batch_size", "micro_batch_size", "lora_rank", "loader_threads", "prefetch",
                     "save_every", "keep", "log_every"):  # fmt: skip
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in ("learning_rate", "lora_alpha", "stall_s"):
            self._require(name, getattr(self, name) > 0, "a number above 0")
        for name in ("vision_lr_scale", "language_lr_scale", "lora_lr_scale", "expert_lr_scale", "warmup_steps",
                     "weight_decay", "gradient_clip", "num_processes", "loader_workers"):  # fmt: skip
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("final_lr_scale", 0 <= self.final_lr_scale <= 1, "a share of the peak, 0 to 1")
        self._require("zero_stage", self.zero_stage in (0, 1, 2, 3), "0, 1, 2 or 3")
        self._require("bf16", self.zero_stage >= 1 or not self.bf16, "False, or zero_stage 1 or more")
        self._require("mode", self.mode in TrainingMode.__args__, f"one of {', '.join(TrainingMode.__args__)}")
        self._require("source_weights", all(share > 0 for share in self.source_weights), "numbers above 0")
        self._require("offload", self.offload in Offload.__args__, f"one of {', '.join(Offload.__args__)}")
        least = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        self._require("offload", self.zero_stage >= least, f"'none', or zero_stage {least} or more")
        self._require("lora_targets", bool(self.lora_targets), "at least one layer name")
        self._require(
            "batch_size",
            self.batch_size % self.micro_batch_size == 0,
            f"a multiple of micro_batch_size, {self.micro_batch_size}",
        )

    @property
    def peak_learning_rates(self) -> dict[str, float]:
        """Highest learning rate by parameter group: "vision", "language", "lora", "expert"."""
        scales = {
            "vision": self.vision_lr_scale,
            "language": self.language_lr_scale,
            "lora": self.lora_lr_scale,
            "expert": self.expert_lr_scale,
        }
        return {group: self.learning_rate * scale for group, scale in scales.items()}

    def accumulation(self, world_size: int) -> int:
        """Forward passes of each of `world_size` processes per step. Raises `InputError` when they do not divide."""
        per_pass = self.micro_batch_size * world_size
        if self.batch_size % per_pass:
            raise InputError(
                f"batch_size {self.batch_size} does not divide into {world_size} processes of micro_batch_size "
                f"{self.micro_batch_size}; take a multiple of {per_pass}, or other numbers"
            )
        return self.batch_size // per_pass

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"training {name}: found {getattr(self, name)!r}, expected {expected}")
