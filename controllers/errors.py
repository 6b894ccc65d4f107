"""The exception of this package."""


class ControlError(ValueError):
    """A bad controller setting or a call out of order.

    The message is one line that says what was found where, what was expected, and what to do.
    """


def require_positive(owner: str, **values: float) -> None:
    """Raise `ControlError` naming the first of `values` that is not a positive finite number."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ControlError(f"{owner}.{name} is {value}, expected a positive number")


def require_step(step_us: int) -> None:
    """Raise `ControlError` when a control step is not positive."""
    if step_us <= 0:
        raise ControlError(f"control step is {step_us} us, expected a positive number")
