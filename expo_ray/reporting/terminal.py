"""Tables for the terminal: a comparison by level, and one evaluation."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from expo_ray.reporting.runs import RunFolder, level_title


def table_by_level(runs: Sequence[RunFolder], k: int) -> Table:
    """Tabulates held-out pass@k by level in percent: the base model, then each run's final policy.

    Runs without a final evaluation have no row; "-" marks a level or k that a run does not have.
    """
    table = Table(title=f"pass@{k} on held-out problems, percent")
    table.add_column("policy")
    ended = [run for run in runs if run.summary.get("evaluation")]
    base = next((run.summary["evaluation_before"] for run in runs if run.summary.get("evaluation_before")), None)
    rows = [("base model", base)] if base else []
    rows += [(f"{run.label}, {run.summary.get('steps_done', '?')} updates", run.summary["evaluation"]) for run in ended]
    found = {level for _, evaluation in rows for level in evaluation["pass_at_k"]}
    levels = sorted(found, key=lambda level: (level == "all", level))
    for level in levels:
        table.add_column(level_title(level), justify="right")
    for name, evaluation in rows:
        values = [evaluation["pass_at_k"].get(level, {}).get(str(k)) for level in levels]
        table.add_row(name, *["-" if value is None else f"{100 * value:.1f}" for value in values])
    return table


def evaluation_table(title: str, evaluation: dict[str, Any]) -> Table:
    """Tabulates one evaluation (expo_ray.evaluation.Evaluation.summary) by level and kind, in percent.

    Below each number is its confidence interval. Of many k, a few powers of two and n are shown.
    """
    samples = evaluation["samples"]
    powers = [2**power for power in range(samples.bit_length())]
    shown = sorted({*powers[:: 1 + (len(powers) - 1) // 4], samples})
    about = f"{samples} samples per problem; percent, with {evaluation['confidence']:.0%} intervals over problems"
    table = Table(title=f"{escape(title)}\n{about}", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in ("problems", *(f"pass@{k}" for k in shown), f"maj@{samples}", "cut off", "no answer"):
        table.add_column(name, justify="right")
    kinds = evaluation["by_kind"] if len(evaluation["by_kind"]) > 1 else {}
    for part, scores in (("level ", evaluation["by_level"]), ("", kinds)):
        for name, of in scores.items():
            estimates = [*(of["pass_at_k"][str(k)] for k in shown), of["majority_at_k"][str(samples)]]
            cells = [
                f"{100 * each['mean']:.1f}\n[dim]{100 * each['low']:.0f}-{100 * each['high']:.0f}[/dim]"
                for each in (*estimates, of["truncated"], of["no_answer"])
            ]
            table.add_row(escape(name if name == "all" else part + name), str(of["problems"]), *cells)
        table.add_section()
    everything = evaluation["by_level"]["all"]
    if everything["timeouts"] or everything["errors"]:
        table.caption = f"the verifier gave up on {everything['timeouts']} (time) and {everything['errors']} (error)"
    return table
