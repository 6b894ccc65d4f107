"""Errors of the policy part."""


class PolicyError(ValueError):
    """A user's mistake in a policy's configuration, input or checkpoint: what was found, where, what is expected."""
