"""The two properties of gold solutions, explanations and free samples under the base policy (the paper's figure 2)."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expo_ray.config.errors import DataError
from expo_ray.evaluation.metrics import CONFIDENCE, bootstrap_interval
from expo_ray.reporting.runs import LineReader, finite

KINDS = {"gold": "gold solution", "explanation": "self-explanation", "free": "free sample"}
PROPERTIES = {"mean_logprob": "nats a token", "answer_rise": "nats"}


@dataclass(frozen=True)
class Likelihoods:
    """One number for each problem and kind: the mean over that problem's samples of the kind."""

    values: dict[str, dict[str, dict[str, float]]]
    """Property -> kind -> uid -> value."""
    levels: dict[str, str]
    """uid -> level."""

    def of(self, name: str, kind: str, level: str | None = None) -> np.ndarray:
        """The problems' values, of one level or of all."""
        found = self.values[name].get(kind, {})
        return np.array([value for uid, value in found.items() if level in (None, self.levels[uid])])

    def estimate(self, name: str, kind: str, level: str | None = None) -> tuple[float, float, float] | None:
        """Mean over problems with its 95 % bootstrap interval; None where there is no problem."""
        values = self.of(name, kind, level)
        if not len(values):
            return None
        low, high = bootstrap_interval(values[:, None])
        return float(values.mean()), float(low[0]), float(high[0])


def read_likelihoods(run: Path) -> Likelihoods:
    """Reads the samples of a run's first step: their properties are those under the policy before any update.

    Raises:
        DataError: the run measured no properties at its first step.
    """
    gathered: defaultdict[str, defaultdict[str, defaultdict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    levels: dict[str, str] = {}
    for line in LineReader(run / "samples.jsonl", keys=("step", "kind", "uid")):
        properties: Any = line.get("properties")
        if line["step"] != 0 or line["kind"] not in KINDS or not properties:
            continue
        levels[line["uid"]] = str(line.get("level"))
        for name in PROPERTIES:
            if (value := finite(properties.get(name))) is not None:
                gathered[name][line["kind"]][line["uid"]].append(value)
    if not levels:
        raise DataError(f"{run}: no properties of step 0 in samples.jsonl; run it with algo.properties_every=1")
    means = {
        name: {kind: {uid: float(np.mean(of)) for uid, of in uids.items()} for kind, uids in kinds.items()}
        for name, kinds in gathered.items()
    }
    return Likelihoods(means, levels)


def likelihood_table(found: Likelihoods) -> str:
    """Markdown: both properties by kind, with intervals and the number of problems."""
    lines = [
        "| sample | problems | log pi(c given q), nats a token | rise of log pi(a* given q, c), nats |",
        "|---|---|---|---|",
    ]
    for kind, name in KINDS.items():
        cells = [_interval(found.estimate(of, kind)) for of in PROPERTIES]
        lines.append(f"| {name} | {len(found.of('mean_logprob', kind))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def likelihood_sentence(found: Likelihoods) -> str:
    """How many times less likely gold solutions are than explanations; the paper says about twice."""
    gold, explanation = (found.estimate("mean_logprob", kind) for kind in ("gold", "explanation"))
    if gold is None or explanation is None:
        return ""
    return (
        f"The negative log-likelihood of a gold solution is {gold[0] / explanation[0]:.1f} times that of a "
        "self-explanation here; the paper says about twice."
    )


def _interval(found: tuple[float, float, float] | None) -> str:
    return "" if found is None else f"{found[0]:.2f} ({CONFIDENCE:.0%}: {found[1]:.2f} to {found[2]:.2f})"
