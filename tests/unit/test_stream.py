"""The order of prompts."""

import numpy as np

from expo_ray.data.stream import PromptStream
from expo_ray.messages import Problem, Prompt
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


def test_longest_sequence_counts_the_conditioned_prompt():
    assert longest_sequence(make_prompts(10), 32) == 12 + 32
