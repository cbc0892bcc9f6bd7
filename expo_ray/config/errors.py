"""Errors about bad input, each one sentence: what is wrong, where, and what to write instead."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


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


def import_own(module: str, where: str) -> ModuleType:
    """Imports a user's module from the working directory or an installed package.

    Args:
        module: its dotted name.
        where: the setting that names it, as the error's sentence begins.

    Raises:
        ConfigError: it cannot be imported, whatever it raised.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a user's module raises while it is imported
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{where}: {module} cannot be imported from the working directory ({reason})") from error
