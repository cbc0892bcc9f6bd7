"""What training batches hold: weights, scopes, filters, refresh, and the limits in which one algorithm is another."""

import dataclasses
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from algorithm_cases import completion, config_with, group, restate

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.properties import SampleProperties
from expo_ray.messages import TrainingBatch

RIGHT = ("it follows that x is 5", "correct")
WRONG = ("it follows that x is 6", "wrong")
LEAK = ("since the answer is given as 5, x is 5", "correct")


def batch_of(groups, step=0, properties=None, explanations_per_prompt=1, **algo) -> TrainingBatch:
    config = config_with(**algo)
    config.rollout.explanations_per_prompt = explanations_per_prompt
    algorithm = make_algorithm(config)
    algorithm.attach(None, None, restate)
    return algorithm.training_batch(groups, step, properties)


def terms(batch: TrainingBatch) -> Counter:
    return Counter(sample.term for sample in batch.samples)


def same_samples(left: TrainingBatch, right: TrainingBatch) -> None:
    assert len(left.samples) == len(right.samples)
    for one, other in zip(left.samples, right.samples, strict=True):
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        ("sequence_mean", [1 / (4 * 2), 1 / (4 * 4), 1 / (4 * 6), 1 / (4 * 8)]),
        ("token_mean", [1 / 20] * 4),
        ("dr_grpo", [1 / (4 * 16)] * 4),
    ],
)
def test_policy_weights(normalisation, expected):
    groups = [group(["correct", "wrong"], [2, 4]), group(["wrong", "correct"], [6, 8])]
    batch = batch_of(groups, name="grpo", loss_normalisation=normalisation)
    assert [s.weight for s in batch.samples] == pytest.approx(expected)
    assert [s.advantage for s in batch.samples] == pytest.approx([1, -1, -1, 1])
    assert batch.samples[0].rollout_logprobs is groups[0].rollout.completions[0].logprobs


def test_failures_are_in_neither_group_nor_normaliser():
    batch = batch_of([group(["correct", "timeout", "wrong", "error"], [2, 9, 4, 9])], name="grpo")
    assert [s.weight for s in batch.samples] == pytest.approx([1 / (2 * 2), 1 / (2 * 4)])
    assert [s.advantage for s in batch.samples] == pytest.approx([1, -1])


@pytest.mark.parametrize("mode", ["drop", "refill"])
def test_dropped_groups_keep_their_sft_term(mode):
    groups = [group(["correct", "wrong"], uid="a"), group(["wrong", "wrong"], uid="b")]
    kept = batch_of(groups, dynamic_sampling="none")
    dropped = batch_of(groups, dynamic_sampling=mode)
    assert terms(kept) == {"policy": 4, "sft": 2}
    assert terms(dropped) == {"policy": 2, "sft": 2}
    assert [s.weight for s in dropped.samples if s.term == "policy"] == pytest.approx([1 / (2 * 4)] * 2)
    assert [s.weight for s in dropped.samples if s.term == "sft"] == [s.weight for s in kept.samples if s.term == "sft"]
    assert dropped.metrics["groups/dropped"] == 1


def test_sft_weights_average_over_a_prompts_explanations_and_over_all_prompts():
    groups = [
        group(["wrong"], explanations=[RIGHT, RIGHT], uid="two"),
        group(["wrong"], explanations=[LEAK], uid="none"),
        group(["wrong"], explanations=[RIGHT], uid="one"),
    ]
    mean = [s for s in batch_of(groups, beta=0.5).samples if s.term == "sft"]
    assert [len(s.completion_ids) for s in mean] == [3, 4, 3]
    assert [s.weight for s in mean] == pytest.approx([0.5 / (3 * 2 * 3), 0.5 / (3 * 2 * 4), 0.5 / (3 * 1 * 3)])
    summed = [s for s in batch_of(groups, beta=0.5, sft_reduction="sum").samples if s.term == "sft"]
    assert [s.weight for s in summed] == pytest.approx([0.5 / 6, 0.5 / 6, 0.5 / 3])


def test_explained_target_is_the_free_prompt_and_the_sampled_ids():
    groups = [group(["wrong"])]
    (sample,) = [s for s in batch_of(groups).samples if s.term == "sft"]
    assert sample.prompt_ids.tolist() == [1, 2, 3]
    assert sample.completion_ids.tolist() == [1000, 1001, 1002]
    assert sample.rollout_logprobs is None and sample.advantage == 0


