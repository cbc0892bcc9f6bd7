"""`python -m expo_ray.likelihood RUN`: gold solutions, explanations and free samples of a run's first step compared."""

import argparse
import sys
from pathlib import Path

from expo_ray.config.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Prints the table of both properties under the policy before any update; draws it with `--figure`.

    Returns:
        The exit code: 0; 2 for wrong input, told in one sentence.
    """
    parser = argparse.ArgumentParser(prog="python -m expo_ray.likelihood", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder made with algo.properties_every=1")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="a picture to draw (.png, .svg)")
    chosen = parser.parse_args(arguments)
    from expo_ray.ladder.likelihood import likelihood_sentence, likelihood_table, read_likelihoods

    try:
        found = read_likelihoods(chosen.run)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(likelihood_table(found))
    print(f"\n{likelihood_sentence(found)}")
    if chosen.figure is not None:
        from expo_ray.ladder.figures import draw_likelihoods

        draw_likelihoods(found, chosen.figure)
        print(chosen.figure.absolute())
    return 0


if __name__ == "__main__":
    sys.exit(main())
