"""NuRL (2509.25666) and POPE (2601.18779): who is asked what, the advantages of the groups, and their limits."""

import json
from dataclasses import replace

import numpy as np
import pytest
from algorithm_cases import Builder, completion, config_with, group, inputs, restate, score
from test_algorithms_batches import same_samples

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.explanations import in_scope
from expo_ray.algorithms.pope import beginning
from expo_ray.messages import Group, Rollout, Verdict

NURL = {"name": "nurl", "explanation_scope": "all_wrong", "explanation_refresh_steps": 0, "explanation_filter": True}
POPE = {"name": "pope", "explanation_scope": "all_wrong"}


class Engines:
    """Samples what is asked: a hint, or completions of which the second is right."""

    def __init__(self, hint: str = "add from the left", reason: str = "stop") -> None:
        self.hint, self.reason, self.asked = hint, reason, []

    def __call__(self, requests) -> list[Group]:
        self.asked += [(r.prompt.free_ids.tolist(), r.samples, r.explanations) for r in requests]
        found = []
        for request in requests:
            made = [completion(4 + k, self.hint, 10 * k, self.reason) for k in range(request.samples)]
            verdicts = [Verdict("correct" if k == 1 else "wrong") for k in range(request.samples)]
            found.append(Group(Rollout(request.prompt, made, []), verdicts, []))
        return found


def algorithm_of(groups, context=1000, **algo):
    config = config_with(**algo)
    algorithm = make_algorithm(config)
    algorithm.begin(replace(inputs([each.rollout.prompt for each in groups]), context=context))
    algorithm.attach(None, score, restate)
    algorithm.explanations_ahead(0)
    return algorithm


def mixed():
    return [group(["wrong"] * 4, uid="hard"), group(["correct", "wrong", "wrong", "wrong"], uid="easy")]


def test_nurl_draws_all_but_one_again_and_compares_them_with_the_one():
    engines, groups = Engines(), mixed()
    algorithm = algorithm_of(groups, **NURL)
    groups, counts = algorithm.guide(groups, 0, engines)
    # The hint is asked for with the explanation's text (22 characters), and shown (17) to G - 1 completions.
    assert engines.asked == [([1, 2, 72, 22, 3], 1, 0), ([1, 2, 71, 17, 3], 3, 0)]
    assert groups[0].guided is not None and groups[1].guided is None
    assert (counts["hints/written"], counts["guided/prompts"], counts["guided/correct"]) == (1, 1, 1)
    batch = algorithm.training_batch(groups, 0)
    hard, easy = batch.samples[:4], batch.samples[4:]
    assert [s.prompt_ids.tolist() for s in hard] == [[1, 2, 3], *[[1, 2, 71, 17, 3]] * 3]
    rewards = np.array([0.0, 0.0, 1.0, 0.0])  # one plain completion, three with the hint, the second right
    np.testing.assert_allclose([s.advantage for s in hard], (rewards - rewards.mean()) / rewards.std(), rtol=1e-12)
    assert len(easy) == 4 and easy[0].advantage == pytest.approx(3**0.5)
    lengths = [4, 4, 5, 6, *[4] * 4]
    assert [s.weight for s in batch.samples] == pytest.approx([1 / (8 * n) for n in lengths])


def test_what_is_drawn_again_without_a_verdict_is_counted():
    class Failing(Engines):
        def __call__(self, requests):
            return [replace(g, verdicts=[*g.verdicts[:-1], Verdict("timeout")]) for g in super().__call__(requests)]

    counts = algorithm_of(mixed(), **POPE).guide(mixed(), 0, Failing())[1]
    assert (counts["guided/sampled"], counts["guided/left_out"]) == (4, 1)


