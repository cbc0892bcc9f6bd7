"""ExP-DPO on the toy task in each refresh mode, with real engines; stored pairs are used again."""

from pathlib import Path

import pytest

from tests.chaos.compare import lines
from tests.integration.small_run import finish, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


IN_ONE_SWEEP = ("online", "offline")


def train(folder: Path, *overrides: str) -> None:
    """Runs three small steps."""
    small = ["experiment=demo", "algo=exp_dpo", "trainer.steps=3", "trainer.prompts_per_step=12", "eval.before=false"]
    small += ["eval.max_problems=1", "algo.properties_every=0", "rollout.temperature=1.0", "learner.warmup_steps=0"]
    small += ["logging.tensorboard=false"]
    done = finish(launch("expo_ray.train", *overrides, *small, f"run_dir={folder}"))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> dict[str, Path]:
    """A run in each refresh mode, on the same actors but for the iterative one, which has a key of its own."""
    folder = tmp_path_factory.mktemp("dpo")
    train(folder / "sweep", "-m", f"algo.dpo_refresh={','.join(IN_ONE_SWEEP)}")
    train(folder / "iterative", "algo.dpo_refresh=iterative", "algo.dpo_refresh_steps=2")
    return {"iterative": folder / "iterative"} | {
        mode: folder / "sweep" / str(number) for number, mode in enumerate(IN_ONE_SWEEP)
    }


@pytest.mark.parametrize("mode", ["online", "iterative"])
def test_pairs_are_made_and_trained_on(sweep, mode):
    steps = lines(sweep[mode] / "metrics.jsonl")
    assert all(line["pairs/trained"] > 0 and line["update/gradient_norm"] > 0 for line in steps)
    # On the first batch policy and reference are the same: every pair's margin is 0 and its loss log 2.
    assert steps[0]["loss/total"] == pytest.approx(0.693147, abs=1e-3)
    if mode == "iterative":
        assert steps[1]["explanations/sampled"] == 0 < steps[2]["explanations/sampled"]


def test_offline_pairs_are_stored_with_their_reference(sweep):
    steps, pairs = lines(sweep["offline"] / "metrics.jsonl"), lines(sweep["offline"] / "pairs.jsonl")
    assert len(pairs) == sum(line["pairs/trained"] for line in steps)
    assert all(pair["reference_chosen"] < 0 and pair["reference_rejected"] < 0 for pair in pairs)
    assert steps[0]["loss/total"] == pytest.approx(0.693147, abs=1e-3)
    assert steps[2]["loss/total"] < steps[0]["loss/total"]


def test_stored_pairs_give_the_same_training_again(sweep, tmp_path):
    folder = tmp_path / "again"
    train(folder, "algo.dpo_refresh=offline", f"algo.dpo_pairs_path={sweep['offline'] / 'pairs.jsonl'}")
    again, steps = lines(folder / "metrics.jsonl"), lines(sweep["offline"] / "metrics.jsonl")
    assert all(line["tokens/generated"] == 0 for line in again)
    for here, there in zip(again, steps, strict=True):
        assert here["pairs/trained"] == there["pairs/trained"]
        assert here["loss/total"] == pytest.approx(there["loss/total"], abs=1e-4)
