"""The order of prompts."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from expo_ray.data.stream import PromptStream, pass_rate
from expo_ray.driver.record import batch_line
from expo_ray.files import append_lines
from expo_ray.messages import Group, Problem, Prompt, Rollout, Verdict
from expo_ray.prompts.loading import longest_sequence


def make_prompts(count: int) -> list[Prompt]:
    return [
        Prompt(Problem(f"p{i}", "q", ("1",)), np.zeros(i + 1, np.int32), np.zeros(i + 3, np.int32))
        for i in range(count)
    ]


def uids(prompts: list[Prompt]) -> list[str]:
    return [prompt.problem.uid for prompt in prompts]


def test_each_epoch_meets_every_prompt_once_in_a_new_order():
    stream = PromptStream(make_prompts(10), 4, seed=1)
    met = [uid for step in range(5) for uid in uids(stream.prompts(step))]
    assert sorted(met[:10]) == sorted(met[10:]) == sorted(uids(make_prompts(10)))
    assert met[:10] != met[10:]


def test_a_step_does_not_depend_on_what_was_asked_before():
    one, other = PromptStream(make_prompts(10), 4, seed=1), PromptStream(make_prompts(10), 4, seed=1)
    ahead = [uids(one.prompts(step)) for step in range(8)]
    assert [uids(other.prompts(step)) for step in reversed(range(8))] == ahead[::-1]
    assert uids(PromptStream(make_prompts(10), 4, seed=2).prompts(0)) != ahead[0]


def test_spare_prompts_are_not_the_steps_own_and_none_is_drawn_twice():
    stream = PromptStream(make_prompts(10), 4, seed=1)
    drawn = uids(stream.spare(3, 0, 2)) + uids(stream.spare(3, 2, 3)) + uids(stream.spare(3, 5, 4))
    assert len(drawn) == 6 and sorted(drawn + uids(stream.prompts(3))) == sorted(uids(make_prompts(10)))
    again = PromptStream(make_prompts(10), 4, seed=1)
    assert uids(again.spare(3, 2, 3)) == drawn[2:5] and uids(again.spare(4, 0, 6)) != drawn


def test_a_step_has_its_number_of_prompts_whatever_the_weights_of_its_sources():
    weights = [1.5, 2.0, 2.0, 2.2, 2.2, 0.3, 0.3, 2.0, 2.2, 2.0]
    prompts = [
        replace(p, problem=replace(p.problem, source=f"s{i}", weight=weights[i]))
        for i, p in enumerate(make_prompts(10))
    ]
    assert [len(PromptStream(prompts, 255, seed=1).prompts(step)) for step in range(3)] == [255] * 3


def test_sources_get_their_shares_of_every_step_and_each_has_its_own_epochs():
    """Against an independent count: after any number of steps each source has had its share, within three prompts."""
    sizes, weights, per_step = {"a": 7, "b": 30, "c": 5}, {"a": 1.0, "b": 2.5, "c": 0.5}, 6
    prompts = [
        replace(p, problem=replace(p.problem, uid=f"{name}{i}", source=name, weight=weights[name]))
        for name, size in sizes.items()
        for i, p in enumerate(make_prompts(size))
    ]
    stream = PromptStream(prompts, per_step, seed=1)
    met: list[str] = []
    for step in range(60):
        chosen = uids(stream.prompts(step))
        assert len(chosen) == per_step
        met += chosen
        for name in sizes:
            share = weights[name] / sum(weights.values())
            assert abs(sum(uid[0] == name for uid in met) - share * len(met)) < 3
            assert abs(sum(uid[0] == name for uid in chosen) - share * per_step) < 1
    for name, size in sizes.items():
        own = [uid for uid in met if uid[0] == name]
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size]) == sorted(f"{name}{i}" for i in range(size))
    assert uids(PromptStream(prompts, per_step, seed=1).prompts(59)) == met[-per_step:]


def group_of(prompt: Prompt, outcomes: str) -> Group:
    words = {"+": "correct", "-": "wrong", "t": "timeout"}
    return Group(Rollout(prompt, [], []), [Verdict(words[each]) for each in outcomes], [])


def run_of(stream: PromptStream, folder: Path, steps: range) -> list[list[str]]:
    """Steps in which a prompt with an even number is always solved and the others never."""
    found = []
    for step in steps:
        prompts = stream.prompts(step)
        groups = [group_of(p, "++" if int(p.problem.uid[1:]) % 2 == 0 else "--t") for p in prompts]
        stream.learn(step, groups)
        append_lines(folder / "batches.jsonl", [{"step": step} | batch_line(groups)])
        found.append(uids(prompts))
    return found


def test_prompts_drawn_by_recent_pass_rate_are_those_that_fail(tmp_path):
    drawn = run_of(PromptStream(make_prompts(40), 8, seed=1, resample="failing"), tmp_path, range(60))
    assert all(len(set(step)) == 8 for step in drawn)
    late = [int(uid[1:]) % 2 for step in drawn[20:] for uid in step]
    # 20 prompts of weight 1 and 20 of weight FLOOR: 8 draws without replacement
    assert 0.85 < np.mean(late) < 1
    assert {uid for step in drawn for uid in step} == set(uids(make_prompts(40)))


def test_one_draw_is_by_the_weights(tmp_path):
    """Frequencies of 4,000 first draws, within five standard errors of the weights worked out here."""
    rates = [None, 0.0, 0.5, 0.9, 1.0]
    prompts = [
        replace(p, problem=replace(p.problem, pass_rate=rate)) for p, rate in zip(make_prompts(5), rates, strict=True)
    ]
    for resample, weights in (("failing", [1, 1, 0.5, 0.1, 0.05]), ("uncertain", [1, 0.05, 1, 0.36, 0.05])):
        stream = PromptStream(prompts, 1, seed=3, resample=resample)
        times = Counter(uid for step in range(4000) for uid in uids(stream.prompts(step)))
        for i, weight in enumerate(weights):
            share = weight / sum(weights)
            assert abs(times[f"p{i}"] / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_resumed_stream_draws_what_an_undisturbed_one_draws(tmp_path, lag):
    def fresh() -> PromptStream:
        return PromptStream(make_prompts(40), 8, seed=1, resample="failing", lag=lag)

    whole = run_of(fresh(), tmp_path, range(12))
    for done in (1, 5, 11):
        resumed, folder = fresh(), tmp_path / str(done)
        folder.mkdir()
        lines = (tmp_path / "batches.jsonl").read_text().splitlines(keepends=True)
        (folder / "batches.jsonl").write_text("".join(lines[:done]))
        resumed.recall(folder)
        if lag > 1 and done + lag <= 12:  # sampled ahead: as soon as the steps up to its own less the lag are known
            assert uids(resumed.prompts(done + lag - 1)) == whole[done + lag - 1]
        assert run_of(resumed, folder, range(done, 12)) == whole[done:]


def test_a_rate_is_the_share_of_what_was_decided():
    prompt = make_prompts(1)[0]
    assert pass_rate(group_of(prompt, "+--t")) == pytest.approx(1 / 3)
    assert pass_rate(group_of(prompt, "tt")) is None


def test_longest_sequence_counts_the_conditioned_prompt():
    assert longest_sequence(make_prompts(10), 32) == 12 + 32
