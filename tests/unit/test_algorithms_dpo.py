"""DPO: pairs, their storage and refresh, and the loss against a second computation."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from algorithm_cases import Arrays, config_with, group, random_arrays, restate

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.base import Inputs
from expo_ray.algorithms.losses import dpo_loss
from expo_ray.algorithms.pairs import PairStore
from expo_ray.config.errors import DataError

RIGHT = ("it follows that x is 5", "correct")
LEAK = ("since the answer is given as 5, x is 5", "correct")
PAIRS = ["chosen", "rejected"] * 4
NO_IDS = (
    json.dumps(
        dict.fromkeys(["uid", "step", "prompt_ids", "chosen_ids", "rejected_ids"], "a")
        | {"chosen_text": "", "rejected_text": ""}
    )
    + "\n"
)


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


RIGHT_AND_WRONG = [("chosen", [1000, 1001, 1002]), ("rejected", [100, 101, 102, 103])]


def logprobs_of(model: int, temperature: float, ids: list[int]) -> np.ndarray:
    """A policy's log-probabilities: any function of model, temperature and token."""
    return np.array([-((token % 7) + model) / temperature for token in ids], np.float32)


def run(folder: Path, model: int = 0, temperature: float = 1.0, prompts=None, begins=(), **keys):
    """The driver's algorithm of an offline run of a base model, before its first step, and what it says."""
    made = algorithm(dpo_refresh="offline", **{"name": "exp_dpo"} | keys)
    made.config.rollout.temperature, made.config.model.path = temperature, f"model-{model}"
    prompts = prompts or [group([], uid=uid).rollout.prompt for uid in ("a", "b")]
    said = made.begin(Inputs(f"digest-{model}", prompts, tuple(begins) or STOPS, decode))
    folder.mkdir(exist_ok=True)
    scored: list[int] = []

    def score(sequences, temperature):
        scored.append(len(sequences))
        return [logprobs_of(model, temperature, ids.tolist()) for _, ids in sequences]

    made.attach(folder, score, restate)
    return made, said, scored


STOPS = (1002, 103)
"""What ends the explanation and the wrong completion of `group`."""


def decode(ids: list[int]) -> str:
    return RIGHT[0] if ids[0] >= 1000 else "so it is 5"


def sampled(uid: str = "a"):
    return group(["wrong"], explanations=[RIGHT], uid=uid)


def empty(uid: str = "a"):
    return group([], explanations=[], uid=uid)


def margin_and_loss(made, batch, model: int, temperature: float) -> tuple[float, float]:
    """Of a batch's pairs under a policy that is the base model still, as the learners' loss computes them."""
    logprobs = [logprobs_of(model, temperature, s.completion_ids.tolist()).astype(float) for s in batch.samples]
    arrays = random_arrays([s.term for s in batch.samples])
    arrays.logprobs = logprobs
    arrays.entropy, arrays.old, arrays.rollout = ([np.zeros(len(x)) for x in logprobs] for _ in range(3))
    arrays.reference = logprobs  # where no sum is stored, the reference is loaded and scores them
    arrays.weight = np.array([s.weight for s in batch.samples])
    stored = [s.reference_logprob for s in batch.samples]
    arrays.reference_sum = np.array([np.nan if value is None else value for value in stored])
    metrics = made.loss(arrays.tokens()).metrics
    total, count = metrics["dpo/margin"]
    return float(total / count), float(metrics["loss/total"][0])


