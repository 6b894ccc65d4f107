"""What a report explains: baselines out of place, open loop against closed loop; and the presets of the protocol."""

import numpy as np
import pytest
from eval_records import make_record, straight
from synthetic_scene import make_scene, make_track
from test_eval_aggregate import make_score

from eval.aggregate import aggregate
from eval.notes import baseline_notes, open_loop_headline, open_loop_notes
from eval.protocol import EvaluationProtocol
from eval.report_tables import comparison_tables, metric_text, open_loop_table, scene_rows
from eval.results import OpenLoopScore, RolloutFailure, open_loop_name
from eval.scorers import score_rollout
from neural_sim.errors import InputError

BASELINES = ("expert", "constant_velocity")


def drove(policy, metres, **options):
    return [make_score(policy, f"s{s}", steps=metres + 3, **options) for s in range(2)]


def summary_of(*groups, **options):
    return aggregate([score for group in groups for score in group], baselines=BASELINES, **options)


def test_nothing_to_explain_when_baselines_are_in_place():
    summary = summary_of(
        drove("ego", 80, offroad=[82]), drove("expert", 100), drove("constant_velocity", 20, offroad=[22])
    )
    assert baseline_notes(summary) == []
    assert summary.checkpoints == ("ego",)
    assert [table["is_folded"] for table in comparison_tables(summary)] == [True, True]


def test_an_expert_with_incidents_is_explained():
    (note,) = baseline_notes(summary_of(drove("ego", 80), drove("expert", 100, collision_front=[50])))
    assert "not free of incidents when it is replayed (front collision in s0, front collision in s1)" in note


def test_a_policy_worse_than_a_straight_line_is_explained():
    summary = summary_of(drove("ego", 10, offroad=[12]), drove("constant_velocity", 40, offroad=[42]))
    assert baseline_notes(summary) == [
        "ego has more incidents per km than driving straight on at constant speed (100.00 against 25.00): it goes "
        "wrong before a straight line does."
    ]


def test_a_straight_line_without_incident_says_why():
    leaving = np.where(np.arange(43) > 20, 5.0, 0.0)
    (note,) = baseline_notes(summary_of(drove("ego", 10), drove("constant_velocity", 40, to_log=leaving)))
    assert "has no incident here; 2 of its 2 rollouts stop counting 4 m from the log" in note


def open_loop(**ades):
    return [
        OpenLoopScore(policy, f"s{s}", 3, {"ade_2s_m": ade / 4, "ade_6.4s_m": ade, "miss_rate_2s": 0.5})
        for policy, ade in ades.items() for s in range(2)
    ]  # fmt: skip


def test_disagreement_of_open_and_closed_loop_is_named():
    driven = drove("near", 10, offroad=[12]), drove("far", 40, offroad=[42])
    summary = summary_of(*driven, open_loop=open_loop(near=1.0, far=2.0))
    assert open_loop_headline(summary) == "open_loop_ade_6.4s_m"
    (note,) = open_loop_notes(summary)
    assert "near is closer to the recorded drive than far (ADE 1.00 m against 2.00 m) but has more incidents" in note
    assert open_loop_notes(summary_of(*driven, open_loop=open_loop(near=2.0, far=1.0))) == []
    assert open_loop_notes(summary_of(*driven, open_loop=open_loop(near=1.0, far=1.01))) == []
    assert open_loop_notes(summary_of(*driven)) == []
    three = *driven, drove("farthest", 80)
    (note,) = open_loop_notes(summary_of(*three, open_loop=open_loop(near=1.0, far=2.0, farthest=3.0)))
    assert "near is closer to the recorded drive than farthest" in note
    assert note.endswith("; 2 more of 3 pairs of checkpoints do too.")


def test_open_loop_table_has_horizons_as_columns():
    table = open_loop_table(summary_of(drove("ego", 10), open_loop=open_loop(ego=2.0)))
    assert table["horizons"] == ["2 s", "6.4 s"]
    assert [group["label"] for group in table["groups"]] == ["ADE", "Miss rate"]
    assert [cell and cell.mean for cell in table["groups"][0]["rows"][0]["cells"]] == [0.5, 2.0]
    assert open_loop_table(summary_of(drove("ego", 10))) is None


def test_names_of_open_loop_metrics():
    assert open_loop_name("open_loop_min_ade_6.4s_m") == ("min_ade", 6.4, "m")
    assert open_loop_name("open_loop_miss_rate_2s") == ("miss_rate", 2.0, "")
    assert open_loop_name("open_loop_collision") is None
    assert metric_text("open_loop_min_ade_6.4s_m").label == "Open loop: minADE at 6.4 s"


def test_scene_rows_count_incidents_and_failures():
    summary = summary_of(drove("ego", 10, offroad=[12]), failures=[RolloutFailure("ego", "s1", 1, "boom")])
    cells = [row["cells"][0] for row in scene_rows(summary)]
    assert [(cell["incidents"], cell["finished"], cell["failed"]) for cell in cells] == [(1, 1, 0), (1, 1, 1)]


def test_counting_that_stops_far_from_the_log_is_a_metric():
    summary = summary_of(drove("ego", 10, to_log=5.0))
    assert summary.policies["ego"]["ended_far_from_log"].mean == 1.0


def test_alpasim_counts_side_hits_of_a_standing_car_and_contacts_of_the_log():
    overlapping = make_scene(tracks=[make_track("overlapping", (1.4, 1.2, 0.0), speed_mps=8.0)])
    record = make_record(overlapping, straight(20, 8.0))
    contact = {
        preset: score_rollout(record, overlapping, EvaluationProtocol(preset=preset), policy="ego").series
        for preset in ("paper", "alpasim")
    }
    assert contact["paper"]["collision_any"].values.max() == 0
    assert contact["alpasim"]["collision_any"].values.min() == 1
    assert EvaluationProtocol(preset="alpasim").standing_speed_mps == 0


def test_a_preset_survives_a_round_trip_and_refuses_what_it_fixes():
    alpasim = EvaluationProtocol(preset="alpasim")
    assert EvaluationProtocol(preset="alpasim", standing_speed_mps=0.0, count_contacts_in_log=True) == alpasim
    with pytest.raises(InputError, match=r"standing_speed_mps is 0.5, expected 0.0 as preset alpasim has it"):
        EvaluationProtocol(preset="alpasim", standing_speed_mps=0.5)
    with pytest.raises(InputError, match="preset is hugsim, expected one of paper, alpasim"):
        EvaluationProtocol(preset="hugsim")
