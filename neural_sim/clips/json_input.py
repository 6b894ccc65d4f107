"""Reading JSON from untrusted files: every mistake is an `InputError` that names the file and the key."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from neural_sim.errors import InputError

Value = TypeVar("Value")


def parse_json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object; `where` names the file in errors.

    Raises `InputError` when the text is not JSON, is not an object, or contains NaN or infinity.
    """
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}); write the file again") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(value).__name__}; write the file again")
    return value


def field(value: dict[str, Any], key: str, kind: type[Value], where: str) -> Value:
    """`value[key]`, checked to be of `kind` (an int is accepted as a float).

    Raises `InputError` naming `where` and `key` when it is missing or of another type.
    """
    if key not in value:
        raise InputError(f"{where}: key {key!r} is missing; write the file again with this version of roadloop")
    found: Any = value[key]
    if kind is float and isinstance(found, int) and not isinstance(found, bool):
        found = float(found)
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise InputError(f"{where}: key {key!r} should be {kind.__name__}, found {type(found).__name__}; mend the file")
    return found


def check_format_version(value: dict[str, Any], supported: Sequence[int], where: str) -> None:
    """Raise `InputError` unless `value["format_version"]` is one of `supported`."""
    version = field(value, "format_version", int, where)
    if version not in supported:
        expected = " or ".join(str(item) for item in supported)
        raise InputError(
            f"{where}: format_version is {version}, expected {expected}; make the file again with this version of "
            "roadloop, or read it with the version that wrote it"
        )


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
