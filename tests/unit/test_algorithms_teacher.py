"""OPSD, SDPO and HDPO: whose teacher sees what, and the signal of a token, in float64 NumPy from a made-up policy."""

from types import SimpleNamespace

import numpy as np
import pytest
from algorithm_cases import config_with, group, ids, restate

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.base import Inputs
from expo_ray.algorithms.hdpo import Hdpo
from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.config.resources import Resources
from expo_ray.messages import Likeliest, TrainingBatch
from expo_ray.preflight.values import check_config
from expo_ray.prompts import PromptBuilder
from expo_ray.world.running_totals import problems
from expo_ray.world.tokenizer import build_tokenizer

VOCABULARY = 6
HERE = Resources("here", 1, 64, 500, 8, 79)
WRONG = ("it follows that x is 6", "wrong")
RIGHT = ("it follows that x is 5", "correct")


class OwnHdpo(Hdpo):
    """A user's."""


def distributions(context, scored, temperature: float, reference: bool) -> np.ndarray:
    """[T, V] probabilities of a policy that looks at the whole context, and of another one as its reference."""
    rows, before = [], list(map(int, context))
    for token in map(int, scored):
        logits = np.cos(np.arange(1, VOCABULARY + 1) * (1.3 + sum(before) % 11 + 5 * reference)) * 2 / temperature
        rows.append(np.exp(logits) / np.exp(logits).sum())
        before.append(token)
    return np.array(rows)