@pytest.mark.parametrize(("model", "temperature"), [(0, 1.0), (0, 0.5), (1, 1.0), (1, 0.5)])
def test_before_the_first_update_stored_pairs_have_margin_0(tmp_path, model, temperature):
    """Whatever model at whatever temperature they came from: its own sums would give margins far from 0."""
    run(tmp_path / "first")[0].training_batch([sampled()], 0)
    path = str(tmp_path / "first" / "pairs.jsonl")
    again, said, scored = run(tmp_path / "again", model, temperature, dpo_pairs_path=path)
    same = (model, temperature) == (0, 1.0)
    batch = again.training_batch([empty()], 0)
    assert [(s.term, s.completion_ids.tolist()) for s in batch.samples] == RIGHT_AND_WRONG
    assert margin_and_loss(again, batch, model, temperature) == pytest.approx((0.0, math.log(2)), abs=1e-6)
    assert all(s.reference_logprob is not None for s in batch.samples)  # no reference policy is needed
    assert batch.metrics["pairs/scored"] == (0 if same else 1)
    assert said[0].startswith("1 of 1 pairs in") and len(said) == (1 if same else 2)
    for wanted, shown in ((model, "made with model.path=model-0, now model-1"), (temperature != 1.0, "now 0.5")):
        assert bool(wanted) == (shown in said[-1])
    # What the second run stored has the second model's sums: a third run of it computes none.
    path = str(tmp_path / "again" / "pairs.jsonl")
    third, _, scored = run(tmp_path / "third", model, temperature, dpo_pairs_path=path)
    assert third.training_batch([empty()], 0).metrics["pairs/scored"] == 0 and scored == []


def test_offline_pairs_are_stored_inspected_and_used_again(tmp_path):
    first, said, scored = run(tmp_path / "first", temperature=0.5)
    assert said == [] and first.rollout_ahead(0) == 10
    first.collect([sampled("b")], 0)
    before = first.training_batch([sampled()], 0)
    assert [s.reference_logprob is None for s in before.samples] == [False, False] and scored == [4]
    path = tmp_path / "first" / "pairs.jsonl"
    written = path.stat().st_mtime_ns
    first.training_batch([empty()], 1)
    assert path.stat().st_mtime_ns == written and scored == [4]
    stored = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["uid"], line["chosen_text"], line["question"]) for line in stored] == [
        ("b", RIGHT[0], "what is x"),
        ("a", RIGHT[0], "what is x"),
    ]
    assert stored[0]["made_with"]["settings"]["rollout.temperature"] == stored[0]["reference_temperature"] == 0.5
    again, _, _ = run(tmp_path / "again", temperature=0.5, dpo_pairs_path=str(path))
    assert again.rollout_ahead(0) == 0 and again.stores_reference
    batch = again.training_batch([empty("b"), empty("unseen")], 5)
    sums = [logprobs_of(0, 0.5, ids).sum() for _, ids in RIGHT_AND_WRONG]
    assert [s.reference_logprob for s in batch.samples] == pytest.approx(sums)
    assert batch.metrics["pairs/prompts_without"] == 1


def test_the_pairs_of_a_large_data_set_are_scored_in_parts(tmp_path, monkeypatch):
    """Each of which has its own bounded wait."""
    monkeypatch.setattr("expo_ray.algorithms.exp_dpo.SCORED_AT_ONCE", 4)
    first, _, scored = run(tmp_path / "first")
    first.collect([sampled(f"p{i}") for i in range(4)], 0)
    assert first.training_batch([sampled()], 0).metrics["pairs/scored"] == 5 and scored == [4, 4, 2]
    sums = [logprobs_of(0, 1.0, ids).sum() for _, ids in RIGHT_AND_WRONG]
    assert all([p.reference_chosen, p.reference_rejected] == pytest.approx(sums) for p in first.pairs)


def test_a_checkpoint_with_sums_of_another_temperature_forgets_them(tmp_path):
    first, _, _ = run(tmp_path / "first")
    first.training_batch([sampled()], 0)
    for temperature, known in ((1.0, True), (0.5, False)):
        resumed, _, _ = run(tmp_path / "resumed", temperature=temperature)
        resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
        samples = resumed.training_batch([empty()], 3).samples
        assert [s.reference_logprob is not None for s in samples] == [known, known]


