"""Conditions on a report that make a command fail: `driving_score < 0.5`."""

import difflib
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.metric_names import METRIC_TEXTS
from eval.results import OPEN_LOOP_PREFIX, open_loop_name
from neural_sim.errors import InputError

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_CONDITION = re.compile(r"(?P<left>[^\s<>=!]+)\s*(?P<operator><=|>=|==|!=|<|>)\s*(?P<number>\S+)")
_METRICS = (
    *(text.name for text in METRIC_TEXTS), "avg_dist_between_incidents", "avg_dist_between_incidents_at_fault",
)  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """One condition that fails a report: the mean of a metric of a policy, an operator and a number.

    Attributes:
        text: as it was given.
        policy: whose metric; empty for the last checkpoint of the report.
        metric: name as in `summary.json`.
        operator: one of `<`, `<=`, `>`, `>=`, `==`, `!=`.
        number: what the metric is compared with.
    """

    text: str
    policy: str
    metric: str
    operator: str
    number: float

    def failure(self, summary: Mapping[str, Any]) -> str | None:
        """Why a report, as read from its `summary.json`, fails this condition; None when it passes.

        A driving score without incident counts as infinite. A metric without any value fails: silence is no success.
        """
        policy = self.policy or [name for name in summary["policies"] if name not in summary.get("baselines", ())][-1]
        cell = summary["policies"][policy].get(self.metric)
        note = "no such metric in this report" if cell is None else cell.get("note", "no value")
        value = math.inf if note.startswith("no incident") else cell and cell["mean"]
        if value is None:
            return f"--fail-if {self.text!r}: {policy} has no {self.metric} ({note})"
        if _OPERATORS[self.operator](value, self.number):
            return f"--fail-if {self.text!r}: {self.metric} of {policy} is {value:.4g}"
        return None


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """Read conditions of the form `METRIC OPERATOR NUMBER` or `POLICY.METRIC OPERATOR NUMBER`.

    Nothing is evaluated as code. Raises `InputError` on another form or an unknown metric, with the closest known one.
    """
    return [_parse(text) for text in texts]


def gate_failures(gates: Sequence[Gate], summary: Mapping[str, Any]) -> list[str]:
    """Why a report fails, one line a condition; raises `InputError` when a condition names a policy it lacks."""
    for gate in gates:
        if gate.policy and gate.policy not in summary["policies"]:
            raise InputError(
                f"--fail-if {gate.text!r}: no policy {gate.policy!r} in the report; it holds "
                f"{', '.join(summary['policies'])}"
            )
    return [failure for gate in gates if (failure := gate.failure(summary)) is not None]


def _parse(text: str) -> Gate:
    found = _CONDITION.fullmatch(text.strip())
    if found is None:
        raise InputError(
            f"--fail-if {text!r}: expected METRIC OPERATOR NUMBER, for example 'driving_score < 0.5', "
            "or POLICY.METRIC OPERATOR NUMBER"
        )
    policy, metric = _split(found["left"], text)
    return Gate(text, policy, metric, found["operator"], _number(found["number"], text))


def _split(left: str, text: str) -> tuple[str, str]:
    """POLICY.METRIC apart. Both may hold dots, so the metric is recognised by its name."""
    known = [name for name in _METRICS if left == name or left.endswith(f".{name}")]
    start = left.rfind(OPEN_LOOP_PREFIX)
    if start >= 0 and open_loop_name(left[start:]) is not None:
        known.append(left[start:])
    if not known:
        raise InputError(f"--fail-if {text!r}: unknown metric {left!r}; {_hint(left, _METRICS)}")
    metric = max(known, key=len)
    return left.removesuffix(metric).removesuffix("."), metric


def _number(text: str, condition: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise InputError(f"--fail-if {condition!r}: {text!r} is not a number")
    return number


def _hint(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=1)
    return f"did you mean {close[0]!r}?" if close else "summary.json of a report lists them"
