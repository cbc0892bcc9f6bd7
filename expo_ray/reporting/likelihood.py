"""The likelihood of gold solutions, explanations and free completions under the base policy (the paper's figure 2)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expo_ray.config.errors import DataError
from expo_ray.evaluation.metrics import CONFIDENCE, bootstrap_interval
from expo_ray.files import JsonLines
from expo_ray.reporting.runs import finite

KINDS = {"gold": "gold solution", "explanation": "self-explanation", "free": "free completion"}
PROPERTIES = {"mean_logprob": "nats a token", "answer_rise": "nats"}
"""The two properties of a sample, docs/algorithms/properties.md, with their units."""


@dataclass(frozen=True)
class Likelihoods:
    """One number per problem and kind: the mean over that problem's samples of the kind."""

    values: dict[str, dict[str, dict[str, float]]]
    """Property -> kind -> uid -> value."""
    levels: dict[str, str]
    """uid -> level."""

    def of(self, name: str, kind: str, level: str | None = None) -> np.ndarray:
        """Returns the problems' values, of one level or of all."""
        found = self.values[name].get(kind, {})
        return np.array([value for uid, value in found.items() if level in (None, self.levels[uid])])

    def estimate(self, name: str, kind: str, level: str | None = None) -> tuple[float, float, float] | None:
        """Returns the mean over problems with its 95 % bootstrap interval; None where there is no problem."""
        values = self.of(name, kind, level)
        if not len(values):
            return None
        low, high = bootstrap_interval(values[:, None])
        return float(values.mean()), float(low[0]), float(high[0])


def read_likelihoods(runs: Sequence[Path]) -> Likelihoods:
    """Reads the samples of the runs' first step: their properties are those under the policy before any update.

    Several runs must have started from the same policy; a problem that is in several is pooled.

    Raises:
        DataError: no run measured properties at its first step.
    """
    gathered: dict[str, defaultdict[str, defaultdict[str, list[float]]]] = {
        name: defaultdict(lambda: defaultdict(list)) for name in PROPERTIES
    }
    levels: dict[str, str] = {}
    for run in runs:
        for line in JsonLines(run / "samples.jsonl", keys=("step", "kind", "uid")):
            properties = line.get("properties")
            if line["step"] != 0 or line["kind"] not in KINDS or not properties:
                continue
            uid = str(line["uid"])
            levels[uid] = str(line.get("level"))
            for name in PROPERTIES:
                if (value := finite(properties.get(name))) is not None:
                    gathered[name][line["kind"]][uid].append(value)
    if not levels:
        where = ", ".join(map(str, runs))
        raise DataError(f"{where}: no properties of step 0 in samples.jsonl; run it with algo.properties_every=1")
    means = {
        name: {kind: {uid: float(np.mean(of)) for uid, of in uids.items()} for kind, uids in kinds.items()}
        for name, kinds in gathered.items()
    }
    return Likelihoods(means, levels)


def sentence(found: Likelihoods) -> str:
    """States how many times less likely gold solutions are than explanations; "" where one of them is missing."""
    gold, explanation = (found.estimate("mean_logprob", kind) for kind in ("gold", "explanation"))
    if gold is None or explanation is None or not explanation[0]:
        return ""
    return (
        f"The negative log-likelihood of a gold solution is {gold[0] / explanation[0]:.1f} times that of a "
        "self-explanation here; the paper says about twice."
    )


def interval_text(found: tuple[float, float, float] | None) -> str:
    """Formats an estimate, such as "-0.51 (95%: -0.58 to -0.44)"; "" for None."""
    return "" if found is None else f"{found[0]:.2f} ({CONFIDENCE:.0%}: {found[1]:.2f} to {found[2]:.2f})"