@pytest.mark.parametrize(
    ("name", "limit"),
    [("exp_grpo", {"beta": 0.0}), ("exp_grpo", {"explanations_per_prompt": 0}), ("sft_gt_grpo", {"beta": 0.0})],
)
def test_limits_are_grpo_exactly(name, limit):
    explanations = [] if "explanations_per_prompt" in limit else [RIGHT]
    groups = [group(o, explanations=explanations) for o in (["correct", "wrong"], ["wrong", "wrong"])]
    plain = batch_of(groups, name="grpo")
    same_samples(batch_of(groups, name=name, **limit), plain)
    config = config_with(name=name, **{k: v for k, v in limit.items() if k == "beta"})
    config.rollout.explanations_per_prompt = limit.get("explanations_per_prompt", 1)
    assert not make_algorithm(config).needs_explanations(0)


def test_all_wrong_batch_is_exactly_beta_times_the_sft_term():
    """Advantages are exactly 0, and the SFT samples' weights are beta times those at beta = 1."""
    groups = [group(["wrong"] * 4, uid=str(i)) for i in range(3)]
    batch, unit = batch_of(groups, beta=0.25), batch_of(groups, beta=1.0, name="explanation_sft")
    assert all(s.advantage == 0.0 for s in batch.samples if s.term == "policy")
    scaled = [s.weight for s in batch.samples if s.term == "sft"]
    assert scaled == [0.25 * s.weight for s in unit.samples]
    assert terms(unit) == {"sft": 3}


@pytest.mark.parametrize(
    ("scope", "expected"), [("every", ["a", "b", "c", "d"]), ("all_wrong", ["b"]), ("below", ["b", "c"])]
)
def test_scopes(scope, expected):
    groups = [
        group(["correct", "wrong"], uid="a"),
        group(["wrong", "wrong"], uid="b"),
        group(["correct", "wrong", "wrong", "wrong"], uid="c"),
        group(["timeout", "error"], uid="d"),
    ]
    for number, g in enumerate(groups):
        g.rollout.explanations[0].token_ids[:] = number
    batch = batch_of(groups, explanation_scope=scope, explanation_threshold=0.5)
    trained = ["abcd"[s.completion_ids[0]] for s in batch.samples if s.term == "sft"]
    assert trained == expected
    assert batch.metrics["explanations/prompts_in_scope"] == len(expected)


@pytest.mark.parametrize(
    ("verify", "leaks", "kept"),
    [(False, True, [3, 4]), (True, True, [3]), (False, False, [3, 4, 5]), (True, False, [3, 5])],
)
def test_filters_and_counts(verify, leaks, kept):
    groups = [group(["wrong"], explanations=[RIGHT, WRONG, LEAK])]
    filters = {"explanation_filter": verify, "leak_filter": leaks, "explanation_answer": "own"}
    batch = batch_of(groups, explanations_per_prompt=3, **filters)
    assert [len(s.completion_ids) for s in batch.samples if s.term == "sft"] == kept
    counts = {k: batch.metrics[f"explanations/{k}"] for k in ("sampled", "correct", "leaked", "kept", "trained")}
    assert counts == {"sampled": 3, "correct": 2, "leaked": 1, "kept": len(kept), "trained": len(kept)}


def sampled(outcome: str, length: int, finish_reason: str = "stop"):
    """A group whose explanation has this verdict, the ids 50, 51, ... and ended like this."""
    found = group(["wrong"], explanations=[("it follows that x is 7", outcome)], uid=f"{outcome}-{finish_reason}")
    made = completion(length, "it follows that x is 7", 50, finish_reason)
    return dataclasses.replace(found, rollout=dataclasses.replace(found.rollout, explanations=[made]))


