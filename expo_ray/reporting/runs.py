"""Run folders: finding and reading them, also while the run is in progress."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from expo_ray.config.algorithms import algorithm_label
from expo_ray.config.errors import DataError
from expo_ray.files import JsonLines, read_summary


def finite(value: Any) -> float | None:
    """Returns a number that can be drawn; None for anything else (null, NaN, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


@dataclass(frozen=True)
class RunFolder:
    """One run's records."""

    path: Path
    config: Any
    metrics: list[dict[str, Any]]
    """One dictionary per step, docs/metrics.md."""
    evaluations: list[dict[str, Any]]
    summary: dict[str, Any]
    """Empty until the run ends."""
    notes: list[str] = field(default_factory=list)
    """What could not be read, one sentence each."""

    @property
    def label(self) -> str:
        """Returns the algorithm's name as readers know it."""
        return algorithm_label(str(self.config.algo.name))

    @property
    def steps_done(self) -> int:
        """Returns the number of recorded updates."""
        return max((line["step"] + 1 for line in self.metrics), default=0)

    def curve(self, name: str) -> dict[int, float]:
        """Returns one metric where it was measured: step -> value, in the order of steps."""
        found = {line["step"]: finite(line.get(name)) for line in self.metrics}
        return {step: value for step, value in sorted(found.items()) if value is not None}


def read_run(path: Path) -> RunFolder:
    """Reads a run folder, finished or not. A torn or broken line is left out and noted.

    Raises:
        DataError: this is not a run folder, or its config.yaml cannot be read.
    """
    config = _config(path)
    metrics = JsonLines(path / "metrics.jsonl", keys=("step",))
    evaluations = JsonLines(path / "evaluations.jsonl", keys=("steps_done", "pass_at_k"))
    read_metrics, read_evaluations = list(metrics), list(map(_with_sets, evaluations))
    notes: list[str] = []
    try:
        summary = read_summary(path)
    except ValueError as error:
        summary, notes = {}, [f"{error}, left out"]
    for key in ("evaluation", "evaluation_before"):
        summary |= {key: _with_sets(summary[key])} if summary.get(key) else {}
    return RunFolder(
        path=path,
        config=config,
        metrics=read_metrics,
        evaluations=read_evaluations,
        summary=summary,
        notes=[*metrics.notes(), *evaluations.notes(), *notes],
    )


def _with_sets(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The evaluation with one more "level" for each of its sets (`data.eval_sources`): all problems of that set."""
    sets = {name: of["pass_at_k"]["all"] for name, of in evaluation.get("sets", {}).items()}
    return evaluation | {"pass_at_k": evaluation["pass_at_k"] | sets}


def level_title(level: str) -> str:
    """How tables name a level ("1" to "5" or "?"), "all", or an evaluation set."""
    return f"level {level}" if level == "?" or level.isdigit() else level


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Returns the run folders among `paths`; a folder that contains runs (a demo, a sweep) stands for those.

    Raises:
        DataError: a path is neither.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        inside = [path] if (path / "config.yaml").exists() else _runs_inside(path)
        if not path.is_dir():
            raise DataError(f"{path}: there is no such folder")
        if not inside:
            raise DataError(f"{path}: not a run folder, neither it nor a folder in it has a config.yaml")
        for run in inside:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _runs_inside(path: Path) -> list[Path]:
    # Hydra writes a config.yaml too, but only runs have a plan; evaluations have one and write evaluation.json.
    found = {file.parent for depth in ("*", "*/*") for file in path.glob(f"{depth}/config.yaml")}
    runs = [run for run in found if (run / "plan.txt").exists() and not (run / "evaluation.json").exists()]
    return sorted(runs, key=lambda run: [(not part.isdigit(), part.zfill(9)) for part in run.parts])


def _config(path: Path) -> DictConfig:
    file = path / "config.yaml"
    if not file.exists():
        raise DataError(f"{path}: not a run folder, it has no config.yaml")
    try:
        # OmegaConf's own reader takes 60 ms a run; the files are its own, so every float and text is marked as one.
        config = OmegaConf.create(yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(config, DictConfig) or not OmegaConf.select(config, "algo.name"):
        raise DataError(f"{file}: not the configuration of a training run, it has no algo.name")
    return config
