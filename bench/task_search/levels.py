"""The levels that are searched, and their problems."""

import random
from dataclasses import dataclass
from typing import Any

from bench.task_search.made import MAKERS, WORDS
from expo_ray.messages import Problem
from expo_ray.verifier import wire

STATEMENT = "\n\nThe final answer is $\\boxed{%s}$."


@dataclass(frozen=True)
class Level:
    """One level of difficulty: of a made task (`settings` are the maker's two numbers), or of reasoning-gym's."""

    task: str
    level: int
    settings: Any

    @property
    def name(self) -> str:
        """Such as factors/2."""
        return f"{self.task}/{self.level}"

    def problems(self, count: int, seed: int) -> list[Problem]:
        """Different problems, a function of the arguments; fewer than `count` if the level does not have so many."""
        chance = random.Random(f"{seed}/{self.name}")
        found: dict[str, Problem] = {}
        entries = None if self.task in MAKERS else self._gym(chance.randrange(2**31), 4 * count)
        for _ in range(4 * count):
            problem = self._made(chance) if entries is None else next(entries)
            found.setdefault(problem.question, problem)
            if len(found) == count:
                break
        return list(found.values())

    def _made(self, chance: random.Random) -> Problem:
        question, answer, solution = MAKERS[self.task](chance, *self.settings)
        return self._problem(question, answer, solution=solution + STATEMENT % answer)

    def _gym(self, seed: int, size: int) -> Any:
        from reasoning_gym.factory import DATASETS

        dataset, settings = DATASETS[self.task]
        for entry in dataset(config=settings(seed=seed, size=size, **self.settings)):
            meta = {"typed_metadata": wire.encoded(entry["metadata"], str)}
            yield self._problem(entry["question"], str(entry["answer"]), task="reasoning_gym", meta=meta)

    def _problem(self, question: str, answer: str, **others: Any) -> Problem:
        return Problem("", question, (answer,), level=self.level, kind=self.task, **others)


_LEVELS: dict[str, list[Any]] = {
    # made, two numbers each
    "factors": [(2, 12), (11, 31), (31, 97), (101, 199)],
    "square_root": [(11, 31), (32, 99), (100, 316)],
    "division": [(3, 12), (11, 40), (41, 99), (101, 400)],
    "linear_equation": [(2, 9), (6, 30), (25, 99)],
    "quadratic_equation": [(3, 12), (13, 40), (41, 99)],
    "sum_and_product": [(2, 12), (10, 40), (40, 99)],
    "animals": [(2, 12), (10, 60), (60, 300)],
    "remainders": [(3, 5), (7, 11), (13, 17)],
    "subset_sum": [(5, 2), (6, 3), (9, 3)],
    "anagram": [(4, 0), (5, 0), (6, 0), (8, 0)],
    "caesar": [(3, 1), (4, 1), (4, 2), (4, 3), (5, 4)],
    "digit_code": [(1, 2), (3, 3), (4, 4), (6, 6), (7, 7)],
    # reasoning-gym's, with its own settings
    "countdown": [
        {"min_numbers": n, "max_numbers": n, "max_value": m, "min_target": 10, "max_target": 99}
        for n, m in ((2, 20), (3, 20), (4, 50))
    ],
    "prime_factorization": [{"min_value": 10, "max_value": 60}, {"min_value": 100, "max_value": 999}],
    "simple_equations": [{"max_terms": 2, "max_value": 10}, {"max_terms": 3, "max_value": 100}],
    "gcd": [{"max_value": 60}, {"max_value": 1000}],
    "lcm": [{"max_value": 20}, {"max_value": 100}],
    "products": [{"min_digits": n, "max_digits": n} for n in (1, 2, 3)],
    "chain_sum": [{"min_terms": t, "max_terms": t, "min_digits": d, "max_digits": d} for t, d in ((2, 2), (4, 3))],
    "base_conversion": [{"max_base": 10, "min_value": 8, "max_value": 60}],
    "number_sequence": [{"max_complexity": 1}, {"max_complexity": 3}],
    "letter_counting": [{"min_words": 4, "max_words": 5}],
    "spell_backward": [{"min_word_len": n, "max_word_len": n} for n in (4, 7)],
    "sentence_reordering": [{"min_words_in_sentence": n, "max_words_in_sentence": n + 1} for n in (4, 7)],
    "caesar_cipher": [{"min_words": 3, "max_words": 3, "max_rotation": 3}],
    "calendar_arithmetic": [{"tasks": ["count_days"]}],
    "fraction_simplification": [{"max_value": 20, "max_factor": 12, "styles": ("plain",)}],
    "time_intervals": [{"task_types": ["time_seconds"]}],
}
LEVELS = [Level(task, number, of) for task, levels in _LEVELS.items() for number, of in enumerate(levels, 1)]


def split(level: Level, training: int, held_out: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and others to evaluate on; fewer of the former if the level does not have so many."""
    problems = level.problems(held_out + training, seed)
    evaluated = problems[:held_out]
    # Another order of the letters of a held-out word would give that word away.
    known = {problem.answers for problem in evaluated} if level.task in WORDS else set()
    return [problem for problem in problems[held_out:] if problem.answers not in known], evaluated
