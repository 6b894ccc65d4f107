"""Where a training process stands among the others, and how they agree before and beside the collectives.

They meet in the key-value store of the rendezvous, which needs neither a GPU nor DeepSpeed.
"""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from neural_sim.errors import InputError
from vla.errors import PolicyError

Answer = TypeVar("Answer")

JOIN_TIMEOUT = timedelta(minutes=5)
_POLL = timedelta(seconds=30)


@dataclass(frozen=True)
class Ranks:
    """This process: `rank` of `world_size`, `local_rank` of `local_world_size` on its machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @staticmethod
    def from_environment() -> "Ranks":
        """As `torchrun` and `deepspeed` tell it; one process alone without them."""
        rank, local_rank, world_size = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
        # The deepspeed launcher calls the number of processes on a machine LOCAL_SIZE.
        local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1"
        return Ranks(rank, local_rank, world_size, int(local))

    @property
    def is_launched(self) -> bool:
        """Whether `torchrun` or `deepspeed` started this process."""
        return "RANK" in os.environ

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """Rank, host and process id, for people."""
        return f"rank {self.rank} ({socket.gethostname()}, pid {os.getpid()})"

    @cached_property
    def store(self) -> Any:
        """The key-value store that all processes share. Raises `InputError` when the first one cannot be reached."""
        try:
            store, _, _ = next(rendezvous("env://", self.rank, self.world_size, timeout=JOIN_TIMEOUT))
        except (dist.DistError, RuntimeError, ValueError, OSError) as error:
            place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
            raise InputError(
                f"{self.name}: cannot reach the first process at {place} within {JOIN_TIMEOUT.total_seconds():.0f} s "
                f"({_first_line(error)}); check the address, the firewall and that the first host runs"
            ) from error
        return store

    def first(self, name: str, work: Callable[[], Answer]) -> Answer:
        """Run `work` on the first process alone; every process returns its answer, a plain JSON value.

        `name` is used once in the life of the processes. A `InputError` there is raised everywhere.
        """
        return self._publish(name, work, leads=self.is_first, readers=[0])[0]

    def together(self, name: str, work: Callable[[], Answer]) -> list[Answer]:
        """Run `work` on every process and return all answers by rank, plain JSON values.

        `name` is used once in the life of the processes. A `InputError` anywhere is raised everywhere.
        """
        return self._publish(name, work, leads=True, readers=range(self.world_size))

    def _publish(self, name: str, work: Callable[[], Answer], leads: bool, readers: range | list[int]) -> list[Answer]:
        if self.world_size == 1:
            return [work()]
        if leads:
            self.store.set(f"{name}/{self.rank}", json.dumps(_outcome(work, self)))
        found = [json.loads(_wait(self.store, f"{name}/{rank}")) for rank in readers]
        for value in found:
            if "error" in value:
                raise InputError(value["error"])
        return [value["answer"] for value in found]


_VARIABLES = (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))


def _outcome(work: Callable[[], Answer], ranks: Ranks) -> dict[str, object]:
    try:
        return {"answer": work()}
    except (InputError, PolicyError) as error:
        where = f"{socket.gethostname()}: " if ranks.world_size > ranks.local_world_size else ""
        return {"error": f"{where}{error}"}


def _wait(store: Any, key: str) -> bytes:
    """Wait as long as it takes: the first process may be cutting clips. Its death ends the store or the launcher."""
    while True:
        try:
            store.wait([key], _POLL)
            return store.get(key)
        except dist.DistStoreError as error:
            if "timeout" not in str(error).lower():
                raise


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
