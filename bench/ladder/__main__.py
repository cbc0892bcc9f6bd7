"""`python -m bench.ladder FOLDER`: the tables and figures of finished ladder sweeps (make ladder) as a page.

Without FOLDER, only the section of the ablations is written again into an existing page: the other runs take hours.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from expo_ray.config.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 2 for wrong input. The last line printed is the page's path."""
    parser = ArgumentParser(prog="python -m bench.ladder", description=__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="?", help="holds the sweeps; runs are found up to two folders below it"
    )
    parser.add_argument("--base", type=Path, help="evaluation of the base model (default: base in the folder)")
    parser.add_argument(
        "--likelihood", type=Path, help="run that measured the properties (default: FOLDER/likelihood/0)"
    )
    parser.add_argument("--ablations", type=Path, help="folder of the ablations' sweeps (default: none)")
    parser.add_argument("--commit", help="the commit that the ablations ran at, for the page")
    parser.add_argument("--page", type=Path, help="default: FOLDER/ladder.md; the figures go to the same folder")
    given = parser.parse_args(arguments)
    from bench.ladder.page import Sources, write_ablations, write_page  # matplotlib takes seconds, --help should not

    if given.folder is None:
        if given.ablations is None or given.page is None:
            parser.error("without FOLDER, --ablations and --page are needed")
        return _print_or_fail(
            lambda: write_ablations(
                given.ablations, given.base or given.ablations / "base", given.page.absolute(), given.commit
            )
        )
    likelihood = given.likelihood or given.folder / "likelihood" / "0"
    sources = Sources(
        runs=given.folder,
        base=given.base or given.folder / "base",
        likelihood=likelihood if given.likelihood or likelihood.exists() else None,
        ablations=given.ablations,
        commit=given.commit,
    )
    return _print_or_fail(lambda: write_page(sources, (given.page or given.folder / "ladder.md").absolute()))


def _print_or_fail(write: Callable[[], list[Path]]) -> int:
    try:
        for file in reversed(write()):
            print(file)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
