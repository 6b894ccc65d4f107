"""Aggregation rules on series written by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.aggregate import aggregate, kept_steps, reduce_rollout
from eval.bootstrap import draw_scenes, interval
from eval.protocol import EvaluationProtocol
from eval.results import RolloutFailure, RolloutScore, Series
from eval.verdict import comparison_line, verdict
from neural_sim.errors import InputError

FLAGS = ("offroad", "collision_front", "collision_rear", "collision_lateral")


def make_score(
    policy="ego", scene="s0", index=0, steps=10, warmup=2, to_log=0.0, per_step_m=1.0, plan=None, **flag_steps
):
    """A rollout of 1 m steps; `flag_steps` names the steps at which a flag is set, `to_log` the distance to the log."""
    t_us = np.arange(steps) * 100_000
    flags = {name: np.isin(np.arange(steps), flag_steps.get(name, ())).astype(float) for name in FLAGS}
    at_fault = np.maximum(flags["collision_front"], flags["collision_lateral"])
    collision = np.maximum(at_fault, flags["collision_rear"])
    everywhere = np.ones(steps, bool)

    def series(values, reducer, valid=everywhere):
        return Series(t_us, np.broadcast_to(np.asarray(values, float), steps), np.asarray(valid), reducer)

    maxima = flags | {
        "collision_any": collision,
        "collision_at_fault": at_fault,
        "offroad_or_collision": np.maximum(collision, flags["offroad"]),
        "offroad_or_collision_at_fault": np.maximum(at_fault, flags["offroad"]),
        "dist_to_gt_trajectory": to_log,
    }
    all_series = {name: series(values, "max") for name, values in maxima.items()}
    driven_m = per_step_m * np.clip(np.arange(steps) - warmup, 0, None)
    all_series["dist_traveled_m"] = series(driven_m, "last")
    values, valid = plan if plan is not None else (np.zeros(steps), everywhere)
    all_series["plan_deviation"] = series(values, "mean", valid)
    return RolloutScore(
        policy,
        scene,
        index,
        0,
        t_us,
        np.arange(steps) < warmup,
        all_series,
        np.zeros((steps, 3)),
        np.zeros((steps, 3)),
        "recorded",
    )


def reduced(**options):
    return reduce_rollout(make_score(**options), EvaluationProtocol())


def test_warmup_is_dropped():
    item = reduced(offroad=[1], warmup=2)
    assert (item.incident, item.ended, item.metrics["offroad"]) == ("", "end", 0.0)
    assert item.evaluated_s == pytest.approx(0.7)


def test_cut_after_first_incident_keeps_its_step():
    item = reduced(collision_front=[5], offroad=[7])
    assert item.metrics["collision_front"] == 1
    assert item.metrics["offroad"] == 0
    assert item.metrics["dist_traveled_m"] == 3.0
    assert (item.incident, item.ended, item.cut_us) == ("collision_front", "incident", 500_000)


def test_rear_hit_cuts_but_is_not_at_fault():
    item = reduced(collision_rear=[4], collision_front=[6])
    assert item.metrics["offroad_or_collision"] == 1
    assert item.metrics["offroad_or_collision_at_fault"] == 0
    assert item.incident == "collision_rear"


def test_no_cut_at_incidents_when_switched_off():
    score = make_score(collision_front=[5], offroad=[7])
    item = reduce_rollout(score, EvaluationProtocol(stop_at_first_incident=False))
    assert (item.metrics["collision_front"], item.metrics["offroad"], item.ended) == (1, 1, "end")


def test_cut_at_four_metres_keeps_that_step():
    to_log = np.array([0, 0, 0, 1, 3.999, 4.0, 5, 1, 1, 1])
    keep, ended = kept_steps(make_score(to_log=to_log), EvaluationProtocol())
    assert np.flatnonzero(keep).tolist() == [2, 3, 4, 5]
    assert ended == "far from log"


def test_incident_after_four_metres_is_ignored():
    to_log = np.where(np.arange(10) >= 5, 6.0, 0.0)
    item = reduced(to_log=to_log, offroad=[6])
    assert (item.metrics["offroad_or_collision_at_fault"], item.incident, item.ended) == (0, "", "far from log")


def test_incident_at_the_four_metre_step_counts():
    to_log = np.where(np.arange(10) >= 5, 6.0, 0.0)
    item = reduced(to_log=to_log, offroad=[5])
    assert (item.metrics["offroad"], item.incident, item.ended) == (1, "offroad", "incident")


def test_incident_after_four_metres_counts_without_the_limit():
    score = make_score(to_log=np.full(10, 6.0), offroad=[6])
    assert reduce_rollout(score, EvaluationProtocol(max_distance_to_log_m=None)).incident == "offroad"


def test_distance_in_warmup_does_not_cut():
    assert reduced(to_log=np.where(np.arange(10) < 2, 9.0, 0.0)).ended == "end"


def test_reduction_skips_invalid_steps():
    values = np.arange(10.0)
    valid = np.arange(10) % 2 == 0
    assert reduced(plan=(values, valid)).metrics["plan_deviation"] == pytest.approx(np.mean([2, 4, 6, 8]))
    assert np.isnan(reduced(plan=(values, np.zeros(10, bool))).metrics["plan_deviation"])


def test_rollout_of_warmup_alone_is_refused():
    with pytest.raises(InputError, match="has no step after warm-up"):
        reduced(warmup=10)


def table(**policies):
    """Scores from {policy: [[steps driven and whether off-road, one per index], one per scene]}."""
    scores = []
    for policy, scenes in policies.items():
        for s, scene in enumerate(scenes):
            for r, (metres, is_offroad) in enumerate(scene):
                steps = metres + 3
                scores.append(
                    make_score(
                        policy, f"s{s}", r, steps=steps, offroad=[steps - 1] if is_offroad else [], per_step_m=1.0
                    )
                )
    return scores


def test_mean_over_scenes_then_mean_and_std_over_indices():
    scores = table(ego=[[(10, True), (10, False)], [(20, True), (40, False)]])
    statistics = aggregate(scores).policies["ego"]
    # Index 0: both scenes off-road, mean 15 m; index 1: none, mean 25 m.
    assert statistics["offroad"].mean == pytest.approx(0.5)
    assert statistics["offroad"].std == pytest.approx(np.std([1, 0], ddof=1))
    assert statistics["dist_traveled_m"].mean == pytest.approx(20.0)
    assert statistics["dist_traveled_m"].std == pytest.approx(np.std([15, 25], ddof=1))


def test_driving_score_is_pooled_km_per_incident():
    statistics = aggregate(table(ego=[[(10, True), (10, False)], [(20, True), (40, False)]])).policies["ego"]
    assert statistics["driving_score"].mean == pytest.approx((10 + 10 + 20 + 40) / 2 / 1000)
    assert statistics["driving_score"].std is None  # index 1 has no incident, so no finite score
    assert statistics["incidents_per_km"].mean == pytest.approx(2 / 0.08)
    assert statistics["incidents_per_km"].std == pytest.approx(np.std([2 / 0.03, 0], ddof=1))


def test_driving_score_equals_the_papers_identity():
    statistics = aggregate(table(ego=[[(100, True), (80, True)], [(120, False), (140, True)]])).policies["ego"]
    identity = statistics["dist_traveled_m"].mean / statistics["offroad"].mean / 1000
    assert statistics["driving_score"].mean == pytest.approx(identity)


def test_score_without_incident_is_none_and_says_so():
    statistics = aggregate(table(ego=[[(500, False)], [(500, False)]])).policies["ego"]
    score = statistics["driving_score"]
    assert (score.mean, score.high, score.note) == (None, None, "no incident in 1.000 km")
    assert statistics["incidents_per_km"].mean == 0.0


def test_any_collision_counts_in_the_any_variant_only():
    scores = [make_score(steps=103, collision_rear=[102])]
    at_fault = aggregate(scores).policies["ego"]
    assert at_fault["driving_score"].mean is None
    assert at_fault["avg_dist_between_incidents"].mean == pytest.approx(0.1)
    assert at_fault["avg_dist_between_incidents_at_fault"].mean is None
    every = aggregate(scores, EvaluationProtocol(at_fault_only=False)).policies["ego"]
    assert every["driving_score"].mean == pytest.approx(0.1)


def test_one_scene_has_no_interval_and_one_index_no_std():
    statistics = aggregate(table(ego=[[(10, True)]])).policies["ego"]["dist_traveled_m"]
    assert (statistics.std, statistics.low, statistics.high) == (None, None, None)


def test_interval_brackets_the_mean_and_repeats():
    generator = np.random.default_rng(3)
    scenes = [[(int(metres), True) for metres in generator.integers(20, 200, 3)] for _ in range(12)]
    first, second = (aggregate(table(ego=scenes)).policies["ego"] for _ in range(2))
    cell = first["dist_traveled_m"]
    assert cell.low < cell.mean < cell.high
    assert first == second
    other = aggregate(table(ego=scenes), EvaluationProtocol(bootstrap_seed=1)).policies["ego"]["dist_traveled_m"]
    assert other.mean == cell.mean
    assert (other.low, other.high) != (cell.low, cell.high)


def test_interval_is_open_where_resamples_have_no_incident():
    statistics = aggregate(table(ego=[[(100, True)], [(100, False)], [(100, False)]])).policies["ego"]["driving_score"]
    assert statistics.mean == pytest.approx(0.3)
    assert statistics.low is not None
    assert statistics.high is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.floats(0.5, 0.99))
def test_interval_ends_are_ordered_samples(values, confidence):
    low, high = interval(np.array(values), EvaluationProtocol(confidence=confidence))
    assert low in values
    assert high in values
    assert low <= high


def test_draws_need_two_scenes():
    assert draw_scenes(1, EvaluationProtocol()).shape == (0, 1)
    assert draw_scenes(5, EvaluationProtocol(bootstrap_resamples=7)).shape == (7, 5)


def test_failures_enter_the_failure_rate_and_nothing_else():
    failures = [RolloutFailure("ego", "s0", 1, "boom"), RolloutFailure("lost", "s0", 0, "boom")]
    summary = aggregate(table(ego=[[(10, True)], [(10, True)]]), failures=failures)
    assert summary.policies["ego"]["failure_rate"].mean == pytest.approx(1 / 3)
    assert summary.policies["ego"]["offroad"].mean == 1.0
    assert summary.policies["lost"]["failure_rate"].mean == 1.0
    assert summary.policies["lost"]["offroad"].mean is None
    assert summary.policies["lost"]["driving_score"].note == "no finished rollout"
    assert summary.failures == tuple(failures)
    assert verdict(summary).endswith("ego failed in 1 of its 4 rollouts. lost failed in 1 of its 4 rollouts.")
    assert summary.rollouts_per_scene == 2


def test_metric_valid_in_some_rollouts_only_averages_over_those():
    gone = (np.zeros(10), np.zeros(10, bool))
    there = (np.full(10, 3.0), np.ones(10, bool))
    scores = [make_score(scene="s0", plan=gone), make_score(scene="s1", plan=there)]
    assert aggregate(scores).policies["ego"]["plan_deviation"].mean == 3.0


def test_nothing_and_duplicates_are_refused():
    with pytest.raises(InputError, match=r"no finished rollout to aggregate \(no scene was driven\)"):
        aggregate([])
    failures = [RolloutFailure("ego", "s0", 0, "boom"), RolloutFailure("ego", "s1", 0, "bang")]
    with pytest.raises(InputError, match="all 2 failed, the first with: boom"):
        aggregate([], failures=failures)
    with pytest.raises(InputError, match="occurs twice; give each policy its own name"):
        aggregate([make_score(), make_score()])


def scenes_with(incidents, metres=100):
    return [[(metres, i < incidents)] for i in range(20)]


def test_verdict_names_the_better_policy():
    summary = aggregate(table(base=scenes_with(18), tuned=scenes_with(2)))
    assert summary.comparisons[0].is_significant
    assert summary.comparisons[0].headline.difference == pytest.approx(-16 / 2.0)
    assert verdict(summary).startswith(
        "tuned drives better than base on 20 scenes with 1 rollout each: tuned drove 1.000"
    )
    assert "significant" in comparison_line(summary.comparisons[0], 0.95)
    swapped = aggregate(table(tuned=scenes_with(2), base=scenes_with(18)))
    assert verdict(swapped).startswith("tuned drives better than base")


def test_verdict_admits_no_significance_one_scene_and_no_incident():
    close = verdict(aggregate(table(base=scenes_with(9), tuned=scenes_with(8))))
    assert close.startswith("No significant difference on 20 scenes")
    one = verdict(aggregate(table(base=[[(10, True)]], tuned=[[(10, False)]])))
    assert "tuned had no incident in 0.010 km" in one
    assert "too few scenes to say" in one
    none = verdict(aggregate(table(base=scenes_with(0), tuned=scenes_with(0))))
    assert none.startswith(
        "No incident for either base or tuned on 20 scenes with 1 rollout each (2.000 km and 2.000 km)"
    )


def test_no_claim_from_five_scenes_however_clear():
    scores = table(base=[[(100, True)]] * 5, tuned=[[(100, False)]] * 5)
    comparison = aggregate(scores).comparisons[0]
    headline = comparison.headline
    assert (comparison.num_scenes, headline.low, headline.high) == (5, -10.0, -10.0)
    assert not comparison.is_significant
    assert "too few scenes to say" in verdict(aggregate(scores))
    assert comparison_line(comparison, 0.95).endswith("[-10.00, -10.00], p = 0.062, no claim below 6 scenes")
    six = aggregate(table(base=[[(100, True)]] * 6, tuned=[[(100, False)]] * 6))
    assert six.comparisons[0].is_significant


def test_verdict_of_a_single_policy():
    assert verdict(aggregate(table(ego=[[(10, True), (30, False)]]))) == (
        "ego drove 0.040 km per incident on 1 scene with 2 rollouts."
    )
