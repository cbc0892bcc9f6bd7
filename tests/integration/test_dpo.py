"""ExP-DPO on the toy task in each refresh mode, with real engines; stored pairs are used again."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.compare import lines
from tests.integration.small_run import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
IN_TURN = """
import sys
from expo_ray.config.compose import compose_config
from expo_ray.demo import _train
from expo_ray.driver.actors import WarmActors
from expo_ray.preflight.checks import check_run
warm = WarmActors()
for overrides in sys.argv[1:]:
    _train(check_run(compose_config(overrides.split())), warm)
warm.close()
"""
"""Runs like those of a sweep, but each with keys of its own; they read what earlier ones wrote."""
SMALL = ["experiment=demo", "algo=exp_dpo", "trainer.prompts_per_step=12", "eval.before=false", "eval.max_problems=1"]
SMALL += ["algo.properties_every=0", "learner.warmup_steps=0", "logging.trackers=[]"]
USUAL = {"trainer.steps": "3", "rollout.temperature": "1.0", "trainer.resume": "never"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """One run after the other on the same actors; the last has another model, and so actors of its own."""
    folder = tmp_path_factory.mktemp("dpo")
    pairs, saved = folder / "offline" / "pairs.jsonl", folder / "offline" / "checkpoints" / "step_000003" / "policy"
    stored = {"algo.dpo_refresh": "offline", "algo.dpo_pairs_path": pairs}
    wanted: dict[str, dict[str, object]] = {
        "online": {"algo.dpo_refresh": "online"},
        "iterative": {"algo.dpo_refresh": "iterative", "algo.dpo_refresh_steps": 2},
        "offline": {"algo.dpo_refresh": "offline"},
        "again": stored,
        "longer": {"algo.dpo_refresh": "offline", "trainer.resume": folder / "offline", "trainer.steps": 4},
        "other": stored | {"model.path": saved, "trainer.steps": 1, "rollout.temperature": 0.5},
    }
    words = [
        " ".join([*SMALL, *(f"{key}={value}" for key, value in (USUAL | own).items()), f"run_dir={folder / name}"])
        for name, own in wanted.items()
    ]
    command = [sys.executable, "-c", IN_TURN, *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: folder / name for name in wanted}


@pytest.mark.parametrize("mode", ["online", "iterative"])
def test_pairs_are_made_and_trained_on(runs, mode):
    steps = lines(runs[mode] / "metrics.jsonl")
    assert all(line["pairs/trained"] > 0 and line["update/gradient_norm"] > 0 for line in steps)
    # On the first batch policy and reference are the same: every pair's margin is 0 and its loss log 2.
    assert steps[0]["loss/total"] == pytest.approx(0.693147, abs=1e-3)
    if mode == "iterative":
        assert steps[1]["explanations/sampled"] == 0 < steps[2]["explanations/sampled"]


def test_offline_pairs_are_stored_with_their_reference(runs):
    steps, pairs = lines(runs["offline"] / "metrics.jsonl"), lines(runs["offline"] / "pairs.jsonl")
    assert len(pairs) == sum(line["pairs/trained"] for line in steps)
    assert all(pair["reference_chosen"] < 0 and pair["reference_rejected"] < 0 for pair in pairs)
    assert steps[0]["loss/total"] == pytest.approx(0.693147, abs=1e-3)
    assert steps[2]["loss/total"] < steps[0]["loss/total"]


def test_stored_pairs_give_the_same_training_again(runs):
    again, steps = lines(runs["again"] / "metrics.jsonl"), lines(runs["offline"] / "metrics.jsonl")
    assert all(line["tokens/generated"] == 0 for line in again)
    for here, there in zip(again, steps, strict=True):
        assert here["pairs/trained"] == there["pairs/trained"]
        assert here["loss/total"] == pytest.approx(there["loss/total"], abs=1e-4)


def test_stored_pairs_of_another_model_and_temperature_start_at_margin_0(runs):
    """With the sums that are stored, step 0 had margin -3.7 at another temperature and +11.1 with another model."""
    pairs, saved = runs["offline"] / "pairs.jsonl", runs["offline"] / "checkpoints" / "step_000003" / "policy"
    first = lines(runs["other"] / "metrics.jsonl")[0]
    assert first["pairs/scored"] == len(lines(pairs)) and first["tokens/generated"] == 0
    assert first["dpo/margin"] == pytest.approx(0.0, abs=1e-3)
    assert first["loss/total"] == pytest.approx(0.693147, abs=1e-3)
    (_, said) = [line["what"] for line in lines(runs["other"] / "events.jsonl") if line["event"] == "reused"]
    assert "made with model.path=" in said and f"now {saved}" in said and "now 0.5" in said


def test_pairs_of_problems_that_a_longer_run_adds_are_scored_by_the_reference(runs):
    """The reference policy is not loaded at the start of an offline run: it is when these pairs first need it."""
    added = lines(runs["longer"] / "metrics.jsonl")[3]
    assert added["pairs/trained"] == added["pairs/made"] > 0 and added["update/gradient_norm"] > 0
    assert added["dpo/chosen_rise"] != 0  # the policy has moved, the reference has not
