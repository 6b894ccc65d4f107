"""What NumPy raises on damaged `.npy` files."""

from tokenize import TokenError

# The header is text that is parsed as Python literals, so damage there is a syntax error.
NPY_ERRORS = (OSError, ValueError, EOFError, TypeError, SyntaxError, TokenError, MemoryError, OverflowError)