class Policy:
    """The learners' scoring, of tokens by their id modulo the vocabulary."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, sequences, temperature=1.0, reference=False, likeliest=0):
        self.calls.append(len(sequences))
        found = []
        for context, scored in sequences:
            rows = distributions(context, scored, temperature, reference)
            order = np.argsort(-rows, axis=-1)[:, :likeliest]
            own = np.log(rows[np.arange(len(rows)), scored % VOCABULARY]).astype(np.float32)
            top = np.log(np.take_along_axis(rows, order, -1)).astype(np.float32)
            found.append(Likeliest(order.astype(np.int32), top) if likeliest else own)
        return found


def told(problems, solutions=None) -> list[np.ndarray]:
    return [ids(1, 2, 70 + len(text), 3) for text in solutions or [problem.answers[0] for problem in problems]]


def batch_of(name: str, groups, builder=told, room: int = 0, **algo) -> tuple[TrainingBatch, Policy]:
    config, policy = config_with(name=name, **algo), Policy()
    config.rollout.temperature = 0.8
    algorithm = make_algorithm(config)
    prompts = [of.rollout.prompt for of in groups]
    algorithm.begin(Inputs("model", prompts, (0,), str, SimpleNamespace(told=builder), model_context=room))
    algorithm.attach(None, policy, restate)
    return algorithm.training_batch(groups, 0), policy


def rise(prompt, context, scored, reference: bool = False) -> np.ndarray:
    """log p_teacher(y_t | context, y_<t) - log p(y_t | prompt, y_<t) at temperature 0.8."""
    places, tokens = np.arange(len(scored)), scored % VOCABULARY
    teacher = distributions(context, scored, 0.8, reference)[places, tokens]
    return np.log(teacher) - np.log(distributions(prompt, scored, 0.8, False)[places, tokens])


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("context", ["answer", "solution"])
def test_opsd_adds_what_a_token_rises_by_when_the_teacher_is_told(reference, context):
    groups = [group(["correct", "wrong", "timeout"], [3, 5, 4]), group(["wrong", "wrong"], [2, 2])]
    keys = {"teacher": "reference" if reference else "current", "teacher_context": context, "policy_coef": 0.5}
    sampled = {
        "distill_divergence": "sampled",
        "distill_coef": 0.3,
        "distill_clip": 1.0,
        "loss_normalisation": "token_mean",
    }
    batch, policy = batch_of("opsd", groups, **keys, **sampled)
    assert policy.calls == ([5, 5] if reference else [10])
    shown = ids(1, 2, 9, 3) if context == "answer" else told(None, ["x is 5"])[0]
    completions = [c.token_ids for of in groups for c in of.rollout.completions]
    advantages = [0.5, -0.5, 0.0, 0.0, 0.0]  # half of 1 and -1; none without a verdict, and where all are wrong
    assert len(batch.samples) == 5
    clipped = 0
    for sample, tokens, advantage in zip(batch.samples, completions, advantages, strict=True):
        signal = rise(ids(1, 2, 3), shown, tokens, reference)
        clipped += (np.abs(signal) > 1).sum()
        np.testing.assert_allclose(sample.token_advantages, advantage + 0.3 * np.clip(signal, -1, 1), atol=1e-5)
        assert sample.term == "policy" and sample.weight == pytest.approx(1 / 16) and sample.teacher is None
    assert 0 < clipped < 16


@pytest.mark.parametrize("reference", [False, True])
def test_opsd_brings_the_teachers_likeliest_tokens(reference):
    groups = [group(["correct", "wrong"], [3, 5])]
    batch, _ = batch_of("opsd", groups, teacher="reference" if reference else "current", distill_top_k=4)
    for sample, completion in zip(batch.samples, groups[0].rollout.completions, strict=True):
        rows = distributions(ids(1, 2, 9, 3), completion.token_ids, 0.8, reference)
        for t, row in enumerate(rows):
            order = sorted(range(VOCABULARY), key=lambda token: -row[token])[:4]
            assert sample.teacher.ids[t].tolist() == order
            np.testing.assert_allclose(sample.teacher.logprobs[t], np.log(row[order]), atol=1e-6)
        assert sample.token_advantages is None and sample.advantage == 0


def test_a_teacher_that_is_told_nothing_gives_no_advantage():
    groups = [group(["correct", "wrong"], [3, 5])]
    silent = lambda problems, solutions=None: [ids(1, 2, 3) for _ in problems]  # noqa: E731
    keys = {"teacher_context": "solution", "distill_divergence": "sampled"}
    batch, _ = batch_of("opsd", groups, silent, **keys)
    assert all(not sample.token_advantages.any() for sample in batch.samples)
    fixed, _ = batch_of("opsd", groups, silent, **keys, teacher="reference")
    assert all(sample.token_advantages.all() for sample in fixed.samples)


@pytest.mark.parametrize(("coef", "loads"), [(0.0, False), (1.0, True)])
def test_only_a_teacher_that_is_asked_loads_the_reference_policy(coef, loads):
    config = config_with(name="opsd", teacher="reference", distill_coef=coef, policy_coef=1.0)
    assert make_algorithm(config).loads_reference is loads


def same(left: TrainingBatch, right: TrainingBatch) -> None:
    assert len(left.samples) == len(right.samples)
    for one, other in zip(left.samples, right.samples, strict=True):
        assert one.completion_ids is other.completion_ids
        fields = ("term", "weight", "advantage", "token_advantages", "teacher", "unit")
        assert [getattr(one, f) for f in fields] == [getattr(other, f) for f in fields]


@pytest.mark.parametrize("name", ["opsd", "sdpo", "hdpo"])
def test_without_distillation_the_batch_is_grpos(name):
    groups = [group(["correct", "wrong"], [3, 5]), group(["wrong", "wrong"], [2, 4])]
    batch, policy = batch_of(name, groups, distill_coef=0.0, policy_coef=1.0)
    same(batch, batch_of("grpo", groups)[0])
    assert policy.calls == []


def test_sdpo_shows_a_correct_completion_other_than_the_students_own():
    mixed = group(["wrong", "correct", "correct"], [3, 4, 5])
    for index, completion in enumerate(mixed.rollout.completions):
        object.__setattr__(completion, "text", "x" * (index + 1))
    lonely, hopeless = group(["correct", "wrong"], uid="lonely"), group(["wrong", "wrong"], uid="hopeless")
    object.__setattr__(lonely.rollout.completions[0], "text", "x" * 9)
    batch, _ = batch_of("sdpo", [mixed, lonely, hopeless], distill_divergence="sampled")
    lengths = [2, 3, 2, None, 9, None, None]  # of the text that each teacher sees
    completions = [c.token_ids for of in (mixed, lonely, hopeless) for c in of.rollout.completions]
    for sample, length, tokens in zip(batch.samples, lengths, completions, strict=True):
        if length is None:
            assert sample.token_advantages is None and sample.advantage == 0
        else:
            signal = rise(ids(1, 2, 3), ids(1, 2, 70 + length, 3), tokens)
            np.testing.assert_allclose(sample.token_advantages, signal, atol=1e-5)
    assert (batch.metrics["distill/samples"], batch.metrics["distill/without_teacher"]) == (4, 3)


def test_sdpo_shows_what_follows_the_thought():
    thinking = group(["wrong", "correct", "correct"], [3, 4, 5])
    texts = ("x", "<think>\n", "<think>\nab\n</think>\n\nx is 5\n")
    for completion, text in zip(thinking.rollout.completions, texts, strict=True):
        object.__setattr__(completion, "text", text)
    seen = []
    batch_of("sdpo", [thinking], lambda _, solutions: seen.extend(solutions) or told(None, solutions))
    assert seen == ["x is 5", "x is 5"]  # nothing for the third, whose only model ends within its thought


def test_a_completion_that_does_not_fit_behind_what_its_teacher_sees_has_none():
    groups = [group(["correct", "wrong", "wrong"], [3, 5, 4])]
    batch, policy = batch_of("opsd", groups, room=8)  # four ids are shown
    assert [sample.teacher is not None for sample in batch.samples] == [True, False, True] and policy.calls == [2]
    counts = [batch.metrics[f"distill/{name}"] for name in ("samples", "without_teacher", "too_long")]
    assert counts == [2, 1, 1]


def test_hdpo_distils_correct_explanations_of_prompts_whose_group_is_all_wrong():
    groups = [
        group(["wrong", "wrong"], explanations=[WRONG, RIGHT, RIGHT], uid="a"),
        group(["correct", "wrong"], explanations=[RIGHT], uid="b"),
        group(["wrong", "wrong"], explanations=[WRONG], uid="c"),
    ]
    keys = {"explanation_scope": "all_wrong", "explanation_filter": True, "distill_top_k": 3}
    batch, policy = batch_of("hdpo", groups, **keys)
    distilled = [sample for sample in batch.samples if sample.term == "distill"]
    told_more = groups[0].rollout.explanations[1:]
    assert policy.calls == [2] and len(batch.samples) == 6 + 2
    for sample, explanation in zip(distilled, told_more, strict=True):
        assert sample.prompt_ids.tolist() == [1, 2, 3] and sample.completion_ids is explanation.token_ids
        rows = distributions(ids(1, 2, 9, 3), explanation.token_ids, 0.8, False)
        np.testing.assert_allclose(sample.teacher.logprobs, np.log(-np.sort(-rows)[:, :3]), atol=1e-6)
        assert sample.weight == pytest.approx(1 / (3 * 2 * len(explanation.token_ids)))  # 3 prompts, 2 explanations
    assert batch.metrics["explanations/prompts_in_scope"] == 2 and batch.metrics["explanations/prompts_without"] == 1


def test_hdpo_holds_the_explaining_policy_by_a_kl():
    """All explanations of the prompts in scope, right or not, after the prompt with the answer; the rest stays."""
    groups = [
        group(["wrong", "wrong"], explanations=[WRONG, RIGHT], uid="a"),
        group(["correct", "wrong"], explanations=[RIGHT], uid="b"),
    ]
    keys = {"explanation_scope": "all_wrong", "explanation_filter": True, "distill_top_k": 3}
    without, _ = batch_of("hdpo", groups, **keys)
    batch, _ = batch_of("hdpo", groups, **keys, kl_conditioned_coef=0.5)
    held = [sample for sample in batch.samples if sample.term == "conditioned"]
    assert [s.term for s in batch.samples if s.term != "conditioned"] == [s.term for s in without.samples]
    rollout = groups[0].rollout
    assert [s.completion_ids for s in held] == [e.token_ids for e in rollout.explanations]
    assert all(s.prompt_ids.tolist() == rollout.prompt.conditioned_ids.tolist() for s in held)
    assert [s.weight for s in held] == [1 / (2 * len(s.completion_ids)) for s in held]
    assert batch.metrics["explanations/trained"] == without.metrics["explanations/trained"] == 1
    alone, policy = batch_of("hdpo", groups, **keys, kl_conditioned_coef=0.5, distill_coef=0.0)
    same(alone, batch_of("exp_grpo", groups, **keys, kl_conditioned_coef=0.5, beta=0.0)[0])
    assert [s.term for s in alone.samples] == ["policy"] * 4 + ["conditioned"] * 2 and policy.calls == []


def test_a_problem_without_a_solution_has_none_to_show():
    with pytest.raises(ConfigError, match=r"1 of 2 have none \(the first: q\): use algo.teacher_context=answer"):
        batch_of("opsd", [group(["wrong"]), group(["wrong"], uid="q", gold=False)], teacher_context="solution")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["algo=opsd", "algo.distill_coef=0"],
            "algo=opsd with algo.distill_coef=0 and algo.policy_coef=0 trains on nothing",
        ),
        (["algo=hdpo", "algo.distill_divergence=sampled"], "or algo=exp_grpo, which raises those tokens' likelihood"),
        (
            ["algo=opsd", "algo.distill_divergence=sampled", "algo.distill_top_k=5"],
            "with algo.distill_divergence=sampled",
        ),
        (["algo=sdpo", "algo.teacher_context=solution"], "does nothing with algo=sdpo"),
        (["algo=opsd", "algo.policy_loss=gspo"], "algo.policy_loss=gspo does nothing with algo.policy_coef=0"),
        (["algo=sdpo", "algo.importance_correction=none"], "does nothing with algo.policy_coef=0"),
        (["algo=sdpo", "reward.weights=[0.5]"], "does nothing with algo.policy_coef=0"),
        (
            ["algo=test_algorithms_teacher:OwnHdpo", "algo.distill_divergence=sampled"],
            "needs tokens of the policy's own",
        ),
    ],
)
def test_settings_without_an_effect_are_refused(overrides, sentence):
    with pytest.raises(ConfigError) as caught:
        check_config(compose_config(["experiment=demo", "dry_run=true", *overrides]), HERE)
    assert sentence in str(caught.value)


def test_a_prompt_shows_an_answer_or_a_solution():
    builder = PromptBuilder(build_tokenizer(), "auto", "toy")
    problem = next(iter(problems("train", [2], 40, 0)))
    (answered,), (solved,) = builder.told([problem]), builder.told([problem], ["3+4=7;A:75."])
    assert builder.decode(answered.tolist()) == f"H:{problem.answers[0]}?Q:{problem.question}?E:"
    assert builder.decode(solved.tolist()) == f"H:75?Q:{problem.question}?E:"
    assert answered.tolist() == builder([problem])[0].conditioned_ids.tolist() and builder.told([]) == []
