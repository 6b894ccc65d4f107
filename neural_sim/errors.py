"""The one exception for input that a user can mend."""


class InputError(Exception):
    """Bad input: a file, a config value or a command that a user can correct.

    The message is one line that says what was found where, what was expected, and what to do.
    The command line prints it without a traceback and exits with code 2.
    """

    def __str__(self) -> str:
        """The message on one line, whatever line breaks a library's own message brought into it."""
        return " ".join(super().__str__().split())
