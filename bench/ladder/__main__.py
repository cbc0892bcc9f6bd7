"""`python -m bench.ladder FOLDER`: the tables and figures of finished ladder sweeps (make ladder) as a page."""

import sys
from argparse import ArgumentParser
from pathlib import Path

from expo_ray.config.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 2 for wrong input. The last line printed is the page's path."""
    parser = ArgumentParser(prog="python -m bench.ladder", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds the sweeps; runs are found up to two folders below it")
    parser.add_argument("--base", type=Path, help="evaluation of the base model (default: FOLDER/base)")
    parser.add_argument(
        "--likelihood", type=Path, help="run that measured the properties (default: FOLDER/likelihood/0)"
    )
    parser.add_argument("--ablations", type=Path, help="folder of the ablations' sweeps (default: none)")
    parser.add_argument("--page", type=Path, help="default: FOLDER/ladder.md; the figures go to the same folder")
    given = parser.parse_args(arguments)
    from bench.ladder.page import Sources, write_page  # matplotlib takes seconds, --help should not

    likelihood = given.likelihood or given.folder / "likelihood" / "0"
    sources = Sources(
        runs=given.folder,
        base=given.base or given.folder / "base",
        likelihood=likelihood if given.likelihood or likelihood.exists() else None,
        ablations=given.ablations,
    )
    try:
        for file in reversed(write_page(sources, (given.page or given.folder / "ladder.md").absolute())):
            print(file)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
