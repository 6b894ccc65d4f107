"""DeepSpeed, set up so that nothing is compiled and the CPU and CUDA paths are one."""

import contextlib
import json
import logging
import os
import warnings
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.training.config import TrainingConfig
from pipelines.training.schedule import lr_factor
from vla.model import DrivingPolicy
from vla.policy import TrainingBatch
from vla.training_modes import parameter_groups


@dataclass(frozen=True)
class Processes:
    """Where this process stands: `rank` of `world_size`, `local_rank` on its machine."""

    rank: int
    local_rank: int
    world_size: int

    @staticmethod
    def from_environment() -> "Processes":
        """As `torchrun` and `deepspeed` tell it; one process alone without them."""
        return Processes(*(int(os.environ.get(name, default)) for name, default in _RANK_VARIABLES))


_RANK_VARIABLES = (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))


def start_distributed(device: str, processes: Processes) -> Any:
    """Join the process group, gloo on the CPU and NCCL on CUDA, and return the `deepspeed` module."""
    if device == "cpu":
        # DeepSpeed guesses its accelerator from what is installed; nvcc without a GPU misleads it.
        os.environ["DS_ACCELERATOR"] = "cpu"
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # The shared-memory collective for CPUs is compiled at first use; gloo serves one machine as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if device == "cuda":
        torch.cuda.set_device(processes.local_rank)
    deepspeed.init_distributed(
        dist_backend="nccl" if device == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    return deepspeed


def deepspeed_config(config: TrainingConfig, world_size: int, trained_weights: int) -> dict[str, Any]:
    """The DeepSpeed configuration: `configs/deepspeed/zeroN.json` with the numbers of this run.

    Bucket sizes are cut to the number of trained weights, because DeepSpeed allocates them whole.
    """
    text = (resources.files("configs") / "deepspeed" / f"zero{config.zero_stage}.json").read_text()
    settings: dict[str, Any] = json.loads(text)
    zero = settings["zero_optimization"]
    for name in zero:
        if name.endswith("_bucket_size"):
            zero[name] = min(zero[name], max(trained_weights, 1024))
    return {
        **settings,
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation(world_size),
        "gradient_clipping": config.gradient_clip,
        "bf16": {"enabled": config.bf16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


class TrainingEngine:
    """A policy under DeepSpeed with AdamW: forward, backward, step."""

    def __init__(self, deepspeed: Any, policy: DrivingPolicy, config: TrainingConfig, processes: Processes) -> None:
        self.policy, self.config = policy, config
        self.dtypes = {name: weight.dtype for name, weight in policy.named_parameters()}
        self._frozen = self._copy_frozen_weights() if config.bf16 and processes.rank == 0 else {}
        groups = parameter_groups(policy, config.peak_learning_rates)
        self.group_names = [group.pop("name") for group in groups]
        self.peak_lrs = [group["lr"] for group in groups]
        trained = sum(weight.numel() for group in groups for weight in group["params"])
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=False)
        settings = deepspeed_config(config, processes.world_size, trained)
        self.deepspeed, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
        self.deepspeed.train()

    def accumulate(self, batch: TrainingBatch, generator: torch.Generator, is_last: bool) -> dict[str, Tensor]:
        """Forward one micro-batch and, where the loss is finite, add its gradient; returns the detached losses.

        After the last micro-batch of a step call `step`.
        """
        losses = self.deepspeed(batch, generator)
        if torch.isfinite(losses["loss"]):
            self.deepspeed.backward(losses["loss"])
            if not is_last:
                # DeepSpeed counts micro-batches in its `step`, which moves nothing before the last one.
                self.deepspeed.step()
        return {name: value.detach().float().cpu() for name, value in losses.items()}

    def step(self, step: int) -> float:
        """Move the weights after the last micro-batch of `step`; returns the norm of the gradient before clipping.

        The learning rate is a function of the step, so a resumed run needs no state of a scheduler.
        """
        norm = self._gradient_norm_without_zero() if self.config.zero_stage == 0 else None
        for group, peak_lr in zip(self.deepspeed.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak_lr * lr_factor(step, self.config)
        self.deepspeed.step()
        return float(self.deepspeed.get_global_grad_norm() if norm is None else norm)

    def learning_rates(self, step: int) -> dict[str, float]:
        """Learning rate by group at `step`."""
        factor = lr_factor(step, self.config)
        return {name: peak_lr * factor for name, peak_lr in zip(self.group_names, self.peak_lrs, strict=True)}

    def _gradient_norm_without_zero(self) -> float:
        """DeepSpeed reports no norm for plain float32 data parallelism; its gradients are whole on every process."""
        gradients = [weight.grad for weight in self.policy.parameters() if weight.grad is not None]
        return float(nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def exact_weights(self) -> dict[str, Tensor]:
        """Exact weights by name where training ran in bfloat16 and rounded the policy's own, else nothing.

        Trained weights come from the optimiser's float32 masters; frozen ones, on rank 0, are as they were before
        training. All processes must call it.
        """
        if not self.config.bf16:
            return {}
        from deepspeed.utils import safe_get_full_fp32_param

        trained = {name: weight for name, weight in self.policy.named_parameters() if weight.requires_grad}
        found = {name: safe_get_full_fp32_param(weight) for name, weight in trained.items()}
        masters = {name: master.detach().cpu().clone() for name, master in found.items() if master is not None}
        return {**self._frozen, **masters}

    def _copy_frozen_weights(self) -> dict[str, Tensor]:
        frozen = ((name, weight) for name, weight in self.policy.named_parameters() if not weight.requires_grad)
        return {name: weight.detach().cpu().clone() for name, weight in frozen if weight.dtype != torch.bfloat16}

    def gathered_weights(self) -> contextlib.AbstractContextManager[Any]:
        """Inside the block every process holds all weights whole; only ZeRO 3 has to gather them."""
        if self.config.zero_stage < 3:
            return contextlib.nullcontext()
        from deepspeed import zero

        return zero.GatheredParameters(list(self.policy.parameters()), modifier_rank=None)
