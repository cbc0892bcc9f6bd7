"""Puts runs together that differ only in their seed, and says in what the others differ."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from expo_ray.config.keys import facts_of
from expo_ray.reporting.runs import RunFolder

ABSENT = "(absent)"
TOLD_FIRST = ("algo", "data", "model", "rollout", "learner", "trainer", "verifier")
"""Parts of the configuration in the order in which a label names their keys; the others come last."""


@dataclass(frozen=True)
class RunGroup:
    """Runs with the same settings and, normally, different seeds."""

    label: str
    runs: list[RunFolder]
    settings: dict[str, str]
    """Dotted key -> value as text, without those that do not set runs apart."""

    @property
    def seeds(self) -> list[Any]:
        return [OmegaConf.select(run.config, "seed") for run in self.runs]

    def curves(self, name: str) -> list[dict[int, float]]:
        """One metric: for each run that measured it, updates done before the step -> value."""
        found = [dict(zip(*run.series(name), strict=True)) for run in self.runs]
        return [curve for curve in found if curve]

    def metric_names(self) -> set[str]:
        return {name for run in self.runs for line in run.metrics for name in line} - {"step"}


def settings_of(run: RunFolder) -> dict[str, str]:
    """A run's whole configuration, flat, less what is not compared. Interpolations stay as they are written."""
    flat: dict[str, str] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else str(name))
        elif facts_of(key).between_runs in ("setting", "measuring"):
            flat[key] = "null" if value is None else str(value)

    walk(OmegaConf.to_container(run.config, resolve=False), "")
    return flat


def group_runs(runs: Sequence[RunFolder]) -> list[RunGroup]:
    """Groups in the order of their first run; each group's runs in the order of their seeds."""
    members: defaultdict[tuple[tuple[str, str], ...], list[RunFolder]] = defaultdict(list)
    for run in runs:
        members[tuple(sorted(settings_of(run).items()))].append(run)
    settings = [dict(key) for key in members]
    ordered = [
        sorted(of, key=lambda run: str(OmegaConf.select(run.config, "seed")).zfill(12)) for of in members.values()
    ]
    labels = _labels([of[0].label for of in ordered], settings)
    return [RunGroup(*parts) for parts in zip(labels, ordered, settings, strict=True)]


def differences(settings: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Keys in which the settings are not all the same -> the value in each of them."""
    keys = sorted({key for one in settings for key in one})
    found = {key: [one.get(key, ABSENT) for one in settings] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def _labels(names: list[str], settings: list[dict[str, str]]) -> list[str]:
    """The algorithm's name, with two of the settings in which groups of the same name differ."""
    labels = []
    for name, own in zip(names, settings, strict=True):
        same = [other for other_name, other in zip(names, settings, strict=True) if other_name == name]
        keys = sorted(differences(same), key=_weight) if len(same) > 1 else []
        told = [f"{key.rsplit('.', 1)[-1]}={own.get(key, ABSENT)}" for key in keys[:2]] + ["..."] * (len(keys) > 2)
        labels.append(f"{name} ({', '.join(told)})" if told else name)
    return [
        f"{label} #{labels[:i].count(label) + 1}" if labels.count(label) > 1 else label
        for i, label in enumerate(labels)
    ]


def _weight(key: str) -> tuple[bool, int, str]:
    part = key.split(".", 1)[0]
    return (
        facts_of(key).between_runs == "measuring",
        TOLD_FIRST.index(part) if part in TOLD_FIRST else len(TOLD_FIRST),
        key,
    )
