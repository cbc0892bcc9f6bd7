"""DPO: pairs, their storage and refresh, and the loss against a second computation."""

import json
import math

import numpy as np
import pytest
from algorithm_cases import Arrays, config_with, group, random_arrays, restate

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.losses import dpo_loss
from expo_ray.algorithms.pairs import PairStore
from expo_ray.config.errors import DataError

RIGHT = ("it follows that x is 5", "correct")
LEAK = ("since the answer is given as 5, x is 5", "correct")
PAIRS = ["chosen", "rejected"] * 4


def formula(batch: Arrays, dpo_beta: float) -> float:
    """-sum over pairs of w log sigmoid(beta ((l_c - l_r) - (ref_c - ref_r)))."""
    loss = 0.0
    for unit in set(batch.unit.tolist()):
        rise = {}
        for i in np.flatnonzero(batch.unit == unit):
            stored = batch.reference_sum[i]
            reference = batch.reference[i].sum() if math.isnan(stored) else stored
            rise[batch.term[i]] = batch.logprobs[i].sum() - reference
            weight = batch.weight[i]
        loss += weight * math.log1p(math.exp(-dpo_beta * (rise["chosen"] - rise["rejected"])))
    return loss


def pair_arrays(seed: int) -> Arrays:
    batch = random_arrays(PAIRS, seed)
    batch.weight = np.repeat([0.1, 0.2, 0.3, 0.4], 2)
    return batch


@pytest.mark.parametrize("stored", [[], [0, 1], list(range(8))])
@pytest.mark.parametrize("dpo_beta", [0.1, 2.0])
def test_loss_and_gradient_equal_the_formula(stored, dpo_beta):
    batch = pair_arrays(1)
    batch.reference_sum[stored] = -3.0 - np.arange(len(stored))
    tokens = batch.tokens()
    output = dpo_loss(tokens, dpo_beta)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(formula(batch, dpo_beta), abs=1e-6)
    gradient = []
    for values in batch.logprobs:
        for t in range(len(values)):
            values[t] += 1e-5
            above = formula(batch, dpo_beta)
            values[t] -= 2e-5
            gradient.append((above - formula(batch, dpo_beta)) / 2e-5)
            values[t] += 1e-5
    np.testing.assert_allclose(tokens.logprobs.grad.numpy(), gradient, atol=1e-6)


def test_sum_over_cuts_that_keep_pairs_whole_is_the_whole():
    batch = pair_arrays(2)
    order = [5, 4, 1, 0, 2, 3, 6, 7]
    parts = [dpo_loss(batch.take(order[a:b]).tokens(), 0.1).loss.item() for a, b in ((0, 2), (2, 6), (6, 8))]
    assert sum(parts) == pytest.approx(dpo_loss(batch.tokens(), 0.1).loss.item(), rel=1e-12)


def test_equal_policy_and_reference_give_log_two():
    batch = pair_arrays(3)
    batch.reference = [values.copy() for values in batch.logprobs]
    assert dpo_loss(batch.tokens(), 0.5).loss.item() == pytest.approx(math.log(2))


def test_torn_pairs_are_refused():
    with pytest.raises(ValueError, match="unit 0 is not one chosen and one rejected"):
        dpo_loss(pair_arrays(4).take([0, 2, 3]).tokens(), 0.1)


def test_pairs_set_explanations_against_wrong_completions_only():
    mixed = group(["correct", "timeout", "wrong", "no_answer"], [2, 3, 4, 5], [RIGHT, LEAK, RIGHT, RIGHT], uid="a")
    all_right = group(["correct", "correct"], uid="b")
    batch = algorithm().training_batch([mixed, all_right], 0)
    chosen = [s for s in batch.samples if s.term == "chosen"]
    rejected = [s for s in batch.samples if s.term == "rejected"]
    assert [len(s.completion_ids) for s in chosen] == [3, 5, 6]
    assert [len(s.completion_ids) for s in rejected] == [4, 5, 4]
    assert [s.unit for s in chosen] == [s.unit for s in rejected] == [0, 1, 2]
    assert all(s.weight == pytest.approx(1 / 3) and s.prompt_ids.tolist() == [1, 2, 3] for s in batch.samples)
    assert batch.metrics["pairs/prompts_without"] == 1 and batch.metrics["explanations/leaked"] == 1


