"""reasoning-gym as data: what is generated follows from seed, task and level; its scorers take its golds from JSON."""

import json

import pytest

from expo_ray.config.compose import compose_config
from expo_ray.config.errors import DataError
from expo_ray.config.schema import DataConfig, VerifierConfig
from expo_ray.data.gym import UNUSABLE, gym_problems
from expo_ray.data.sources import Problems
from expo_ray.preflight.checks import check_run
from expo_ray.verifier.tasks import EVALUATING_SCORERS, make_task

pytest.importorskip("reasoning_gym")
TASKS = ["chain_sum", "rearc", "tower_of_hanoi", "string_manipulation"]
"""rearc's scorer refuses its own gold where JSON has made lists of tuples."""
CHEAP = ["chain_sum", "leg_counting"]


def gym(tasks, **changes) -> DataConfig:
    return DataConfig(**({"name": "reasoning_gym", "tasks": tasks, "max_problems": 12} | changes))


def graded(problem, answer: str, run_answers: bool = True) -> float:
    """The verdict on an answer as a grading process gives it: the problem's metadata has been JSON."""
    task = make_task("reasoning_gym", {"run_answers": run_answers})
    meta = json.loads(json.dumps({"question": problem.question, **problem.meta}))
    return float(task.grade(answer, problem.answers[0], meta)[0])


def test_problems_take_turns_over_tasks_and_levels_and_follow_from_the_seed():
    found = Problems(gym(CHEAP, levels=[1, 3]), 5).training
    assert [(p.kind, p.level) for p in found] == 3 * [
        ("chain_sum", 1), ("chain_sum", 3), ("leg_counting", 1), ("leg_counting", 3)
    ]  # fmt: skip
    assert found == Problems(gym(CHEAP, levels=[1, 3]), 5).training
    assert [p.question for p in found] != [p.question for p in Problems(gym(CHEAP, levels=[1, 3]), 6).training]
    # More problems, or another task beside, do not change those that were there.
    more = Problems(gym([*CHEAP, "gcd"], levels=[1, 3], max_problems=60), 5).training
    assert {p.uid: p for p in found}.items() <= {p.uid: p for p in more}.items()
    assert all(p.task == "reasoning_gym" for p in found) and len({p.uid for p in more}) == 60


def test_a_higher_level_is_harder():
    by_level = {level: Problems(gym(["chain_sum"], levels=[level]), 0).training for level in (1, 5)}
    digits = {level: sum(c.isdigit() for p in of for c in p.question) for level, of in by_level.items()}
    assert digits[5] > 1.5 * digits[1]


def test_held_out_problems_are_none_of_those_trained_on():
    problems = Problems(gym(["coin_flip"], levels=[1], max_problems=300), 0)  # a task with few different questions
    trained, held_out = ({p.question for p in part} for part in (problems.training, problems.held_out))
    assert held_out and not trained & held_out


@pytest.mark.parametrize("task", TASKS)
def test_golds_are_right_and_nonsense_is_wrong_after_json(task):
    for problem in gym_problems(gym([task], levels=[1, 2], max_problems=4), False, 0, None):
        assert graded(problem, problem.answers[0]) == 1.0
        assert graded(problem, "no such thing") == 0.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tasks": []}, "data=reasoning_gym needs data.tasks="),
        ({"tasks": ["chain_sun"]}, "names 'chain_sun', which is no task; did you mean 'chain_sum'?"),
        ({"tasks": ["countdown"]}, "names countdown, whose scorer evaluates answers: set verifier.run_answers=true"),
        ({"tasks": ["game_of_life_halting"]}, "names game_of_life_halting, which is left out"),
        ({"tasks": ["rubiks_cube"]}, "names rubiks_cube, which gives no gold answer"),
        ({"tasks": ["acre"], "levels": [2]}, "names acre, which has level 1 only"),
        ({"tasks": ["caesar_cipher"], "levels": [5]}, "does not generate at level 5 (AssertionError: rotation must"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(DataError) as caught:
        _ = Problems(gym(**changes), 0, VerifierConfig()).training
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_is_checked_before_it_starts(tmp_path):
    base = ["model=toy", "data=reasoning_gym", "profile=cpu", "dry_run=true", f"run_dir={tmp_path}"]
    base += ["rollout.max_prompt_tokens=64", "rollout.max_completion_tokens=64", "data.max_problems=4"]
    checked = check_run(compose_config([*base, "data.tasks=[chain_sum,leg_counting]", "data.levels=[1]"]))
    assert len(checked.problems.training) == 4
    with pytest.raises(DataError, match="did you mean 'chain_sum'"):
        check_run(compose_config([*base, "data.tasks=[chain_sun]"]))


@pytest.mark.slow
def test_every_task_that_is_not_refused_takes_its_own_golds():
    """About two minutes: one problem of each task at level 1."""
    from reasoning_gym.factory import DATASETS

    wrong, refused = [], []
    for name in sorted({*DATASETS} - {*UNUSABLE}):
        try:
            (problem,) = gym_problems(gym([name], levels=[1], max_problems=1), False, 1, None)
        except DataError as error:
            refused.append(name)
            assert "no gold answer" in str(error) or "does not generate" in str(error), error
            continue
        if graded(problem, problem.answers[0]) != 1.0:
            wrong.append(f"{name}: its gold is refused")
        if name not in EVALUATING_SCORERS and _takes(problem, "no such thing"):
            wrong.append(f"{name}: nonsense is taken")
    assert wrong == []
    assert len(DATASETS) - len(UNUSABLE) - len(refused) >= 90


def _takes(problem, answer: str) -> bool:
    try:
        return graded(problem, answer) == 1.0
    except Exception:  # a scorer that cannot read it: wrong in the verifier
        return False
