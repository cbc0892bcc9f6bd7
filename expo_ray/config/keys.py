"""Looks up what the schema says of a key by its dotted name, compares the settings of two runs, reads an objective."""

import re
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any

from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config, Key

OBJECTIVE = re.compile(r"pass@([1-9][0-9]*)/(all|[1-5]|\?)")
"""The form of `eval.objective`: one pass@k of a run's final evaluation."""


REPLACED: dict[str, tuple[str, dict[Any, str]]] = {
    "algo.divide_by_std": ("algo.advantage", {True: "grpo", False: "dr_grpo"})
}
"""Former keys: the key that has taken the place of each, and what its values are called there."""


DROPPED = {
    "logging.tensorboard": "logging.trackers=[tensorboard], or logging.trackers=[] for none",
    "logging.wandb_project": "logging.trackers=[tensorboard,wandb] logging.project=NAME",
}
"""Former keys that decided nothing that a saved run must keep, and what to write instead."""


def with_new_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a saved run, flat or nested, with the present key in place of each former one."""
    found = {key: value for key, value in settings.items() if key not in DROPPED}
    for group in {key.partition(".")[0] for key in DROPPED} & found.keys():
        found[group] = {name: value for name, value in found[group].items() if f"{group}.{name}" not in DROPPED}
    for old, (new, values) in REPLACED.items():
        group, _, name = old.rpartition(".")
        if old in found:
            found[new] = values[found.pop(old)]
        elif isinstance(inner := found.get(group), dict) and name in inner:
            kept = {key: value for key, value in inner.items() if key != name}
            found[group] = kept | {new.rpartition(".")[2]: values[inner[name]]}
    return found


@cache
def defaults() -> dict[str, Any]:
    """Every key of the schema by its dotted name, with its default."""
    return dict(_leaves(Config()))


@cache
def mappings() -> tuple[str, ...]:
    """The keys whose value is a mapping with names of its own, such as `rollout.engine_options`."""
    return tuple(key for key, default in defaults().items() if isinstance(default, dict))


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for each in fields(node):
        value = getattr(node, each.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, value


@cache
def _facts() -> dict[str, Key]:
    """Facts of every key and, for keys that the schema no longer has, of every group."""

    def walk(of: Any, prefix: str, inherited: dict[str, Any]) -> Iterator[tuple[str, Key]]:
        for each in fields(of):
            own = inherited | each.metadata
            yield prefix + each.name, Key(**own)
            group: Any = each.default_factory
            if is_dataclass(group):
                yield from walk(group, f"{prefix}{each.name}.", own)

    return dict(walk(Config, "", {}))


def facts_of(key: str) -> Key:
    """What the schema says of a key; for a key that it does not have, what it says of the group."""
    while key and key not in _facts():
        key = key.rpartition(".")[0]
    return _facts().get(key, Key())


def as_settings(config: Config) -> dict[str, Any]:
    """The configuration as a flat mapping, "trainer.steps" -> value."""
    return flat(asdict(config))


def differences(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The settings that keep a run from resuming, and those it resumes with changed, each as "key: old -> new".

    A key that the schema did not have yet when `before` was saved counts as its default, or as what runs did then;
    another value is reported, since keeping the old one is not always allowed: the algorithm may not use the key.
    """
    before = with_new_keys(before)
    added = {key: facts_of(key).formerly for key in defaults().keys() - before.keys()}
    before = defaults() | {key: value for key, value in added.items() if value is not None} | before
    refused: list[str] = []
    reported: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new, rule = before.get(key), now.get(key), facts_of(key).on_resume
        if old != new and rule in ("refused", "reported"):
            must_agree = rule == "refused" and added.get(key) is None
            (refused if must_agree else reported).append(f"{key}: {old} -> {new}")
    return refused, reported


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one, names joined by dots; a mapping that is a key's value stays whole."""
    if not isinstance(value, dict) or prefix in defaults():
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return found


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def parse_objective(text: str) -> tuple[int, str]:
    """Parses `eval.objective`, such as pass@4/5 or pass@1/all, into k and level.

    Raises:
        ConfigError: it has another form.
    """
    found = OBJECTIVE.fullmatch(text)
    if found is None:
        raise ConfigError(f"eval.objective={text} is not of the form pass@K/LEVEL: use pass@4/5, or pass@1/all")
    return int(found.group(1)), found.group(2)


def objective_of(summary: dict[str, Any], text: str) -> float | None:
    """The objective of a run's summary.json; None if the run has no such evaluation."""
    k, level = parse_objective(text)
    evaluation = summary.get("evaluation") or {}
    return evaluation.get("pass_at_k", {}).get(level, {}).get(str(k))
