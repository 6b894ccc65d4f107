"""Learning curves: which checkpoint is best, and when a run fits its training scenes too well."""

from types import SimpleNamespace

import pytest

from eval.learning import (
    ALL_SCENES,
    HELD_OUT_SCENES,
    TRAINING_SCENES,
    Learning,
    _best,
    overfitting_notes,
    require_metric,
)
from eval.plots import learning_curve_svg
from eval.results import TrainingProgress
from neural_sim.errors import InputError

NAMES = ("base", "step_00000100", "step_00000200", "tuned")


def learning(curves, metric="incidents_per_km", best_by="driving_score"):
    """The same metric on groups of scenes, at steps 0, 100, 200, 300."""
    groups = {
        group: SimpleNamespace(
            policies={name: {metric: SimpleNamespace(mean=value)} for name, value in zip(NAMES, values, strict=True)}
        )
        for group, values in curves.items()
    }
    progress = TrainingProgress({name: 100 * place for place, name in enumerate(NAMES)}, best_by=best_by)
    return Learning(progress, NAMES, groups, None)


def test_the_best_is_the_first_of_the_best_on_held_out_scenes():
    found = _best(learning({TRAINING_SCENES: [4, 3, 2, 1], HELD_OUT_SCENES: [4, 2, 2, 3]}))
    assert (found.policy, found.metric, found.value) == ("step_00000100", "incidents_per_km", 2)
    found = _best(learning({ALL_SCENES: [None, 0.2, 0.7, 0.5]}, "progress", "progress"))
    assert (found.policy, found.value) == ("step_00000200", 0.7)
    found = _best(learning({ALL_SCENES: [3.0, 2.0, 2.5, 1.5]}, "open_loop_ade_2s_m", "open_loop_ade_2s_m"))
    assert (found.policy, found.value) == ("tuned", 1.5)
    assert _best(learning({ALL_SCENES: [None] * 4})) is None


def test_of_equal_ones_the_nearest_to_the_recording_is_the_best():
    flawless = learning({ALL_SCENES: [0.0, 0.0, 0.0, 0.0]})
    for name, distance_m in zip(NAMES, (3.0, 2.0, 1.0, 2.0), strict=True):
        flawless.groups[ALL_SCENES].policies[name]["dist_to_gt_trajectory"] = SimpleNamespace(mean=distance_m)
    assert _best(flawless).policy == "step_00000200"


def test_overfitting_is_said_with_its_numbers():
    note = overfitting_notes(learning({TRAINING_SCENES: [4, 3, 2, 1], HELD_OUT_SCENES: [4, 2, 3, 5]}))
    assert note == [
        "Overfitting: from step 100 to step 300 incidents per km went from 3.00 to 1.00 on training scenes but from "
        "2.00 to 5.00 on held-out scenes."
    ]


@pytest.mark.parametrize(
    "curves",
    [
        {TRAINING_SCENES: [4, 3, 2, 1], HELD_OUT_SCENES: [4, 3, 2, 1]},
        {TRAINING_SCENES: [4, 3, 4, 5], HELD_OUT_SCENES: [4, 3, 4, 5]},
        {TRAINING_SCENES: [4, 3, 2, 1], HELD_OUT_SCENES: [None, None, None, 5]},
        {ALL_SCENES: [4, 2, 3, 5]},
    ],
)
def test_what_is_no_overfitting_is_not_said(curves):
    assert overfitting_notes(learning(curves)) == []


def test_curves_are_drawn_with_gaps_and_stored():
    curves = learning({TRAINING_SCENES: [1, None, 2, 3], HELD_OUT_SCENES: [1, 2, 1, 0]})
    assert curves.to_json(["incidents_per_km"])["curves"] == {
        TRAINING_SCENES: {"incidents_per_km": [1, None, 2, 3]}, HELD_OUT_SCENES: {"incidents_per_km": [1, 2, 1, 0]},
    }  # fmt: skip
    svg = learning_curve_svg(curves, "incidents_per_km")
    assert "training scenes" in svg
    assert "held-out scenes" in svg


def test_metrics_without_a_better_side_do_not_rank():
    require_metric("driving_score")
    require_metric("open_loop_min_ade_6.4s_m")
    for name in ("collision_rear", "beauty"):
        with pytest.raises(InputError, match=f"best_by: found '{name}', expected a metric with a better side"):
            require_metric(name)
