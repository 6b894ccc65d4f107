"""DeepSpeed, set up so that nothing is compiled and the CPU and CUDA paths are one."""

import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.training.config import TrainingConfig
from pipelines.training.ranks import Ranks
from pipelines.training.schedule import lr_factor
from vla.driving_policy import DrivingPolicy
from vla.policy import TrainingBatch
from vla.training_modes import parameter_groups

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of each weight."""


def start_distributed(device: str, ranks: Ranks) -> Any:
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
    start_process_group(device, ranks)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def start_process_group(device: str, ranks: Ranks, timeout: timedelta = COLLECTIVE_TIMEOUT) -> None:
    """Join the collectives; one that takes longer than `timeout` ends the process."""
    if device == "cuda":
        torch.cuda.set_device(ranks.local_rank)
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=ranks.store,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timeout,
    )


def deepspeed_config(
    config: TrainingConfig, world_size: int, trained_weights: int, pin_memory: bool = False
) -> dict[str, Any]:
    """The DeepSpeed configuration: `configs/deepspeed/zeroN.json` with the numbers of this run.

    Bucket sizes are cut to the number of trained weights, because DeepSpeed allocates them whole. `pin_memory`: of what
    is offloaded, for a GPU.
    """
    text = (resources.files("configs") / "deepspeed" / f"zero{config.zero_stage}.json").read_text()
    settings: dict[str, Any] = json.loads(text)
    zero = settings["zero_optimization"]
    for name in zero:
        if name.endswith("_bucket_size"):
            zero[name] = min(zero[name], max(trained_weights, 1024))
    host = {"device": "cpu", "pin_memory": pin_memory}
    if config.offload != "none":
        zero["offload_optimizer"] = host
    if config.offload == "all":
        zero["offload_param"] = host
    return {
        **settings,
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation(world_size),
        # Without ZeRO the engine clips by the norm that it logs; DeepSpeed would compute it again and not tell it.
        "gradient_clipping": config.gradient_clip if config.zero_stage else 0.0,
        "bf16": {"enabled": config.bf16},
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own Adam for offloading is compiled at first use; PyTorch's needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


class TrainingEngine:
    """A policy under DeepSpeed with AdamW: forward, backward, step."""

    def __init__(self, deepspeed: Any, policy: DrivingPolicy, config: TrainingConfig, ranks: Ranks) -> None:
        self.policy, self.config = policy, config
        if config.gradient_checkpointing:
            policy.set_gradient_checkpointing(True)
        groups = parameter_groups(policy, config.peak_learning_rates)
        self.group_names = [group.pop("name") for group in groups]
        self.peak_lrs = [group["lr"] for group in groups]
        trained = sum(weight.numel() for group in groups for weight in group["params"])
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=False)
        settings = deepspeed_config(config, ranks.world_size, trained, torch.cuda.is_available())
        self.deepspeed, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
        if config.zero_stage == 0 and ranks.world_size == 1:
            # The gradients would be copied into a buffer and back for nobody.
            self.deepspeed.enable_backward_allreduce = False
        self._make_optimizer_state()
        self.deepspeed.train()

    def accumulate(self, batch: TrainingBatch, generator: torch.Generator, is_last: bool) -> dict[str, Tensor]:
        """Forward one micro-batch and, where the loss is finite, add its gradient; returns the detached losses.

        After the last micro-batch of a step call `step`.
        """
        losses = self.deepspeed(batch, generator)
        # The policy takes the mean by weight of this micro-batch alone; over all of them the weights have mean 1.
        losses = {**losses, "loss": losses["loss"] * float(batch.weight.mean())}
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
        norm = self._clip_without_zero() if self.config.zero_stage == 0 else None
        for group, peak_lr in zip(self.deepspeed.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak_lr * lr_factor(step, self.config)
        self.deepspeed.step()
        return float(self.deepspeed.get_global_grad_norm() if norm is None else norm)

    def learning_rates(self, step: int) -> dict[str, float]:
        """Learning rate by group at `step`."""
        factor = lr_factor(step, self.config)
        return {name: peak_lr * factor for name, peak_lr in zip(self.group_names, self.peak_lrs, strict=True)}

    def _clip_without_zero(self) -> float:
        """Clip the gradients, which are whole on every process; returns their norm before."""
        weights = [weight for weight in self.policy.parameters() if weight.grad is not None]
        return float(nn.utils.clip_grad_norm_(weights, self.config.gradient_clip or math.inf))

    def trained_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that are trained, the same order everywhere."""
        return ((name, weight) for name, weight in self.policy.named_parameters() if weight.requires_grad)

    def whole_tensors(self, moment: str | None, keep: bool) -> dict[str, Tensor]:
        """Float32 copies on the CPU by weight name: the exact weights (None) or one of `MOMENTS`, from all processes.

        All processes must call it; those with `keep` false get nothing and save the memory.
        """
        whole = {}
        for name, weight in self.trained_weights():
            tensor = self._whole(weight, moment)
            if keep:
                whole[name] = tensor.detach().to("cpu", torch.float32, copy=True).reshape(whole_shape(weight))
        return whole

    def restore(self, moment: str | None, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `whole_tensors`: every process takes its part."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, weight in self.trained_weights():
            if self.config.zero_stage == 0:
                target = weight if moment is None else self._optimizer.state[weight][moment]
                target.data.copy_(tensors[name])
            elif moment is None:
                safe_set_full_fp32_param(weight, tensors[name].to(weight.device))
            else:
                safe_set_full_optimizer_state(weight, tensors[name].to(weight.device), moment)

    def set_optimizer_step(self, step: int) -> None:
        """Let the optimiser have done `step` steps, which its bias correction counts."""
        for state in self._optimizer.state.values():
            state["step"] = torch.full_like(torch.as_tensor(state["step"], dtype=torch.float32), step)

    def _make_optimizer_state(self) -> None:
        """Make the optimiser's moments before the first step, so that they can be read and restored at any time.

        DeepSpeed links weights to moments after the first step of the first group, when the other groups have none.
        """
        groups = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        # ZeRO 3 hands its parts of the weights to the optimiser only while it steps.
        for weight in getattr(self.deepspeed.optimizer, "fp32_partitioned_groups_flat", groups):
            if not self._optimizer.state[weight]:
                moments = {moment: torch.zeros_like(weight) for moment in MOMENTS}
                self._optimizer.state[weight] = {"step": torch.zeros(()), **moments}
        link = getattr(self.deepspeed.optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            link()
        self.set_optimizer_step(0)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self.deepspeed.basic_optimizer

    def _whole(self, weight: nn.Parameter, moment: str | None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.config.zero_stage == 0:
            return weight if moment is None else self._optimizer.state[weight][moment]
        found = safe_get_full_fp32_param(weight) if moment is None else safe_get_full_optimizer_state(weight, moment)
        assert found is not None, "DeepSpeed holds every trained weight"
        return found


def whole_shape(weight: Tensor) -> tuple[int, ...]:
    """The shape of a trained weight; ZeRO 3 leaves an empty tensor where it took a weight apart."""
    return tuple(getattr(weight, "ds_shape", weight.shape))