def test_pairs_of_an_earlier_version_are_used_with_new_sums(tmp_path):
    old = {"uid": "a", "step": 0, "prompt_ids": [1, 2, 3], "chosen_ids": [1000, 1001, 1002]}
    old |= {"rejected_ids": [100, 101, 102, 103], "chosen_text": RIGHT[0], "rejected_text": "so it is 5"}
    old |= {"reference_chosen": -1.0, "reference_rejected": -9.0}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(old) + "\n")
    again, said, _ = run(tmp_path / "again", dpo_pairs_path=str(path))
    assert "an earlier version made pairs without saying with what" in said[1]
    assert margin_and_loss(again, again.training_batch([empty()], 0), 0, 1.0)[0] == pytest.approx(0)


def problem(uid: str = "a", **changes):
    prompt = group([], uid=uid).rollout.prompt
    ids = {key: changes.pop(key) for key in ("free_ids", "gold_ids") if key in changes}
    return replace(prompt, problem=replace(prompt.problem, **changes), **ids)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": [problem(question="what is y")]}, ["'what is x'", "'what is y' now", "use the data"]),
        ({"prompts": [problem(answers=("6",))]}, ["['5']", "['6'] now", "use the data"]),
        ({"prompts": [problem("other")]}, ["other problems (first a)", "1 of this run (first other)", "use the data"]),
        (
            {"prompts": [problem(free_ids=np.array([1, 2], np.int32))]},
            ["3 prompt tokens [1, 2, 3]", "2 tokens [1, 2]... now", "model.path=model-0"],
        ),
        ({"begins": (7,)}, ["ends with token 103", "[7] end one", "generation_config.json"]),
        ({"explanation_filter": True}, ["made with algo.explanation_filter=False", "now it is True"]),
        ({"explanation_scope": "all_wrong"}, ["use algo.explanation_scope=every"]),
        ({"name": "dpo_gt"}, ["has a self-explanation as its chosen completion, not a gold solution"]),
    ],
)
def test_pairs_that_do_not_fit_are_refused_in_a_sentence(tmp_path, changes, words):
    run(tmp_path / "first")[0].training_batch([sampled()], 0)
    path = tmp_path / "first" / "pairs.jsonl"
    with pytest.raises(DataError) as caught:
        run(tmp_path / "again", dpo_pairs_path=str(path), **changes)
    sentence = str(caught.value)
    assert sentence.startswith(f"algo.dpo_pairs_path={path}: ") and "\n" not in sentence
    assert all(word in sentence for word in words), sentence


def test_pairs_of_another_tokenizer_are_refused(tmp_path, monkeypatch):
    run(tmp_path / "first")[0].training_batch([sampled()], 0)
    monkeypatch.setattr(sys.modules[__name__], "decode", lambda ids: "other words")
    with pytest.raises(DataError, match=r"ids that were the text 'so it is 5' and are 'other words' now: use the tok"):
        run(tmp_path / "again", dpo_pairs_path=str(tmp_path / "first" / "pairs.jsonl"))


def test_gold_pairs_follow_the_solutions(tmp_path):
    first, _, _ = run(tmp_path / "first", name="dpo_gt")
    first.training_batch([sampled()], 0)
    path = str(tmp_path / "first" / "pairs.jsonl")
    assert run(tmp_path / "again", name="dpo_gt", dpo_pairs_path=path)[1]
    other = [problem(gold_ids=np.array([41, 42], np.int32))]
    with pytest.raises(DataError, match="had another gold solution than now"):
        run(tmp_path / "other", name="dpo_gt", prompts=other, dpo_pairs_path=path)


@pytest.mark.parametrize("text", ["", "not json\n", '{"uid": "a"}\n', "[1]\n", NO_IDS])
def test_bad_pair_files_are_refused(tmp_path, text):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        PairStore().read(path)


def algorithm(name: str = "exp_dpo", **keys):
    config = config_with(name=name, **keys)
    config.rollout.explanations_per_prompt = 4
    return make_algorithm(config)
