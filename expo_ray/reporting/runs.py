"""Reads run folders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from expo_ray.config.errors import DataError


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

    @property
    def label(self) -> str:
        """The algorithm's name as readers know it."""
        names = {
            "grpo": "GRPO",
            "exp_grpo": "ExP-GRPO",
            "sft_gt_grpo": "SFT-GT-CoT",
            "exp_dpo": "ExP-DPO",
            "dpo_gt": "DPO-GT",
            "explanation_sft": "ExP-SFT",
        }
        return names[self.config.algo.name]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, where it was measured."""
        lines = [line for line in self.metrics if name in line]
        return [line["step"] for line in lines], [line[name] for line in lines]


def read_run(path: Path) -> RunFolder:
    """Reads a run folder, finished or not.

    Raises:
        DataError: it is no run folder.
    """
    if not (path / "config.yaml").exists():
        raise DataError(f"{path}: no run folder, it has no config.yaml")
    summary = path / "summary.json"
    return RunFolder(
        path=path,
        config=OmegaConf.load(path / "config.yaml"),
        metrics=_lines(path / "metrics.jsonl"),
        evaluations=_lines(path / "evaluations.jsonl"),
        summary=json.loads(summary.read_text()) if summary.exists() else {},
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
