"""Filters on rollouts, by hand."""

from dataclasses import replace

import numpy as np
import pytest
from training_fixtures import make_example

from neural_sim.errors import InputError
from pipelines.outcome import Outcome
from pipelines.quality import (
    Failure,
    QualityConfig,
    copies_of_failures,
    reason_to_drop,
    rollout_weight,
)
from pipelines.shards.writer import ShardWriter, finalize
from pipelines.training.source import ExampleSource
from pipelines.training.weighting import WeightingConfig

WHOLE = Outcome(driven_m=80.0, driven_s=10.0, failure="", failed_us=None, failed_at_m=None, too_far_us=None)
CRASH = replace(WHOLE, driven_s=2.0, failure="collision_front", failed_us=7_000_000, failed_at_m=(16.0, 0.0))
AWAY = replace(WHOLE, driven_s=3.0, failure="far from log", failed_us=8_000_000, failed_at_m=(20.0, 5.0),
               too_far_us=8_000_000)  # fmt: skip


def reason(t_us, outcome, **settings):
    return reason_to_drop(t_us, outcome, QualityConfig(**settings), 4.0)


def test_a_whole_rollout_loses_nothing():
    assert reason(5_000_000, WHOLE, drop_after_incident=True, far_from_log="discard") is None


def test_windows_from_the_first_step_too_far_from_the_log_are_dropped():
    assert reason(7_900_000, AWAY) is None
    assert reason(8_000_000, AWAY) == "more than 4 m from the log"
    assert reason(5_000_000, AWAY, far_from_log="discard") == "rollout that got more than 4 m from the log"


def test_instant_crashes_are_dropped_whole():
    instant = replace(CRASH, driven_s=0.4)
    assert reason(5_000_000, instant) == "collision_front within 0.5 s of the hand-over"
    assert reason(5_000_000, instant, instant_crash_s=0.3) is None
    assert reason(5_000_000, replace(instant, driven_s=0.0), instant_crash_s=0) is None
    assert reason(5_000_000, CRASH) is None
    assert reason(5_000_000, replace(AWAY, driven_s=0.4)) is None


def test_windows_after_an_incident_are_dropped_when_asked():
    assert reason(7_100_000, CRASH) is None
    assert reason(7_100_000, CRASH, drop_after_incident=True) == "after the first incident"
    assert reason(7_000_000, CRASH, drop_after_incident=True) is None


def test_a_long_drive_before_a_failure_counts_more():
    weights = QualityConfig(full_weight_s=4.0)
    assert rollout_weight(CRASH, weights) == 0.5
    assert rollout_weight(replace(CRASH, driven_s=9.0), weights) == 1.0
    assert rollout_weight(replace(WHOLE, driven_s=2.0), weights) == 1.0
    assert rollout_weight(CRASH, QualityConfig()) == 1.0


def test_ten_copies_of_one_crash_become_one():
    crashes = [Failure(index, "collision_front", (16.0 + 0.1 * index, 0.0)) for index in range(10)]
    others = [Failure(10, "offroad", (16.0, 0.0)), Failure(11, "collision_front", (60.0, 0.0)), Failure(12, "", None)]
    config = QualityConfig(copies_of_failure=1)
    assert copies_of_failures([*reversed(crashes), *others], config) == set(range(1, 10))
    assert copies_of_failures(crashes, QualityConfig(copies_of_failure=3)) == set(range(3, 10))
    assert copies_of_failures(crashes, QualityConfig()) == set()


@pytest.mark.parametrize(("field", "value"), [("instant_crash_s", -1.0), ("copies_of_failure", -1),
                                               ("far_from_log", "keep")])  # fmt: skip
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(InputError, match=rf"rollout\.quality\.{field} is "):
        QualityConfig(**{field: value})


def write_generations(folder, summary):
    """Four examples: rounds 1 to 4, the second of weight a half."""
    with ShardWriter(folder, "u") as writer:
        for number in range(4):
            example = make_example(number)
            weight = 0.5 if number == 1 else 1.0
            writer.write(replace(example, meta={**example.meta, "round": number + 1, "weight": weight}))
    finalize(folder, ["u"], summary)
    return folder


def test_training_takes_the_weights_that_the_rollouts_gave(tmp_path):
    shards = write_generations(tmp_path, {"weighted_examples": 1})
    np.testing.assert_allclose(ExampleSource([shards]).weights(np.arange(4)), np.array([1, 0.5, 1, 1]) / 0.875)


def test_old_rounds_are_dropped_or_count_less(tmp_path):
    shards = write_generations(tmp_path, {})
    young = ExampleSource([shards], WeightingConfig(max_age_rounds=1))
    assert young.kept[0].tolist() == [2, 3]
    fading = ExampleSource([shards], WeightingConfig(round_decay=0.5)).weights(np.arange(4))
    np.testing.assert_allclose(fading / fading[-1], [0.125, 0.125, 0.5, 1.0])
    with pytest.raises(InputError, match=r"weighting\.max_age_rounds: found -1"):
        WeightingConfig(max_age_rounds=-1)
