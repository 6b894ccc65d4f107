"""Paired comparison: by hand, against a slow reference, and what it refuses to claim."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_eval_aggregate import make_score, table

from eval.aggregate import aggregate
from eval.paired import detectable_difference, scenes_needed
from eval.protocol import EvaluationProtocol
from eval.results import RolloutFailure

PROTOCOL = EvaluationProtocol()


def compared(base, tuned, **options):
    return aggregate(table(base=base, tuned=tuned), **options).comparisons[0]


def offroad(*flags, metres=100):
    return [[(metres, flag)] for flag in flags]


def test_differences_by_hand():
    comparison = compared(
        offroad(True, True, False, False), [[(50, False)], [(100, True)], [(100, False)], [(150, False)]]
    )
    rate = comparison.differences["offroad"]
    assert (rate.baseline, rate.candidate, rate.difference) == (0.5, 0.25, -0.25)
    metres = comparison.differences["dist_traveled_m"]
    assert (metres.baseline, metres.candidate, metres.difference) == (100, 100, 0)
    headline = comparison.headline
    assert headline.difference == pytest.approx(1 / 0.4 - 2 / 0.4)
    assert (comparison.num_scenes, comparison.num_pairs, comparison.num_left_out) == (4, 4, 0)


def test_exact_p_values():
    # All six scenes change the same way: of 64 relabellings only the observed one and its mirror are as large.
    assert compared(offroad(*[True] * 6), offroad(*[False] * 6)).headline.p_value == 2 / 64
    # One scene of four changes: every relabelling gives a difference of that size.
    assert compared(offroad(True, False, False, False), offroad(*[False] * 4)).headline.p_value == 1
    assert compared(offroad(True, False), offroad(True, False)).headline.p_value == 1
    assert compared(offroad(True), offroad(False)).headline.p_value is None


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(5, 60), st.booleans(), st.integers(5, 60), st.booleans()), min_size=2, max_size=6)
)
def test_p_value_equals_a_slow_reference(rows):
    comparison = compared([[(a, b)] for a, b, _, _ in rows], [[(c, d)] for _, _, c, d in rows])
    sizes = []
    for swaps in itertools.product((False, True), repeat=len(rows)):
        sides = [[row[:2], row[2:]][:: -1 if swap else 1] for row, swap in zip(rows, swaps, strict=True)]
        rates = [1000 * sum(s[i][1] for s in sides) / sum(s[i][0] for s in sides) for i in (0, 1)]
        sizes.append(abs(rates[1] - rates[0]))
    assert comparison.headline.p_value == np.mean([size >= sizes[0] - 1e-9 for size in sizes])


def test_many_scenes_use_random_relabellings_that_repeat():
    generator = np.random.default_rng(1)
    base, tuned = (offroad(*(generator.random(40) < chance)) for chance in (0.8, 0.3))
    first, second = (compared(base, tuned) for _ in range(2))
    assert first == second
    assert 0 < first.headline.p_value < 0.01
    assert first.is_significant
    same = compared(base, base)
    assert (same.headline.p_value, same.headline.difference, same.is_significant) == (1, 0, False)


def test_a_rollout_only_one_finished_is_left_out_and_counted():
    scores = table(base=[[(10, True), (10, True)], [(10, False), (10, False)]], tuned=[[(10, False), (10, False)]] * 2)
    scores = [score for score in scores if score.key != ("tuned", "s0", 1)]
    comparison = aggregate(scores, failures=[RolloutFailure("tuned", "s0", 1, "boom")]).comparisons[0]
    assert (comparison.num_scenes, comparison.num_pairs, comparison.num_left_out) == (2, 3, 1)
    assert comparison.differences["offroad"].baseline == 0.5
    assert comparison.headline.baseline == pytest.approx(1000 / 30)


def test_a_metric_that_is_invalid_in_one_policy_leaves_out_the_pair():
    t = np.ones(10, bool)
    near = {"base": (1.0, 3.0), "tuned": (2.0, 5.0)}
    scores = [make_score(policy, f"s{s}", to_log=values[s]) for policy, values in near.items() for s in range(2)]
    series = scores[1].series["dist_to_gt_trajectory"]
    object.__setattr__(series, "valid", ~t)
    difference = aggregate(scores).comparisons[0].differences["dist_to_gt_trajectory"]
    assert (difference.baseline, difference.candidate, difference.low) == (1.0, 2.0, None)


def test_number_of_scenes_by_hand():
    # (1.95996 + 0.84162)^2 (0.5 / 0.1)^2 = 196.2
    assert scenes_needed(0.1, 0.5, PROTOCOL) == 197
    assert scenes_needed(-0.1, 0.5, PROTOCOL) == 197
    assert scenes_needed(10.0, 0.5, PROTOCOL) == 6
    assert scenes_needed(0.0, 0.5, PROTOCOL) is None
    assert detectable_difference(197, 0.5, PROTOCOL) == pytest.approx(0.1, rel=2e-3)
    assert detectable_difference(5, 0.5, PROTOCOL) is None


def test_scenes_needed_of_a_comparison_is_that_of_its_spread():
    generator = np.random.default_rng(2)
    base, tuned = (offroad(*(generator.random(30) < chance)) for chance in (0.6, 0.4))
    difference = compared(base, tuned).differences["offroad"]
    each = np.array([float(b[0][1]) - float(a[0][1]) for a, b in zip(base, tuned, strict=True)])
    assert difference.scenes_needed == scenes_needed(each.mean(), each.std(ddof=1), PROTOCOL)


def test_a_policy_without_any_finished_rollout_gives_no_difference():
    failures = [RolloutFailure("tuned", "s0", 0, "boom")]
    comparison = aggregate(table(base=offroad(True)), failures=failures).comparisons[0]
    assert (comparison.num_pairs, comparison.num_left_out, comparison.headline.difference) == (0, 1, None)
