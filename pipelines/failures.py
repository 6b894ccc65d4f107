"""What went wrong, in one line for a person."""

from neural_sim.errors import InputError
from vla.errors import PolicyError


def failure_reason(error: Exception) -> str:
    """One line that says what went wrong."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, InputError | PolicyError) else f"{type(error).__name__}: {text}"
