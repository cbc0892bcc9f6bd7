"""Twelve kills in every phase of one run: it ends as an undisturbed one. `make chaos N=100` makes more."""

from collections import Counter

import pytest

from expo_ray.config.compose import compose_config
from expo_ray.data.sources import Problems
from tests.chaos.__main__ import overrides, run
from tests.chaos.compare import consumed
from tests.chaos.plan import PHASES, TARGETS, plan_kills

KILLS = 12


def test_the_plan_holds_every_target_and_phase():
    kills = plan_kills(KILLS, seed=0)
    assert len(kills) == KILLS
    assert {kill.target for kill in kills} == set(TARGETS)
    assert {kill.phase for kill in kills} == set(PHASES)
    assert len(set(plan_kills(25, seed=0))) == 25


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twelve_kills_change_nothing(tmp_path):
    chaos = run(tmp_path, KILLS, seed=0)
    hit = [made for made in chaos.made if made.hit]
    assert len(hit) == KILLS
    assert {made.kill.target for made in hit} == set(TARGETS)
    assert {made.kill.phase for made in hit} == set(PHASES)

    # The plan of prompts, worked out again: each epoch holds every training problem once.
    config = compose_config(overrides(2 * KILLS))
    problems = {problem.uid for problem in Problems(config.data, config.seed).training}
    times = Counter(uid for _, uid in consumed(tmp_path / "disturbed").elements())
    assert sum(times.values()) == 2 * KILLS * config.trainer.prompts_per_step
    epochs = sum(times.values()) / len(problems)
    assert set(times) <= problems
    assert all(int(epochs) <= times[uid] <= int(epochs) + 1 for uid in problems)
