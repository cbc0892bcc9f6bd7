"""Errors about bad input, each one sentence: what is wrong, where, and what to write instead."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """The user's input cannot be used. Commands print the sentence on standard error and exit with 2."""


class ConfigError(InputError):
    """A configuration key or value cannot be used."""


class DataError(InputError):
    """A file of problems cannot be used."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the nearest known word, else an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
