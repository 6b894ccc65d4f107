"""Where units of work run: processes of this machine, or the workers of a Ray cluster."""

from dataclasses import dataclass
from typing import Literal, get_args

from neural_sim.errors import InputError

EngineKind = Literal["processes", "ray"]


@dataclass(frozen=True)
class ExecutionConfig:
    """Where rollouts are driven; the result depends on none of it."""

    engine: EngineKind = "processes"
    """`processes`: `--workers` processes on this machine. `ray`: workers of a Ray cluster; needs the extra `ray`, and
    policy and scenes under the same paths on every node. Only the machine that runs the command writes."""

    address: str = "auto"
    """Ray cluster: `auto` finds the one that this machine belongs to or RAY_ADDRESS names, `local` starts one here,
    anything else is the HOST:PORT of its head."""

    cpus_per_worker: float = 1.0
    """Processors that Ray reserves for a worker."""

    gpus_per_worker: float = 0.0
    """GPUs, or a share of one, that Ray reserves for a worker; 0.25 lets four share a GPU."""

    retries: int = 3
    """How often a unit is tried again after its worker was lost."""

    patience_s: float = 300.0
    """How long to wait for a node when Ray has no worker left, s."""

    def __post_init__(self) -> None:
        if self.engine not in get_args(EngineKind):
            raise InputError(f"execution.engine is {self.engine!r}, expected processes or ray")
        for name in ("gpus_per_worker", "retries"):
            if getattr(self, name) < 0:
                raise InputError(f"execution.{name} is {getattr(self, name)}, expected zero or more")
        for name in ("cpus_per_worker", "patience_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"execution.{name} is {getattr(self, name)}, expected more than zero")
