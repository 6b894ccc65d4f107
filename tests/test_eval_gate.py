"""`--fail-if`: what it reads, what it refuses, when it fails."""

import pytest

from eval.gate import gate_failures, parse_gates
from neural_sim.errors import InputError


def cell(mean, note=""):
    return {"mean": mean, "std": None, "low": None, "high": None} | ({"note": note} if note else {})


SUMMARY = {
    "policies": {
        "base": {"driving_score": cell(0.3), "offroad": cell(0.2)},
        "v1.2": {"driving_score": cell(0.6), "offroad": cell(0.0), "open_loop_ade_6.4s_m": cell(1.5)},
        "expert": {"driving_score": cell(None, "no incident in 3.000 km"), "offroad": cell(0.0)},
        "lost": {"driving_score": cell(None, "no finished rollout")},
    },
    "baselines": ["expert", "lost"],
}


@pytest.mark.parametrize(("condition", "fails"), [
    ("driving_score < 0.5", False), ("driving_score<0.7", True), ("driving_score >= 0.6", True),
    ("driving_score > 6e-1", False), ("base.driving_score < 0.5", True), ("offroad == 0", True),
    ("offroad != 0", False),
    ("base.offroad <= 0.2", True), ("v1.2.driving_score < 0.5", False), ("open_loop_ade_6.4s_m > 1", True),
    ("v1.2.open_loop_ade_6.4s_m > 2", False), ("expert.driving_score < 100", False), ("lost.driving_score < 0", True),
    ("dist_traveled_m < 1", True),
])  # fmt: skip
def test_conditions(condition, fails):
    assert bool(gate_failures(parse_gates([condition]), SUMMARY)) == fails


def test_failures_say_what_was_found():
    gates = parse_gates(["driving_score < 0.7", "lost.driving_score < 0", "offroad > 1", "progress < 1"])
    assert gate_failures(gates, SUMMARY) == [
        "--fail-if 'driving_score < 0.7': driving_score of v1.2 is 0.6",
        "--fail-if 'lost.driving_score < 0': lost has no driving_score (no finished rollout)",
        "--fail-if 'progress < 1': v1.2 has no progress (no such metric in this report)",
    ]


@pytest.mark.parametrize(("condition", "message"), [
    ("driving_score", "expected METRIC OPERATOR NUMBER, for example"),
    ("driving_score < 1 and offroad > 0", "expected METRIC OPERATOR NUMBER"),
    ("__import__('os').system('true') < 1", "unknown metric"),
    ("driving_scor < 1", "unknown metric 'driving_scor'; did you mean 'driving_score'?"),
    ("base.ofroad < 1", "did you mean 'offroad'?"),
    ("driving_score < many", "'many' is not a number"),
    ("driving_score < nan", "'nan' is not a number"),
    ("driving_score = 1", "expected METRIC OPERATOR NUMBER"),
])  # fmt: skip
def test_other_conditions_are_refused(condition, message):
    with pytest.raises(InputError) as refused:
        parse_gates([condition])
    assert message in str(refused.value)


def test_an_unknown_policy_is_refused():
    with pytest.raises(InputError, match=r"no policy 'tuned' in the report; it holds base, v1\.2, expert, lost"):
        gate_failures(parse_gates(["tuned.offroad > 0"]), SUMMARY)
