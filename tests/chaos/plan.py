"""Which process is killed in which phase."""

import itertools
import random
from dataclasses import dataclass

TARGETS = ("rollout", "grader", "verifier", "learner", "driver")
"""grader: a process of a verifier's pool."""
PHASES = ("generate", "verify", "update", "sync", "checkpoint")


@dataclass(frozen=True)
class Kill:
    """One planned kill."""

    target: str
    phase: str
    from_step: int = 0
    """Not before this step."""


def plan_kills(count: int, seed: int) -> list[Kill]:
    """`count` kills in a seeded order, spread evenly: any 5 in a row hold every target and every phase once."""
    chance = random.Random(seed)
    rounds = []
    for turn in itertools.count():
        if len(rounds) * len(TARGETS) >= count:
            break
        phases = [PHASES[(index + turn) % len(PHASES)] for index in range(len(TARGETS))]
        of_round = [Kill(target, phase) for target, phase in zip(TARGETS, phases, strict=True)]
        chance.shuffle(of_round)
        rounds.append(of_round)
    return list(itertools.chain(*rounds))[:count]