def test_without_hints_nurl_is_grpo_exactly():
    """No explanation is kept, or every hint tells the answer, or there is no room: GRPO, sample for sample."""
    plain = algorithm_of(mixed(), name="grpo").training_batch(mixed(), 0)
    leaking, crowded = Engines("the answer is 5"), Engines()
    unkept = [group(["wrong"] * 4, uid="hard", explanations=[("it is 6", "wrong")]), mixed()[1]]
    for groups, engines, context in ((unkept, Engines(), 1000), (mixed(), leaking, 1000), (mixed(), crowded, 16 + 4)):
        algorithm = algorithm_of(groups, context, **NURL)
        found, counts = algorithm.guide(groups, 0, engines)
        assert counts["guided/prompts"] == 0
        same_samples(algorithm.training_batch(found, 0), plain)
    leaks = algorithm_of(mixed(), **NURL).guide(mixed(), 0, leaking)[1]
    assert leaks["hints/leaked"] == 1 and leaks["hints/written"] == 0


THOUGHT = "<think>\nshall I say 5?\n</think>\n\n"


@pytest.mark.parametrize(
    ("hint", "reason", "shown", "counted"),
    [
        (f"{THOUGHT}it is in the 15 digits", "stop", len("it is in the 15 digits"), "written"),
        (f"{THOUGHT}say 5.", "stop", None, "leaked"),
        (THOUGHT, "stop", None, "empty"),
        ("<think>\nshall I", "length", None, "empty"),
        ("add from the", "length", None, "empty"),
    ],
)
def test_a_hint_is_what_follows_the_thought_and_tells_the_answer_only_as_a_word(hint, reason, shown, counted):
    hard = group(["wrong"] * 4, explanations=[(f"{THOUGHT}x is 5", "correct")])
    engines = Engines(hint, reason)
    counts = algorithm_of([hard], **NURL, leak_filter=True).guide([hard], 0, engines)[1]
    assert engines.asked[0] == ([1, 2, 72, len("x is 5"), 3], 1, 0)
    assert [prompt[3] for prompt, *_ in engines.asked[1:]] == ([] if shown is None else [shown])
    found = {name: counts[f"hints/{name}"] for name in ("written", "leaked", "empty", "too_long")}
    assert found == {name: float(name == counted) for name in found}


@pytest.mark.parametrize(("period", "asked_again"), [(0, False), (2, True)])
def test_a_hint_is_kept_for_a_period_and_in_the_checkpoint(period, asked_again):
    algorithm = algorithm_of(mixed(), **NURL | {"explanation_refresh_steps": period})
    groups, _ = algorithm.guide(mixed(), 0, Engines())
    algorithm.training_batch(groups, 0)
    resumed = algorithm_of(mixed(), **NURL | {"explanation_refresh_steps": period})
    resumed.load_state_dict(json.loads(json.dumps(algorithm.state_dict())))
    for step, again in ((1, False), (2, asked_again)):
        resumed.explanations_ahead(step)
        assert resumed.skips_explanations("hard") is not again
        engines = Engines()
        resumed.guide(mixed(), step, engines)
        assert (engines.asked[0][0][2] == 72) is again


def test_with_async_steps_a_hint_counts_from_the_step_that_is_surely_sampled_after_it():
    algorithm = algorithm_of(mixed(), **NURL)
    algorithm.config.trainer.async_steps = 1
    first, _ = algorithm.guide(mixed(), 0, Engines("one"))
    ahead, _ = algorithm.guide(mixed(), 1, Engines("another"))  # before step 0 has its batch
    algorithm.training_batch(first, 0)
    late = Engines("another")
    algorithm.guide(mixed(), 1, late)  # or after it
    assert late.asked[0][0] == [1, 2, 72, 22, 3]
    algorithm.training_batch(ahead, 1)  # does not replace what step 2 may be showing already
    engines = Engines()
    algorithm.guide(mixed(), 2, engines)
    assert engines.asked == [([1, 2, 71, len("one"), 3], 3, 0)]


