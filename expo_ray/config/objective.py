"""The number that a sweeper optimises: one pass@k of a run's final evaluation."""

import re
from typing import Any

from expo_ray.config.errors import ConfigError

FORM = re.compile(r"pass@([1-9][0-9]*)/(all|[1-5]|\?)")


def parse_objective(text: str) -> tuple[int, str]:
    """Parses `eval.objective`, such as pass@4/5 or pass@1/all, into k and level.

    Raises:
        ConfigError: it has another form.
    """
    found = FORM.fullmatch(text)
    if found is None:
        raise ConfigError(f"eval.objective={text} is not of the form pass@K/LEVEL: use pass@4/5, or pass@1/all")
    return int(found.group(1)), found.group(2)


def objective_of(summary: dict[str, Any], text: str) -> float | None:
    """The objective of a run's summary.json; None if the run has no such evaluation."""
    k, level = parse_objective(text)
    evaluation = summary.get("evaluation") or {}
    return evaluation.get("pass_at_k", {}).get(level, {}).get(str(k))
