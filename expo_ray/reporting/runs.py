"""Reads run folders."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from expo_ray.config.errors import DataError


class LineReader:
    """Iterates over a file's objects.

    Args:
        path: the file; an absent one has no lines.
        keys: what every object must have; one without is broken.
    """

    def __init__(self, path: Path, keys: tuple[str, ...] = ()) -> None:
        self.path, self.keys = path, keys
        self.torn = False
        """The file's last line has no end yet: it was being written."""
        self.broken: list[int] = []
        """Numbers, from 1, of complete lines that are no such object."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                value = _object(raw, self.keys)
                if value is not None:
                    yield value
                elif not raw.endswith(b"\n"):
                    self.torn = True
                elif raw.strip():
                    self.broken.append(number)

    def notes(self) -> list[str]:
        """What was left out, one sentence each, once the lines have been read."""
        found = [f"{self.path.name}: its last line is not complete yet and is left out"] if self.torn else []
        if self.broken:
            lines = ", ".join(map(str, self.broken[:5])) + (", ..." if len(self.broken) > 5 else "")
            found.append(f"{self.path.name}: {len(self.broken)} broken lines are left out (line {lines})")
        return found


def _object(raw: bytes, keys: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and all(key in value for key in keys) else None


def finite(value: Any) -> float | None:
    """A number that can be drawn; None for everything else (null, NaN, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


ALGORITHMS = {
    "grpo": "GRPO",
    "exp_grpo": "ExP-GRPO",
    "sft_gt_grpo": "SFT-GT-CoT",
    "exp_dpo": "ExP-DPO",
    "dpo_gt": "DPO-GT",
    "explanation_sft": "ExP-SFT",
}
"""The algorithms' names as readers know them."""


@dataclass(frozen=True)
class RunFolder:
    """One run's records."""

    path: Path
    config: Any
    metrics: list[dict[str, Any]]
    """One dictionary a step, docs/metrics.md."""
    evaluations: list[dict[str, Any]]
    summary: dict[str, Any]
    """Empty while the run goes."""
    notes: list[str] = field(default_factory=list)
    """What could not be read, one sentence each."""

    @property
    def label(self) -> str:
        """The algorithm's name as readers know it."""
        name = str(self.config.algo.name)
        return ALGORITHMS.get(name, name)

    @property
    def steps_done(self) -> int:
        """Updates that the records show."""
        return max((line["step"] + 1 for line in self.metrics), default=0)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, where it was measured."""
        found = {line["step"]: finite(line.get(name)) for line in self.metrics}
        kept = [(step, value) for step, value in sorted(found.items()) if value is not None]
        return [step for step, _ in kept], [value for _, value in kept]


def read_run(path: Path) -> RunFolder:
    """Reads a run folder, finished or not. A torn or broken line is left out and noted.

    Raises:
        DataError: it is no run folder, or its config.yaml cannot be read.
    """
    config = _config(path)
    metrics = LineReader(path / "metrics.jsonl", keys=("step",))
    evaluations = LineReader(path / "evaluations.jsonl", keys=("steps_done", "pass_at_k"))
    read_metrics, read_evaluations = list(metrics), list(evaluations)
    summary, notes = _summary(path / "summary.json")
    return RunFolder(
        path=path,
        config=config,
        metrics=read_metrics,
        evaluations=read_evaluations,
        summary=summary,
        notes=[*metrics.notes(), *evaluations.notes(), *notes],
    )


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run folders among `paths`; a folder that holds runs (a demo, a sweep) stands for those.

    Raises:
        DataError: a path is neither.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        inside = [path] if (path / "config.yaml").exists() else _runs_inside(path)
        if not path.is_dir():
            raise DataError(f"{path}: there is no such folder")
        if not inside:
            raise DataError(f"{path}: no run folder, neither it nor a folder in it has a config.yaml")
        for run in inside:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _runs_inside(path: Path) -> list[Path]:
    # A run has a plan; Hydra's own config.yaml has none beside it, and an evaluation ends in another file.
    found = {file.parent for depth in ("*", "*/*") for file in path.glob(f"{depth}/config.yaml")}
    runs = [run for run in found if (run / "plan.txt").exists() and not (run / "evaluation.json").exists()]
    return sorted(runs, key=lambda run: [(not part.isdigit(), part.zfill(9)) for part in run.parts])


def _config(path: Path) -> DictConfig:
    file = path / "config.yaml"
    if not file.exists():
        raise DataError(f"{path}: no run folder, it has no config.yaml")
    try:
        config = OmegaConf.load(file)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(config, DictConfig) or not OmegaConf.select(config, "algo.name"):
        raise DataError(f"{file}: no configuration of a training run, it has no algo.name")
    return config


def _summary(file: Path) -> tuple[dict[str, Any], list[str]]:
    if not file.exists():
        return {}, []
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}, ["summary.json: not complete, left out"]
    return (value, []) if isinstance(value, dict) else ({}, ["summary.json: no object, left out"])
