"""`python -m bench.ladder.ablations FOLDER --base FOLDER --page FILE`: what `make ablations` has finished, as tables.

The page's section "Ablations" is written again, or added at the end; the rest stays as it is.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from bench.ladder.tables import (
    collect,
    cost,
    labels_by_change,
    levels_of,
    read_base,
    setting_table,
    updates_table,
)
from expo_ray.config.errors import InputError
from expo_ray.files import write_whole

TITLE = "## Ablations"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 2 for wrong input. The last line printed is the page's path."""
    parser = ArgumentParser(prog="python -m bench.ladder.ablations", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds the sweeps; runs are found up to two folders below it")
    parser.add_argument("--base", type=Path, required=True, help="evaluation of the base model (make ladder's base)")
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--commit", help="the commit that the ablations ran at, for the page")
    given = parser.parse_args(arguments)
    try:
        write_section(given.folder, given.base, given.page, given.commit)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(given.page)
    return 0


def write_section(folder: Path, base: Path, page: Path, commit: str | None) -> None:
    """Writes the section into the page, which is made if there is none.

    Raises:
        DataError: a folder lacks an expected file, or its runs cannot be compared.
    """
    section = "\n\n".join(part for part in _section(folder, base, commit) if part)
    text = page.read_text() if page.exists() else "# Ablations of ExP-GRPO on the toy task\n"
    before, title, after = text.partition(f"{TITLE}\n")
    if not title:
        before = f"{before.rstrip()}\n\n"
    _, following, rest = after.partition("\n## ")
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, f"{before}{section}\n{following}{rest}")


def _section(folder: Path, base_folder: Path, commit: str | None) -> Sequence[str]:
    found, base = collect(folder, [base_folder]), read_base(base_folder)
    levels, k = levels_of(found), found.samples
    hardest = max(level for level in levels if level != "all")
    parts = [TITLE, f"Ran at commit {commit}." if commit else "", *cost(folder)]
    for setting in found.settings:
        names, label = labels_by_change(setting.methods), setting.methods[0].runs[0].label
        parts += [f"{label}, {setting.title}; each row changes the named settings only."]
        parts += [setting_table(setting, names, levels, k, base)]
        parts += [f"Level {hardest} by number of updates:", updates_table(setting, names, hardest, k)]
    if found.left_out:
        parts += [f"Left out because not finished: {', '.join(f'`{path}`' for path in found.left_out)}."]
    return parts


if __name__ == "__main__":
    sys.exit(main())
