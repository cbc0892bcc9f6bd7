"""The table by level that a comparison ends with."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from expo_ray.reporting.runs import RunFolder


def table_by_level(runs: Sequence[RunFolder], k: int) -> Table:
    """pass@k on held-out problems by level: the base model, then each run's final policy, in percent."""
    table = Table(title=f"pass@{k} on held-out problems, percent")
    table.add_column("policy")
    evaluations = [run.summary["evaluation"] for run in runs if run.summary.get("evaluation")]
    levels = [level for level in evaluations[0]["pass_at_k"] if level != "all"] if evaluations else []
    for level in [*levels, "all"]:
        table.add_column(f"level {level}" if level != "all" else "all", justify="right")
    base = next((run.summary["evaluation_before"] for run in runs if run.summary.get("evaluation_before")), None)
    rows = [("base model", base)] if base else []
    rows += [(f"{run.label}, {run.summary['steps_done']} updates", run.summary.get("evaluation")) for run in runs]
    for name, evaluation in rows:
        if evaluation:
            cells = [f"{100 * evaluation['pass_at_k'][level][str(k)]:.1f}" for level in [*levels, "all"]]
            table.add_row(name, *cells)
    return table


def evaluation_table(title: str, evaluation: dict[str, Any]) -> Table:
    """pass@k by level and k of one evaluation (expo_ray.evaluation.Evaluation.summary), in percent."""
    table = Table(title=f"{title}, percent")
    table.add_column("level")
    table.add_column("problems", justify="right")
    for k in range(1, evaluation["samples"] + 1):
        table.add_column(f"pass@{k}", justify="right")
    for level, values in evaluation["pass_at_k"].items():
        table.add_row(level, str(evaluation["problems"][level]), *[f"{100 * value:.1f}" for value in values.values()])
    return table
