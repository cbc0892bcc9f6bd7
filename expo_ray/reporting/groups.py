"""Groups runs that differ only in their seed, and finds the settings in which groups differ."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from expo_ray.config.keys import facts_of
from expo_ray.reporting.runs import RunFolder

ABSENT = "(absent)"
NAMED_FIRST = ("algo", "data", "model", "rollout", "learner", "trainer", "verifier")
"""Sections of the configuration in the order in which a label names their keys; the others come last."""


@dataclass(frozen=True)
class RunGroup:
    """Runs with the same settings and usually different seeds."""

    label: str
    runs: list[RunFolder]
    settings: dict[str, str]
    """Dotted key -> value as text, without keys that do not distinguish runs."""

    @property
    def seeds(self) -> list[Any]:
        return [OmegaConf.select(run.config, "seed") for run in self.runs]

    def curves(self, name: str) -> list[dict[int, float]]:
        """Returns a curve of one metric per run that measured it: updates done before the step -> value."""
        found = [run.curve(name) for run in self.runs]
        return [curve for curve in found if curve]

    def metric_names(self) -> set[str]:
        return {name for run in self.runs for line in run.metrics for name in line} - {"step"}


def settings_of(run: RunFolder) -> dict[str, str]:
    """Flattens a run's configuration, without what is not compared. Interpolations stay unresolved."""
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
    """Returns the groups in the order of their first run, each group's runs in the order of their seeds."""
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
    """Returns the keys whose values are not all the same -> their values."""
    keys = sorted({key for one in settings for key in one})
    found = {key: [one.get(key, ABSENT) for one in settings] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def _labels(names: list[str], settings: list[dict[str, str]]) -> list[str]:
    """Names groups after their algorithm, with up to two settings in which groups of that name differ."""
    labels = []
    for name, own in zip(names, settings, strict=True):
        same = [other for other_name, other in zip(names, settings, strict=True) if other_name == name]
        keys = sorted(differences(same), key=_weight) if len(same) > 1 else []
        shown = [f"{key.rsplit('.', 1)[-1]}={own.get(key, ABSENT)}" for key in keys[:2]] + ["..."] * (len(keys) > 2)
        labels.append(f"{name} ({', '.join(shown)})" if shown else name)
    return [
        f"{label} #{labels[:i].count(label) + 1}" if labels.count(label) > 1 else label
        for i, label in enumerate(labels)
    ]


def _weight(key: str) -> tuple[bool, int, str]:
    part = key.split(".", 1)[0]
    return (
        facts_of(key).between_runs == "measuring",
        NAMED_FIRST.index(part) if part in NAMED_FIRST else len(NAMED_FIRST),
        key,
    )