def test_gold_solutions_as_chosen():
    batch = algorithm(name="dpo_gt").training_batch([group(["wrong"]), group(["wrong"], gold=False)], 0)
    assert [s.completion_ids.tolist() for s in batch.samples if s.term == "chosen"] == [[41, 42, 43, 44, 45]]
    assert not algorithm(name="dpo_gt").needs_explanations(0)


@pytest.mark.parametrize(
    ("mode", "ahead"),
    [("online", [1] * 10), ("iterative", [4, 0, 0, 0, 4, 0, 0, 0, 2, 0]), ("offline", [10] + [0] * 9)],
)
def test_refresh_modes(mode, ahead):
    made = algorithm(dpo_refresh=mode, dpo_refresh_steps=4)
    assert [made.rollout_ahead(step) for step in range(10)] == ahead
    assert [made.explanations_ahead(step) for step in range(10)] == ahead


def test_pairs_made_ahead_serve_later_steps_and_survive_a_checkpoint():
    first = algorithm(dpo_refresh="iterative", dpo_refresh_steps=2)
    first.collect([group(["wrong"], uid="next")], 0)
    resumed = algorithm(dpo_refresh="iterative", dpo_refresh_steps=2)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    empty = group([], explanations=[], uid="next")
    for one in (first, resumed):
        samples = one.training_batch([empty], 1).samples
        assert [s.completion_ids.tolist() for s in samples] == [[1000, 1001, 1002], [100, 101, 102, 103]]


def test_offline_pairs_are_stored_inspected_and_used_again(tmp_path):
    first = algorithm(dpo_refresh="offline")
    first.collect([group(["wrong"], uid="a"), group(["wrong", "wrong"], explanations=[RIGHT] * 2, uid="b")], 0)
    assert first.reference_terms == {"chosen", "rejected"}
    sequences = first.pairs.sequences()
    assert [len(ids) for _, ids in sequences] == [3, 4, 3, 4, 4, 4]
    first.pairs.set_reference([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    path = tmp_path / "pairs.jsonl"
    first.pairs.write(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["uid"], line["chosen_text"]) for line in lines] == [("a", RIGHT[0]), ("b", RIGHT[0]), ("b", RIGHT[0])]
    again = algorithm(dpo_refresh="offline", dpo_pairs_path=str(path))
    assert not again.reference_terms and again.rollout_ahead(0) == 0
    batch = again.training_batch([group([], explanations=[], uid=uid) for uid in ("b", "unseen")], 5)
    assert [s.reference_logprob for s in batch.samples] == [-3.0, -4.0, -5.0, -6.0]
    assert batch.metrics["pairs/prompts_without"] == 1


@pytest.mark.parametrize(("temperature", "scored"), [(1.0, [-6.0, -8.0]), (0.5, [None, None])])
def test_offline_pairs_are_written_before_the_first_update(tmp_path, temperature, scored):
    """Scored by the policy, which still is the reference, where the loss's temperature is that of scoring."""
    offline = algorithm(dpo_refresh="offline")
    offline.config.rollout.temperature = temperature
    offline.attach(tmp_path, lambda sequences: [np.full(len(ids), -2.0, np.float32) for _, ids in sequences], restate)
    offline.training_batch([group(["wrong"], uid="a")], 0)
    (line,) = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [line["reference_chosen"], line["reference_rejected"]] == scored
    before = (tmp_path / "pairs.jsonl").stat().st_mtime_ns
    offline.training_batch([group([], explanations=[], uid="a")], 1)
    assert (tmp_path / "pairs.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["", "not json\n", '{"uid": "a"}\n', "[1]\n"])
def test_bad_pair_files_are_refused(tmp_path, text):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        PairStore().read(path)


def algorithm(name: str = "exp_dpo", **keys):
    config = config_with(name=name, **keys)
    config.rollout.explanations_per_prompt = 4
    return make_algorithm(config)
