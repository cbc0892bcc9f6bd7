"""`python -m bench.ladder.likelihood RUN`: how likely gold solutions, explanations and free completions are.

The HTML report (`python -m expo_ray.report`) shows the same comparison; this prints it as Markdown and draws a picture.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.ladder.figures import MARKERS
from expo_ray.config.errors import InputError
from expo_ray.reporting.curves import COLOURS, STYLES
from expo_ray.reporting.likelihood import KINDS, PROPERTIES, Likelihoods, interval_text, read_likelihoods, sentence


def main(arguments: list[str] | None = None) -> int:
    """Prints the table of both properties under the policy before any update, and draws it with `--figure`.

    Returns:
        The exit code: 0, or 2 for wrong input.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.ladder.likelihood", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder made with algo.properties_every=1")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="a picture to draw (.png, .svg)")
    chosen = parser.parse_args(arguments)
    try:
        found = read_likelihoods([chosen.run])
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{likelihood_table(found)}\n\n{sentence(found)}")
    if chosen.figure is not None:
        draw_likelihoods(found, chosen.figure)
        print(chosen.figure.absolute())
    return 0


def likelihood_table(found: Likelihoods) -> str:
    """Both properties by kind in Markdown, with intervals and the number of problems."""
    lines = [
        "| sample | problems | log pi(c given q), nats a token | rise of log pi(a* given q, c), nats |",
        "|---|---|---|---|",
    ]
    for kind, name in KINDS.items():
        cells = [interval_text(found.estimate(of, kind)) for of in PROPERTIES]
        lines.append(f"| {name} | {len(found.of('mean_logprob', kind))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_likelihoods(found: Likelihoods, path: Path) -> None:
    """Left: log-likelihood of each problem's samples, by kind; right: means by level with 95 % intervals."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    values = [found.of("mean_logprob", kind) for kind in KINDS]
    boxes = left.boxplot(values, patch_artist=True, whis=(5, 95), showfliers=False, medianprops={"color": "black"})
    for box, colour in zip(boxes["boxes"], COLOURS, strict=False):
        box.set_facecolor(colour)
    counts = [f"{name}\n({len(of)} problems)" for name, of in zip(KINDS.values(), values, strict=True)]
    left.set_xticks(range(1, len(KINDS) + 1), counts)
    left.set(title="boxes: quartiles; whiskers: 5 to 95 %", ylabel="log pi(c | q) under the base, nats a token")
    levels = sorted(set(found.levels.values()))
    for index, (kind, name) in enumerate(KINDS.items()):
        points = [(i, found.estimate("mean_logprob", kind, level)) for i, level in enumerate(levels)]
        kept = [(i, of) for i, of in points if of is not None]
        right.errorbar(
            [i + 0.06 * (index - 1) for i, _ in kept],
            [of[0] for _, of in kept],
            yerr=[[of[0] - of[1] for _, of in kept], [of[2] - of[0] for _, of in kept]],
            color=COLOURS[index],
            marker=MARKERS[index],
            linestyle=STYLES[index],
            capsize=3,
            label=name,
        )
    right.set_xticks(range(len(levels)), levels)
    right.set(title="mean by level, 95 % intervals", xlabel="level", ylabel="nats a token")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
