"""Bounds on what is read and computed, and the exception for what passes them."""

MAX_ANSWER = 2000
"""Characters of an answer that is parsed; a longer one can only be right by being the gold answer's text."""
MAX_DEPTH = 40
"""Nested brackets of an answer that is parsed."""
MAX_EXPONENT = 20_000
"""Largest exponent, factorial argument and the like that is evaluated."""


class NotDecided(Exception):
    """The comparison would cost more than it may: the outcome is `error`, not `wrong`."""