def test_pope_keeps_a_hard_prompt_whose_guided_group_has_signal():
    algorithm = algorithm_of(mixed(), **POPE, dynamic_sampling="drop")
    (hard, _), _ = algorithm.guide(mixed(), 0, Engines())
    silent = replace(hard.guided, verdicts=[Verdict("wrong")] * 4)
    assert algorithm.has_signal(hard) and not algorithm.has_signal(replace(hard, guided=silent))
    for guided, dropped in ((hard.guided, 1), (silent, 2)):
        batch = algorithm.training_batch([replace(hard, guided=guided)], 0)
        assert (batch.metrics["groups/dropped"], len(batch.samples)) == (dropped, 8 - 4 * dropped)


def test_pope_trains_a_guided_group_of_its_own_beside_each_hard_one():
    engines, groups = Engines(), mixed()
    algorithm = algorithm_of(groups, **POPE)
    groups, counts = algorithm.guide(groups, 3, engines)
    assert [in_scope(g, algorithm.config) for g in groups] == [True, False] and counts["guided/prompts"] == 1
    (shown,) = engines.asked
    ids = beginning(groups[0].rollout.prompt, 3, 0, 0.5, Builder())
    assert shown == ([1, 2, 73, len(f"text {ids.tolist()}"), 3], 4, 0)
    batch = algorithm.training_batch(groups, 3)
    guided = batch.samples[8:]
    assert [s.advantage for s in batch.samples[:4]] == [0.0] * 4
    np.testing.assert_allclose([s.advantage for s in guided], np.array([-1, 3, -1, -1]) / 3**0.5, rtol=1e-12)
    assert {tuple(s.prompt_ids.tolist()) for s in guided} == {tuple(shown[0])}
    assert [s.weight for s in batch.samples] == pytest.approx([1 / (12 * n) for n in [4] * 8 + [4, 5, 6, 7]])


def test_beginnings_are_short_and_never_state_the_answer():
    """The solution has five ids, of which Builder takes the last two for its statement."""
    prompt = group(["wrong"]).rollout.prompt
    for share, lengths in ((0.34, {1}), (0.67, {1, 2}), (1.0, {1, 2, 3})):
        found = [beginning(prompt, step, 0, share, Builder()) for step in range(40)]
        assert {len(ids) for ids in found} == lengths
        assert all(ids.tolist() == [41, 42, 43][: len(ids)] for ids in found)
    again = [beginning(prompt, step, 0, 1.0, Builder()).tolist() for step in range(40)]
    assert again == [ids.tolist() for ids in found]


def test_a_beginning_is_shown_without_the_end_of_the_thought_that_the_prompt_begins():
    class Thinking(Builder):
        def decode(self, values):
            return "".join({41: "</think>", 42: "\n", 43: " first"}.get(value, "?") for value in values)

    hard = [group(["wrong"] * 4, uid=f"p{i}") for i in range(20)]
    for each in hard:
        object.__setattr__(each.rollout.prompt, "thought", "<think>\n")
    algorithm, engines = algorithm_of(hard, **POPE, prefix_share=1.0), Engines()
    algorithm.inputs = replace(algorithm.inputs, builder=Thinking())
    counts = algorithm.guide(hard, 0, engines)[1]
    assert {prompt[3] for prompt, *_ in engines.asked} == {len("first")}  # white space alone is no beginning
    assert 0 < counts["guided/prompts"] < 20


@pytest.mark.parametrize("limit", [{"prefix_share": 0.0}, {"gold": False}, {"context": 20}])
def test_without_beginnings_pope_is_grpo_exactly(limit):
    groups = [group(["wrong"] * 4, uid="hard", gold=limit.get("gold", True)), mixed()[1]]
    algorithm = algorithm_of(groups, limit.get("context", 1000), **POPE, prefix_share=limit.get("prefix_share", 0.5))
    found, counts = algorithm.guide(groups, 0, Engines())
    assert counts["guided/prompts"] == 0
    same_samples(algorithm.training_batch(found, 0), algorithm_of(groups, name="grpo").training_batch(groups, 0))
