"""The steps of the search, which may run on different machines.

    python -m bench.task_search prompts --model FOLDER --out prompts.jsonl
    python -m bench.task_search sample --model FOLDER --prompts prompts.jsonl --out samples.jsonl
    python -m bench.task_search grade --prompts prompts.jsonl --samples samples.jsonl

`prompts` needs this package, `sample` only vLLM, `grade` this package and no model. `data` writes problems of
made levels as files for training (data=file).
"""

import json
import random
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import replace
from pathlib import Path

from bench.task_search.sample import BadInput, sample


def main(arguments: list[str] | None = None) -> int:
    """Runs one step. Returns the exit code: 0; 1: gold answers are not graded as right; 2: bad input."""
    given = _parser().parse_args(arguments)
    try:
        return int({"prompts": _prompts, "sample": _sample, "grade": _grade, "data": _data}[given.step](given))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m bench.task_search", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    prompts = steps.add_parser("prompts", help="make the problems and their prompts")
    prompts.add_argument("--model", required=True, help="a Hugging Face folder; only its tokenizer is read")
    prompts.add_argument("--style", default="auto", help="model.prompt_style")
    prompts.add_argument("--problems", type=int, default=40, help="of each level (default 40)")
    sample = steps.add_parser("sample", help="sample both prompts of every problem")
    sample.add_argument("--model", required=True, help="a Hugging Face folder")
    sample.add_argument("--prompts", type=Path, required=True)
    sample.add_argument("--levels", nargs="*", default=[], help="such as factors/2 (default all)")
    sample.add_argument("--free", type=int, default=8, help="completions of a free prompt (default 8)")
    sample.add_argument("--conditioned", type=int, default=4, help="of a conditioned one (default 4)")
    sample.add_argument("--tokens", type=int, default=64, help="most new tokens (default 64)")
    sample.add_argument("--temperature", type=float, default=1.0, help="of both kinds (default 1)")
    sample.add_argument("--problems", type=int, default=0, help="of each level (default all)")
    sample.add_argument("--seconds", type=float, default=float("inf"), help="no further level begins after this time")
    grade = steps.add_parser("grade", help="print the table of the search")
    grade.add_argument("--prompts", type=Path, required=True)
    grade.add_argument("--samples", type=Path, required=True)
    grade.add_argument("--show", help="print explanations of this level instead, such as factors/2")
    grade.add_argument("--count", type=int, default=20, help="--show: how many (default 20)")
    data = steps.add_parser("data", help="write problems of made levels for training")
    data.add_argument("--levels", nargs="+", required=True, help="such as factors/2")
    data.add_argument("--problems", type=int, required=True, help="of each level to train on")
    data.add_argument("--held-out", type=int, default=40, help="of each level to evaluate on (default 40)")
    data.add_argument("--conditioned", action="store_true", help="train on answer-conditioned questions as well")
    data.add_argument("--held-out-out", type=Path, required=True, help="their file")
    data.add_argument("--seed", type=int, default=1, help="the search's own is 0 (default 1)")
    for step in (prompts, sample, data):
        step.add_argument("--out", type=Path, required=True)
    return parser


def _prompts(given: Namespace) -> int:
    from bench.task_search.grade import check_golds
    from bench.task_search.levels import LEVELS
    from expo_ray.preflight.model_folder import generation_ends
    from expo_ray.prompts.builder import PromptBuilder
    from expo_ray.prompts.loading import stop_ids

    from transformers import AutoTokenizer  # isort: skip

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    builder = PromptBuilder(tokenizer, given.style)
    ends = stop_ids(builder, generation_ends(given.model))
    with given.out.open("w", encoding="utf-8") as file:
        for level in LEVELS:
            for index, prompt in enumerate(builder(level.problems(given.problems, seed=0))):
                problem = prompt.problem
                row = {
                    "id": f"{level.name}/{index}", "task": level.task, "level": level.level, "verifier": problem.task,
                    "question": problem.question, "answer": problem.answers[0], "meta": problem.meta,
                    "stop_ids": ends, "free_ids": prompt.free_ids.tolist(),
                    "conditioned_ids": prompt.conditioned_ids.tolist(),
                }  # fmt: skip
                file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    if wrong := check_golds(given.out):
        print(f"{len(wrong)} gold answers are not graded as right: {', '.join(wrong[:20])}", file=sys.stderr)
    print(f"{given.out}: {len(LEVELS)} levels, {given.out.stat().st_size / 2**20:.2f} MiB")
    return 1 if wrong else 0


def _sample(given: Namespace) -> int:
    sample(
        given.model, given.prompts, given.out, given.levels, given.free, given.conditioned, given.tokens,
        given.temperature, given.problems, given.seconds,
    )  # fmt: skip
    return 0


def _grade(given: Namespace) -> int:
    from bench.task_search.grade import CONDITIONED, grade, table

    graded = grade(given.prompts, given.samples)
    if given.show is None:
        print(table(graded))
        return 0
    shown = [e for e in graded if e.kind == CONDITIONED and f"{e.row['task']}/{e.row['level']}" == given.show]
    if not shown:
        raise BadInput(f"--show {given.show}: there is no answer-conditioned sample of this level")
    for each in random.Random(0).sample(shown, min(given.count, len(shown))):
        ended = "" if each.stopped else ", cut off"
        leak = f", leak: {each.leak}" if each.leak else ""
        print(f"## {each.row['question']} [{each.row['answer']}]\n{'right' if each.correct else 'wrong'}{ended}{leak}")
        print(each.text + "\n")
    return 0


def _data(given: Namespace) -> int:
    from bench.task_search.levels import LEVELS, split
    from expo_ray.prompts.templates import CHAT, fill

    training, held_out = [], []
    for name in given.levels:
        level = next((level for level in LEVELS if level.name == name), None)
        if level is None:
            raise BadInput(f"--levels {name}: there are only {', '.join(level.name for level in LEVELS)}")
        of_level = split(level, given.problems, given.held_out, given.seed)
        if not of_level[0]:
            raise BadInput(
                f"--levels {name}: it has {len(of_level[1])} problems, all of them held out: use a smaller --held-out"
            )
        print(f"{name}: {len(of_level[0])} problems to train on, {len(of_level[1])} held out")
        training += of_level[0]
        held_out += of_level[1]
    if given.conditioned:  # as a chat model is shown them for an explanation
        training += [
            replace(each, question=fill(CHAT.conditioned, question=each.question, answer=each.answers[0]))
            for each in training
        ]
    for path, part in ((given.out, training), (given.held_out_out, held_out)):
        with path.open("w", encoding="utf-8") as file:
            for problem in part:
                row = {
                    "question": problem.question, "answer": problem.answers[0], "solution": problem.solution,
                    "kind": problem.kind, "level": problem.level,
                }  # fmt: skip
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{path}: {len(part)} problems")
    return 0


if __name__ == "__main__":
    sys.exit(main())
