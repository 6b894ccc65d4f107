"""The one exception for input that a user can mend."""


class InputError(Exception):
    """Bad input: a file, a config value or a command that a user can correct.

    The message is one line that says what was found where, what was expected, and what to do.
    The command line prints it without a traceback and exits with code 2.
    """
