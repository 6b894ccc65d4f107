"""The delay between a plan and its execution: a queue of plans, read late."""

from dataclasses import dataclass, field, replace

from controllers.errors import ControlError
from controllers.reference import WorldPlan


@dataclass(frozen=True)
class PlanDelay:
    """First-in first-out queue of plans with a fixed delay. Immutable: `push` returns the queue after the call.

    A plan is used from `delay_us` after it was made, until the next one is that old. As plans are anchored in the
    world and read by absolute time, a delayed plan is stale but consistent in time. The oldest plan is used at once.

    Attributes:
        delay_us: age a plan must reach before it replaces an older one, us, >= 0.
        entries: (time, plan) in order of time.
    """

    delay_us: int
    entries: tuple[tuple[int, WorldPlan], ...] = field(default=())

    def __post_init__(self) -> None:
        if self.delay_us < 0:
            raise ControlError(f"plan delay is {self.delay_us} us, expected zero or more")

    def push(self, t_us: int, plan: WorldPlan) -> "PlanDelay":
        """The queue with `plan`, made at `t_us`, at its end, without the plans that are no longer used at `t_us`.

        Raises `ControlError` when `t_us` is not later than the newest entry.
        """
        if self.entries and t_us <= self.entries[-1][0]:
            raise ControlError(f"plan at {t_us} us does not come after the plan at {self.entries[-1][0]} us")
        queue = replace(self, entries=(*self.entries, (t_us, plan)))
        return replace(queue, entries=queue.entries[queue._head(t_us) :])

    def at(self, t_us: int) -> WorldPlan:
        """The plan to execute at `t_us`. Raises `ControlError` when no plan was ever pushed."""
        if not self.entries:
            raise ControlError(f"no plan to execute at {t_us} us; push one first")
        return self.entries[self._head(t_us)][1]

    @property
    def newest(self) -> WorldPlan:
        """The plan pushed last."""
        return self.entries[-1][1]

    def _head(self, t_us: int) -> int:
        old_enough = [i for i, (made_us, _) in enumerate(self.entries) if t_us - made_us >= self.delay_us]
        return old_enough[-1] if old_enough else 0
