"""ExP-DPO on the embedded world in each refresh mode, with real engines; stored pairs are used again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def train(folder: Path, *overrides: str) -> list[dict]:
    """Runs three small steps and returns the metrics' lines."""
    small = ["experiment=demo", "algo=exp_dpo", "trainer.steps=3", "trainer.prompts_per_step=12", "eval.before=false"]
    small += ["eval.max_problems=1", "algo.properties_every=0", "rollout.temperature=1.0", "learner.warmup_steps=0"]
    command = [sys.executable, "-m", "expo_ray.train", *small, f"run_dir={folder}", *overrides]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("dpo") / "offline"
    return folder, train(folder, "algo.dpo_refresh=offline")


@pytest.mark.parametrize("mode", ["online", "iterative"])
def test_pairs_are_made_and_trained_on(tmp_path, mode):
    steps = train(tmp_path / mode, f"algo.dpo_refresh={mode}", "algo.dpo_refresh_steps=2")
    assert all(line["pairs/trained"] > 0 and line["update/gradient_norm"] > 0 for line in steps)
    # On the first batch policy and reference are the same: every pair's margin is 0 and its loss log 2.
    assert steps[0]["loss/total"] == pytest.approx(0.693147, abs=1e-3)
    if mode == "iterative":
        assert steps[1]["explanations/sampled"] == 0 < steps[2]["explanations/sampled"]


def test_offline_pairs_are_stored_with_their_reference(offline):
    folder, steps = offline
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == sum(line["pairs/trained"] for line in steps)
    assert all(pair["reference_chosen"] < 0 and pair["reference_rejected"] < 0 for pair in pairs)
    assert steps[0]["loss/total"] == pytest.approx(0.693147, abs=1e-3)
    assert steps[2]["loss/total"] < steps[0]["loss/total"]


def test_stored_pairs_give_the_same_training_again(offline, tmp_path):
    folder, steps = offline
    again = train(tmp_path / "again", "algo.dpo_refresh=offline", f"algo.dpo_pairs_path={folder / 'pairs.jsonl'}")
    assert all(line["tokens/generated"] == 0 for line in again)
    for here, there in zip(again, steps, strict=True):
        assert here["pairs/trained"] == there["pairs/trained"]
        assert here["loss/total"] == pytest.approx(there["loss/total"], abs=1e-4)
