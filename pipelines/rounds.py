"""Rounds of rollouts and fine-tuning: when rollouts are driven anew, and which generations a round learns from.

RoaD compares rollouts generated once, every so many steps, and always (table 2).
"""

from dataclasses import dataclass
from typing import Literal

from neural_sim.errors import InputError

Regenerate = Literal["each_round", "once", "every_steps"]


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        index: from 1.
        steps: optimiser steps of its fine-tuning.
        generations: rounds whose rollouts it learns from, oldest first; the round itself is among them when rollouts
            are driven in it.
    """

    index: int
    steps: int
    generations: tuple[int, ...]

    @property
    def drives(self) -> bool:
        """Whether rollouts are driven in this round, by the policy before it."""
        return self.generations[-1] == self.index


def plan_rounds(
    rounds: int, steps: int, regenerate: Regenerate, every_steps: int = 0, keep_rounds: int = 1
) -> tuple[Round, ...]:
    """The rounds of a run with `rounds` times `steps` optimiser steps.

    Args:
        rounds: rounds of fine-tuning.
        steps: optimiser steps of each.
        regenerate: when rollouts are driven anew.
        every_steps: for `every_steps`: steps between two generations; where they divide `steps`, a round is split.
        keep_rounds: how many of the newest generations a round learns from; 0 for all.

    Raises:
        InputError: a number below its least, or `every_steps` that neither divides `steps` nor is a multiple of it.
    """
    if rounds < 0 or keep_rounds < 0:
        raise InputError(f"rounds is {rounds} and keep_rounds is {keep_rounds}, expected zero or more")
    between = {"each_round": 1, "once": max(rounds, 1)}.get(regenerate, 0)
    if regenerate == "every_steps":
        if every_steps < 1 or (steps % every_steps and every_steps % steps):
            raise InputError(
                f"regenerate_every_steps is {every_steps}, expected a divisor or a multiple of finetune.steps, {steps}"
            )
        rounds, steps = rounds * max(steps // every_steps, 1), min(steps, every_steps)
        between = every_steps // steps
    return tuple(
        Round(index, steps, tuple(generation for generation in range(1, index + 1, between))[-keep_rounds:])
        for index in range(1, rounds + 1)
    )
