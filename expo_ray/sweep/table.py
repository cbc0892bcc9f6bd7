"""The table that a sweep ends with."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from expo_ray.sweep.job import JobEnd, differing


def sweep_table(ends: Sequence[JobEnd], folder: Path, objective: str) -> Table:
    """One row a job: what sets it apart, how it ended, its time, its objective and its folder below `folder`."""
    table = Table(title=f"sweep in {folder}", title_justify="left")
    for heading in ("job", "overrides", "ended", "seconds", objective, "folder"):
        table.add_column(heading, justify="right" if heading in ("job", "seconds", objective) else "left")
    for end, own in zip(ends, differing([end.overrides for end in ends]), strict=True):
        value = "" if end.objective is None else f"{end.objective:.3f}"
        where = Path(end.folder)
        shown = where.relative_to(folder) if where.is_relative_to(folder) else where
        table.add_row(str(end.job), " ".join(own), end.ended, f"{end.seconds:.1f}", value, str(shown))
    return table
