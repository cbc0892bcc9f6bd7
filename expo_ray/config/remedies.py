"""Which overrides make a plan fit? Each remedy is tried on the plan before it is named."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from expo_ray.config.model_shape import KNOWN
from expo_ray.config.plan import Plan, make_plan, without_learners

Values = Mapping[str, Any]
"""Dotted keys with the values that they get."""
MOST = 3
"""Remedies named in one sentence, and knobs turned together."""
SMALLEST = min(KNOWN, key=lambda name: KNOWN[name].parameters)


def changed(plan: Plan, values: Values) -> Plan:
    """The plan of the same run with other values, on the same resources."""
    config = copy.deepcopy(plan.config)
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node: Any = config
        for name in parents:
            node = getattr(node, name)
        setattr(node, leaf, value)
    other = make_plan(config, plan.resources)
    return other if plan.trains else without_learners(other)


def remedies(plan: Plan, knobs: Sequence[Iterable[Values]], fits: Callable[[Plan], bool]) -> list[str]:
    """Overrides that make the plan fit: of each knob the first value that does, else of two or three knobs together.

    Args:
        plan: the plan that does not fit.
        knobs: for each knob its values, the mildest first.
        fits: whether a changed plan does.
    """
    values = [list(knob) for knob in knobs]
    found = [first for knob in values if (first := _first(plan, knob, fits)) is not None]
    if found:
        return [_text(each) for each in found[:MOST]]
    strongest = [knob[-1] for knob in values if knob]
    for size in range(2, MOST + 1):
        for chosen in combinations(strongest, size):
            together = _merged(chosen)
            if together is not None and fits(changed(plan, together)):
                return [_text(together)]
    return []


def largest_model(plan: Plan, fits: Callable[[Plan], bool]) -> str | None:
    """The largest known model that fits in the same layout, where it is smaller than the plan's own."""
    shape = plan.shape
    for name, known in sorted(KNOWN.items(), key=lambda item: -item[1].parameters):
        smaller = shape is None or known.parameters < shape.parameters
        if smaller and fits(changed(plan, {"model.path": name})):
            return name
    return None


def _first(plan: Plan, knob: Sequence[Values], fits: Callable[[Plan], bool]) -> Values | None:
    return next((values for values in knob if fits(changed(plan, values))), None)


def _merged(chosen: Iterable[Values]) -> Values | None:
    """All values in one; None where two set the same key."""
    together: dict[str, Any] = {}
    for values in chosen:
        if together.keys() & values.keys():
            return None
        together |= values
    return together


def _text(values: Values) -> str:
    return " ".join(f"{key}={_written(value)}" for key, value in values.items())


def _written(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def lower(key: str, value: int, least: int = 1) -> Iterator[Values]:
    """The values below an integer key's, the nearest first."""
    for smaller in range(value - 1, least - 1, -1):
        yield {key: smaller}
