"""reasoning-gym's procedural tasks as problems (`data=reasoning_gym`): generated here, no file and no hub.

https://github.com/open-thought/reasoning-gym. A level is the level of the task's own curriculum.
"""

import itertools
import random
from collections.abc import Iterator, Set
from typing import Any

from expo_ray.config.errors import DataError, did_you_mean
from expo_ray.config.schema import DataConfig, VerifierConfig
from expo_ray.messages import Problem
from expo_ray.verifier import wire
from expo_ray.verifier.tasks import EVALUATING_SCORERS

PROBLEMS = {False: 1000, True: 200}
"""Number of training (False) and held-out (True) problems, all tasks and levels together; `max_problems` replaces the
former."""
LEVELS = (1, 2, 3, 4, 5)
UNUSABLE = {
    "game_of_life_halting": "its scorer takes any text as right",
    "word_ladder": "its scorer fails on words of another length than four letters",
    "composite": "it is made of other tasks: name those",
}
"""Tasks that are refused, with the reason (0.1.25; a test looks again)."""
TRIES = 20
"""Entries in a row that may repeat a training question before a task counts as having no further ones."""


def gym_problems(
    data: DataConfig, held_out: bool, seed: int, verifier: VerifierConfig | None, seen: Set[str] = frozenset()
) -> list[Problem]:
    """Generates problems of `data.tasks`, in turn for each task and level, a function of its arguments alone.

    Args:
        data: tasks, levels and number.
        held_out: whether to make those to evaluate on, from seeds of their own.
        seed: of the run.
        verifier: what grades; scorers that evaluate answers need its `run_answers`.
        seen: questions to leave out, those that are trained on.

    Raises:
        DataError: the package is missing; a task that does not exist, has no gold answers or is not allowed, or that
            reasoning-gym does not generate at a level.
    """
    check_tasks(data.tasks, verifier)
    levels = (data.eval_levels if held_out else data.levels) or LEVELS
    kinds = [(task, level) for task in data.tasks for level in _levels_of(task, levels)]
    count = PROBLEMS[held_out] if held_out or not data.max_problems else data.max_problems
    part = "heldout" if held_out else "train"
    each = -(-count // len(kinds))
    made = []
    for task, level in kinds:
        own = random.Random(f"{seed}/{part}/{task}/{level}").randrange(2**31)
        made.append(_entries(task, level, own, each, seen))
    found: list[Problem] = []
    for index, row in enumerate(itertools.zip_longest(*made)):
        for (task, level), entry in zip(kinds, row, strict=True):
            if entry is not None and len(found) < count:
                found.append(
                    Problem(
                        uid=f"{task}-{level}-{part}-{index}",
                        question=entry["question"],
                        answers=(str(entry["answer"]),),
                        level=level,
                        kind=task,
                        task="reasoning_gym",
                        meta={"typed_metadata": wire.encoded(entry["metadata"], str)},
                    )
                )
    return found


def check_tasks(names: list[str], verifier: VerifierConfig | None) -> None:
    """Raises DataError unless these are tasks that can be generated and graded."""
    known = _known()
    if not names:
        raise DataError(
            f"data=reasoning_gym needs data.tasks=[NAME,...], from its {len(known)} tasks: {', '.join(known[:6])}, ..."
        )
    for name in names:
        if name not in known:
            raise DataError(f"data.tasks names '{name}', which is no task{did_you_mean(name, known)}")
        if name in UNUSABLE:
            raise DataError(f"data.tasks names {name}, which is left out: {UNUSABLE[name]}")
        if verifier is not None and name in EVALUATING_SCORERS and not verifier.run_answers:
            raise DataError(
                f"data.tasks names {name}, whose scorer evaluates answers: set verifier.run_answers=true to allow it"
            )


def _known() -> list[str]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise DataError(
            "data=reasoning_gym needs the package reasoning-gym, which is not installed: run make setup, or "
            "pip install reasoning-gym==0.1.25"
        ) from error
    return sorted(DATASETS)


def _levels_of(task: str, levels: Any) -> list[int]:
    """The levels at which the task is generated; without a curriculum, its own settings count as level 1."""
    from reasoning_gym.factory import has_curriculum

    if has_curriculum(task):
        return list(levels)
    if 1 in levels:
        return [1]
    raise DataError(f"data.tasks names {task}, which has level 1 only, and the levels are {list(levels)}: add level 1")


def _entries(task: str, level: int, seed: int, count: int, seen: Set[str]) -> Iterator[dict[str, Any]]:
    from reasoning_gym.factory import DATASETS, create_curriculum, has_curriculum

    made = repeated = 0
    try:
        dataset, settings = DATASETS[task]
        # Room for questions that are left out. It decides nothing about an entry, which follows from seed and index.
        defaults = {"seed": seed, "size": count * (TRIES + 1)}
        if has_curriculum(task):
            curriculum = create_curriculum(task)
            curriculum.set_global_level(level - 1)
            config = curriculum.generate_configuration(defaults)
        else:
            config = settings(**defaults)
        config.validate()
        entries = iter(dataset(config=config))
        while made < count and repeated < TRIES:
            entry = next(entries)
            if entry["answer"] is None:
                raise DataError(f"data.tasks names {task}, which gives no gold answer: leave it out")
            if entry["question"] in seen:
                repeated += 1
                continue
            made, repeated = made + 1, 0
            yield entry
    except DataError:
        raise
    except Exception as error:  # whatever its generators raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise DataError(
            f"data.tasks names {task}, which reasoning-gym does not generate at level {level} ({reason}): leave the "
            "task out, or choose other levels"
        ) from error
