"""`python -m expo_ray.report RUN [RUN ...]`: curves and a table by level of one or more runs."""

import argparse
import sys
from datetime import datetime
from pathlib import Path

from expo_ray.config.errors import InputError


def main() -> int:
    """Reads the run folders, draws `curves.png` into a new folder, prints the table and the folder's path."""
    parser = argparse.ArgumentParser(prog="python -m expo_ray.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, finished or still going")
    parser.add_argument("--out", type=Path, help="where to write (default: runs/report/<time>)")
    arguments = parser.parse_args()
    from rich.console import Console

    from expo_ray.reporting.curves import draw_curves
    from expo_ray.reporting.runs import read_run
    from expo_ray.reporting.table import table_by_level

    try:
        runs = [read_run(path) for path in arguments.runs]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = arguments.out or Path("runs/report") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    out.mkdir(parents=True, exist_ok=True)
    draw_curves(runs, out / "curves.png")
    if any(run.summary.get("evaluation") for run in runs):
        Console().print(table_by_level(runs, runs[0].config.eval.samples))
    print(out.absolute())
    return 0


if __name__ == "__main__":
    sys.exit(main())
