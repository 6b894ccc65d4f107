import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.errors import ControlError
from controllers.plan_delay import PlanDelay
from controllers.reference import WorldPlan, world_plan


def plan(value: float) -> WorldPlan:
    line = np.linspace(0.0, 1.0, 5)[None]
    return world_plan(np.array([0]), 100_000, line + value, 0 * line, 0 * line)


def name(found: WorldPlan) -> float:
    return float(found.x_m[0, 0])


def test_at_10_hz_and_200_ms_the_plan_from_two_calls_ago_is_used():
    queue, used = PlanDelay(200_000), []
    for k in range(6):
        queue = queue.push(k * 100_000, plan(k))
        used.append(name(queue.at(k * 100_000)))
    assert used == [0, 0, 0, 1, 2, 3]


def test_without_delay_the_newest_plan_is_used():
    queue = PlanDelay(0).push(5, plan(1)).push(6, plan(2))
    assert name(queue.at(6)) == name(queue.newest) == 2


def test_pushing_leaves_the_old_queue_as_it_was():
    before = PlanDelay(100).push(0, plan(0))
    before.push(100, plan(1)).push(200, plan(2))
    assert name(before.at(500)) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(0, 500))
def test_same_as_the_queue_of_the_reference(gaps, delay):
    """The reference drops the head while there is a second entry that is old enough."""
    queue, reference, t = PlanDelay(delay), [], 0
    for k, gap in enumerate(gaps):
        t += gap
        queue = queue.push(t, plan(k))
        reference.append((t, k))
        while len(reference) > 1 and t - reference[1][0] >= delay:
            reference.pop(0)
        assert name(queue.at(t)) == reference[0][1]
        assert len(queue.entries) == len(reference)


def test_misuse_is_explained():
    with pytest.raises(ControlError, match="plan delay is -1 us"):
        PlanDelay(-1)
    with pytest.raises(ControlError, match="no plan to execute at 7 us"):
        PlanDelay(0).at(7)
    with pytest.raises(ControlError, match="plan at 5 us does not come after the plan at 5 us"):
        PlanDelay(0).push(5, plan(0)).push(5, plan(1))