@pytest.mark.parametrize(
    ("answer", "cut_off", "targets", "counts"),
    [
        ("gold", "drop", [[50, 51, 52, 53], [50, 51, 52, 7, 8, 6], None, None], (1, 2)),
        ("own", "drop", [[50, 51, 52, 53], [50, 51, 52, 53, 54], None, None], (0, 2)),
        ("gold", "keep", [[50, 51, 52, 53], [50, 51, 52, 7, 8, 6], [50, 7, 8, 6], [50, 51, 7, 8, 6]], (3, 0)),
        ("own", "keep", [[50, 51, 52, 53], [50, 51, 52, 53, 54], [50, 51, 52], [50, 51, 52, 53]], (0, 0)),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_target_is_the_chain_and_the_gold_answer(answer, cut_off, targets, counts, reduction):
    """c~ -> a*: a correct explanation as sampled, else its chain and the gold statement; beta / (P |target|) each."""
    groups = [sampled("correct", 4), sampled("wrong", 5), sampled("no_answer", 3, "length")]
    groups.append(sampled("correct", 4, "length"))
    keys = {"explanation_answer": answer, "explanation_cut_off": cut_off, "sft_reduction": reduction}
    batch = batch_of(groups, beta=0.3, kl_conditioned_coef=1.0, **keys)
    made = [s for s in batch.samples if s.term == "sft"]
    wanted = [ids for ids in targets if ids is not None]
    assert [s.completion_ids.tolist() for s in made] == wanted
    lengths = [len(ids) if reduction == "mean" else 1 for ids in wanted]
    np.testing.assert_allclose([s.weight for s in made], 0.3 / (4 * np.array(lengths, np.float64)), rtol=1e-15)
    assert {s.prompt_ids.tobytes() for s in made} == {groups[0].rollout.prompt.free_ids.tobytes()}
    named = ("answer_replaced", "cut_off_dropped", "truncated", "trained")
    assert tuple(batch.metrics[f"explanations/{name}"] for name in named) == (*counts, 2, len(wanted))
    conditioned = [s.completion_ids.tolist() for s in batch.samples if s.term == "conditioned"]
    assert conditioned == [g.rollout.explanations[0].token_ids.tolist() for g in groups]  # as sampled, whatever is kept


@pytest.mark.parametrize(("answer", "chosen"), [("gold", [50, 51, 52, 7, 8, 6]), ("own", [50, 51, 52, 53, 54])])
def test_dpo_prefers_the_same_target(answer, chosen):
    batch = batch_of([sampled("wrong", 5)], name="exp_dpo", explanation_answer=answer)
    assert [s.completion_ids.tolist() for s in batch.samples if s.term == "chosen"] == [chosen]


@pytest.mark.parametrize(("keep", "kept"), [("all", [3, 4, 5, 6]), ("likely", [3]), ("rise", [5]), ("both", [4])])
def test_keeping_one_of_several(keep, kept):
    """Ranks by likelihood and rise: (0, 3), (1, 1), (3, 0), (2, 2)."""
    groups = [group(["wrong"], explanations=[RIGHT] * 4)]
    figures = ((-0.1, 0.1), (-0.2, 2.9), (-2.0, 3.0), (-1.0, 0.5))
    measured = [SampleProperties(likely, 0.0, rise, 0.0) for likely, rise in figures]
    batch = batch_of(groups, properties=[measured], explanations_per_prompt=4, explanation_keep=keep)
    assert [len(s.completion_ids) for s in batch.samples if s.term == "sft"] == kept


def test_both_ranks_prefer_the_likelier_on_a_tie():
    groups = [group(["wrong"], explanations=[RIGHT] * 2)]
    measured = [SampleProperties(-2.0, 0.0, 3.0, 0.0), SampleProperties(-1.0, 0.0, 2.0, 0.0)]
    batch = batch_of(groups, properties=[measured], explanations_per_prompt=2, explanation_keep="both")
    assert [len(s.completion_ids) for s in batch.samples if s.term == "sft"] == [4]


def test_choice_without_properties_is_refused():
    config = config_with(explanation_keep="likely")
    config.rollout.explanations_per_prompt = 2
    algorithm = make_algorithm(config)
    assert algorithm.needs_properties(0)
    with pytest.raises(ValueError, match="explanation_keep=likely"):
        algorithm.training_batch([group(["wrong"], explanations=[RIGHT] * 2)], 0)


def test_gold_solutions_take_the_explanations_place():
    groups = [group(["wrong"], uid="a"), group(["correct"], uid="b", gold=False)]
    batch = batch_of(groups, name="sft_gt_grpo", beta=0.1)
    (sample,) = [s for s in batch.samples if s.term == "sft"]
    assert sample.completion_ids.tolist() == [41, 42, 43, 44, 45]
    assert sample.weight == pytest.approx(0.1 / (2 * 5))
    assert batch.metrics["gold/prompts_without"] == 1


def test_conditioned_samples_stand_behind_the_conditioned_prompt():
    groups = [group(["wrong"], explanations=[RIGHT, LEAK])]
    batch = batch_of(groups, kl_conditioned_coef=0.1, explanations_per_prompt=2)
    conditioned = [s for s in batch.samples if s.term == "conditioned"]
    assert [s.prompt_ids.tolist() for s in conditioned] == [[1, 2, 9, 3]] * 2
    assert [s.weight for s in conditioned] == pytest.approx([1 / (2 * 3), 1 / (2 * 4)])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.4, 0.4, 0.4]), ("linear", [0.4, 0.2, 0.04]), ("cosine", [0.4, 0.2, None])],
)
def test_beta_schedule(schedule, expected):
    """Ten steps: the first, the middle, and the last one."""
    for step, beta in zip((0, 5, 9), expected, strict=True):
        batch = batch_of([group(["wrong"])], step=step, beta=0.4, beta_schedule=schedule)
        wanted = beta if beta is not None else 0.2 * (1 + np.cos(np.pi * 0.9))
        assert batch.beta == pytest.approx(wanted)
        assert batch.samples[-1].weight == pytest.approx(wanted / 3)


