"""`python -m expo_ray.report RUN [RUN ...]`: one HTML file about one or more runs, finished or in progress."""

import argparse
import sys
from datetime import datetime
from pathlib import Path

from expo_ray.config.errors import DataError, InputError
from expo_ray.files import write_whole

MAX_SAMPLES = 6000


def main(arguments: list[str] | None = None) -> int:
    """Writes `report.html` and `curves.png`, prints the table by level and, last, the page's path.

    Returns:
        The exit code: 0, or 2 for wrong input, which is described in one sentence.
    """
    parser = argparse.ArgumentParser(prog="python -m expo_ray.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders that contain some")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: runs/report/<time>)")
    parser.add_argument(
        "--max-samples",
        type=int,
        default=MAX_SAMPLES,
        metavar="N",
        help="samples in the page at most (default: %(default)s)",
    )
    try:
        return _report(parser.parse_args(arguments))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _report(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from expo_ray.reporting.curves import draw_curves
    from expo_ray.reporting.groups import group_runs
    from expo_ray.reporting.page import report_page
    from expo_ray.reporting.runs import find_runs, read_run
    from expo_ray.reporting.terminal import table_by_level
    from expo_ray.runtime.spans import write_trace

    if arguments.max_samples < 1:
        raise DataError(f"--max-samples={arguments.max_samples} must be at least 1")
    now = datetime.now()
    runs = [read_run(path) for path in find_runs(arguments.runs)]
    page = report_page(group_runs(runs), arguments.max_samples, now)
    out: Path = arguments.out or Path("runs/report") / now.strftime("%Y-%m-%d_%H-%M-%S")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "report.html", page)
    except OSError as error:
        raise DataError(f"--out={out}: cannot be written to ({error.strerror})") from error
    for run in runs:
        write_trace(run.path)
    draw_curves(runs, out / "curves.png")
    if any(run.summary.get("evaluation") for run in runs):
        Console().print(table_by_level(runs, min(int(run.config.eval.samples) for run in runs)))
    print((out / "report.html").absolute())
    return 0


if __name__ == "__main__":
    sys.exit(main())
