"""samples.jsonl of an evaluation: written a chunk at a time and resumable after any interruption."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from expo_ray.config.errors import DataError
from expo_ray.data.records import fingerprint
from expo_ray.evaluation.evaluator import Evaluation
from expo_ray.evaluation.metrics import Sample, samples_of, score_problem
from expo_ray.files import append_lines
from expo_ray.messages import Group, Prompt

_KEYS = {field.name for field in fields(Sample)}


class SampleFile:
    """The samples of all prompts in their order, `samples` lines for each, written `chunk` prompts at a time.

    Args:
        path: the file; it may not exist yet.
        prompts: all prompts of the evaluation.
        samples: completions of each prompt.
        chunk: number of prompts that are sampled, verified and written at once.
    """

    def __init__(self, path: Path, prompts: list[Prompt], samples: int, chunk: int) -> None:
        self.path, self.prompts, self.samples = path, prompts, samples
        self.chunks = [prompts[start : start + chunk] for start in range(0, len(prompts), chunk)]

    def finished(self) -> int:
        """Counts the complete chunks and cuts off whatever an interruption left after them.

        Raises:
            DataError: a line is not the sample that belongs there.
        """
        if not self.path.exists():
            return 0
        ends = self._ends()
        done, kept, lines = 0, 0, 0
        for chunk in self.chunks:
            lines += len(chunk) * self.samples
            if lines > len(ends):
                break
            done, kept = done + 1, ends[lines - 1]
        os.truncate(self.path, kept)
        return done

    def append(self, groups: Sequence[Group]) -> None:
        """Appends a chunk's verified groups; they are on the disk when this returns."""
        samples = (asdict(sample) for group in groups for sample in samples_of(group))
        append_lines(self.path, samples, flush_to_disk=True)

    def evaluation(self, task: str) -> Evaluation:
        """Scores all samples, reading one problem at a time.

        Args:
            task: verifier task of problems that name none, by which answers count as the same vote.
        """
        pairs = zip((prompt.problem for prompt in self.prompts), self._problems(), strict=True)
        return Evaluation(self.samples, [], [score_problem(of, p.task or task, p.source) for p, of in pairs])

    def pass_rates(self, evaluation: Evaluation) -> list[dict[str, Any]]:
        """The lines of pass_rates.jsonl: how often each problem was solved, for `data.pass_rates`."""
        return [
            {
                "uid": prompt.problem.uid,
                "question": fingerprint(prompt.problem),
                "level": prompt.problem.level,
                "samples": self.samples,
                "pass_rate": scored.pass_at_k[0],
            }
            for prompt, scored in zip(self.prompts, evaluation.scored, strict=True)
        ]

    def _ends(self) -> list[int]:
        """Finds where each line ends, in bytes, except a torn last line."""
        ends: list[int] = []
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._check(line, len(ends))
                ends.append((ends[-1] if ends else 0) + len(line))
        return ends

    def _check(self, line: bytes, number: int) -> None:
        problem, index = divmod(number, self.samples)
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        expected = (self.prompts[problem].problem.uid, index) if problem < len(self.prompts) else None
        if not isinstance(found, dict) or found.keys() != _KEYS or (found["uid"], found["sample"]) != expected:
            belongs = f"sample {index} of problem {expected[0]}" if expected else "the end of the file"
            raise DataError(
                f"{self.path} line {number + 1} is not what belongs there, {belongs}: give a new run_dir=FOLDER"
            )

    def _problems(self) -> Iterator[list[Sample]]:
        with self.path.open("rb") as file:
            for _ in self.prompts:
                yield [Sample(**json.loads(next(file))) for _ in range(self.samples)]