@pytest.mark.parametrize(
    ("refresh", "ahead"), [(1, [1] * 10), (4, [4, 0, 0, 0, 4, 0, 0, 0, 2, 0]), (0, [10] + [0] * 9)]
)
def test_refresh_periods(refresh, ahead):
    algorithm = make_algorithm(config_with(explanation_refresh_steps=refresh))
    assert [algorithm.explanations_ahead(step) for step in range(10)] == ahead


def test_stored_explanations_serve_later_steps_and_survive_a_checkpoint():
    config = config_with(explanation_refresh_steps=0)
    algorithm = make_algorithm(config)
    algorithm.attach(None, None, restate)
    early = [group([], [], [of], uid=uid) for uid, of in (("late", WRONG), ("leaky", LEAK))]
    counts = algorithm.collect(early, 0)
    assert (counts["explanations/kept"], counts["explanations/answer_replaced"]) == (1, 1)
    resumed = make_algorithm(config)
    resumed.load_state_dict(json.loads(json.dumps(algorithm.state_dict())))
    asked = [group(["wrong"], explanations=[], uid=uid) for uid in ("late", "leaky", "never")]
    for one in (algorithm, resumed):
        batch = one.training_batch(asked, 3)
        (sample,) = [s for s in batch.samples if s.term == "sft"]
        assert sample.completion_ids.tolist() == [1000, 7, 8, 6] and sample.completion_ids.dtype == np.int32
        assert sample.weight == pytest.approx(0.04 / (3 * 4))
        assert batch.metrics["explanations/prompts_without"] == 2
    assert "leaky" in resumed.store and "never" not in resumed.store


def test_explanations_of_an_earlier_version_are_trained_on_as_sampled():
    algorithm = make_algorithm(config_with(explanation_refresh_steps=0))
    stored = {"late": [{"token_ids": [4, 5], "text": "x is 5", "step": 0}]}
    algorithm.load_state_dict({"explanations": stored, "sampled_to": 8})
    batch = algorithm.training_batch([group(["wrong"], explanations=[], uid="late")], 3)
    assert [s.completion_ids.tolist() for s in batch.samples if s.term == "sft"] == [[4, 5]]


def test_the_same_problem_twice_in_a_step_keeps_both_explanations():
    first, second = group(["wrong"], uid="same"), group(["wrong"], uid="same")
    second.rollout.explanations[0].token_ids[:] = 77
    samples = [s for s in batch_of([first, second]).samples if s.term == "sft"]
    assert [s.completion_ids[0] for s in samples] == [1000, 77]


def test_nothing_to_train_on_is_an_empty_batch():
    assert batch_of([group(["wrong"] * 2)], name="grpo", dynamic_sampling="drop").samples == []


def test_batches_are_made_without_torch():
    code = (
        "import sys; from expo_ray.config.schema import Config; from expo_ray.algorithms import make_algorithm;"
        "make_algorithm(Config()).training_batch([], 0); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
