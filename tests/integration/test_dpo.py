"""ExP-DPO on the toy task in each refresh mode, with real engines; stored pairs are used again."""

from pathlib import Path

import pytest

from tests.chaos.compare import lines
from tests.integration.small_run import finish, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


IN_ONE_SWEEP = ("online", "offline")


def train(folder: Path, *overrides: str, steps: int = 3, temperature: float = 1.0) -> None:
    """Runs small steps."""
    small = ["experiment=demo", "algo=exp_dpo", f"trainer.steps={steps}", "trainer.prompts_per_step=12"]
    small += ["eval.before=false", "eval.max_problems=1", "algo.properties_every=0", "learner.warmup_steps=0"]
    small += [f"rollout.temperature={temperature}", "logging.trackers=[]"]
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


def test_stored_pairs_of_another_model_and_temperature_start_at_margin_0(sweep, tmp_path):
    """With the sums that are stored, step 0 had margin -3.7 at another temperature and +11.1 with another model."""
    other, pairs = sweep["offline"] / "checkpoints" / "step_000003" / "policy", sweep["offline"] / "pairs.jsonl"
    folder = tmp_path / "other"
    train(
        folder,
        "algo.dpo_refresh=offline",
        f"algo.dpo_pairs_path={pairs}",
        f"model.path={other}",
        steps=1,
        temperature=0.5,
    )
    first = lines(folder / "metrics.jsonl")[0]
    assert first["pairs/scored"] == len(lines(pairs)) and first["tokens/generated"] == 0
    assert first["dpo/margin"] == pytest.approx(0.0, abs=1e-3)
    assert first["loss/total"] == pytest.approx(0.693147, abs=1e-3)
    (_, said) = [line["what"] for line in lines(folder / "events.jsonl") if line["event"] == "reused"]
    assert "made with model.path=" in said and f"now {other}" in said and "now 0.5" in said


def test_pairs_of_problems_that_a_longer_run_adds_are_scored_by_the_reference(sweep, tmp_path):
    """The reference policy is not loaded at the start of an offline run: it is when these pairs first need it."""
    folder = tmp_path / "longer"
    train(folder, "algo.dpo_refresh=offline", f"trainer.resume={sweep['offline']}", steps=4)
    added = lines(folder / "metrics.jsonl")[3]
    assert added["pairs/trained"] == added["pairs/made"] > 0 and added["update/gradient_norm"] > 0
    assert added["dpo/chosen_rise"] != 0  # the policy has moved, the reference has not
