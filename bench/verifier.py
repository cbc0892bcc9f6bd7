"""Speed of the verifier against bare math-verify, and its time with items that hang.

    python -m bench.verifier speed [--items 2000]
    python -m bench.verifier hang [--items 10000] [--timeout 1]
    python -m bench.verifier pairs
    python -m bench.verifier cases
    python -m bench.verifier copies

`speed` and `hang` take their items from the MATH training file $EXPO_SHARED/data/math_train.jsonl if it exists (default
of the variable: `shared` next to the repository), else they make arithmetic ones. `pairs` prints the agreement of both
verifiers with the labelled lists, `cases` with the labelled responses of $EXPO_SHARED/verifier/cases.jsonl, by kind.
`copies` boxes the longest formula of each question of the MATH test file, with both values of verifier.answer_form.
"""

import argparse
import json
import os
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from expo_ray.config.schema import VerifierConfig
from expo_ray.verifier.pool import Item, VerifierPool
from expo_ray.verifier.tasks import MathTask

ROOT = Path(__file__).resolve().parent.parent
HANG = "this item hangs"


class HangingMath(MathTask):
    """The math task, but a marked response never returns: a regular expression backtracks without end in C."""

    def extract(self, response: str) -> str | None:
        if response.startswith(HANG):
            re.fullmatch(r"(a+)+b", "a" * 60)
        return super().extract(response)


def _other_notation(answer: str, draw: random.Random) -> str:
    changed = answer.replace("\\frac", "\\dfrac") if draw.random() < 0.5 else answer.replace(",", ",\\,")
    return changed.replace("(", "\\left(").replace(")", "\\right)") + draw.choice(["", ".", "\\,", " "])


def items(count: int, seed: int = 0) -> list[Item]:
    """Makes responses: 40 % end in the gold answer, 20 % in another notation of it, 40 % in a wrong answer."""
    draw = random.Random(seed)
    path = Path(os.environ.get("EXPO_SHARED", ROOT.parent / "shared")) / "data" / "math_train.jsonl"
    if path.exists():
        rows = [json.loads(line) for line in path.open()]
        known = [(row["solution"], row["answer"]) for row in rows if row["answer"]]
    else:
        known = [(f"We add {n} and {n + 1}. So \\boxed{{{2 * n + 1}}}", str(2 * n + 1)) for n in range(5000)]
    made: list[Item] = []
    for index in range(count):
        solution, answer = draw.choice(known)
        share = draw.random()
        said = answer if share < 0.4 else _other_notation(answer, draw) if share < 0.6 else draw.choice(known)[1]
        text = solution[: solution.rfind("\\boxed")] + f"\\boxed{{{said}}}$ (sample {index})"
        made.append((text, (answer,), {}))
    return made


def _timed(pool: VerifierPool, todo: list[Item]) -> float:
    start = time.perf_counter()
    pool.judge(todo)
    return time.perf_counter() - start


def _cpu_seconds(pool: VerifierPool) -> float:
    """Returns the CPU seconds of this process and the pool's; more telling than the clock on a shared machine."""
    ticks = 0
    for pid in pool.ping()["pids"]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _bare(todo: list[Item]) -> float:
    from math_verify import parse, verify

    start = time.perf_counter()
    for response, golds, *_ in todo:
        verify(parse(f"${golds[0]}$"), parse(response))
    return time.perf_counter() - start


def speed(count: int) -> dict[str, float]:
    """Returns items/s of bare math-verify and of one and two processes, cold and on repeats."""
    todo = items(count)
    rates: dict[str, float] = {}
    _bare(items(50, seed=1))  # loads its imports and grammar tables; our processes are warmed up too
    cpu = time.process_time()
    rates["math-verify, first pass"] = count / _bare(todo)
    rates["math-verify, first pass, per CPU second"] = count / (time.process_time() - cpu)
    rates["math-verify, second pass"] = count / _bare(todo)
    for processes in (1, 2):
        pool = VerifierPool(VerifierConfig(processes=processes))
        cpu = _cpu_seconds(pool)
        rates[f"{processes} processes, first pass"] = count / _timed(pool, todo)
        rates[f"{processes} processes, first pass, per CPU second"] = count / (_cpu_seconds(pool) - cpu)
        rates[f"{processes} processes, second pass"] = count / _timed(pool, todo)
        pool.close()
    return rates


def hang(count: int, timeout_s: float, processes: int = 2) -> dict[str, Any]:
    """Compares the time of `count` items, 1 % of which hang, with the same items without those."""
    todo = items(count)
    hanging = set(random.Random(2).sample(range(count), count // 100))
    config = VerifierConfig(name="bench.verifier:HangingMath", processes=processes, timeout_s=timeout_s)
    clean_pool = VerifierPool(config)
    clean_pool.ping()
    clean_s = _timed(clean_pool, [item for index, item in enumerate(todo) if index not in hanging])
    clean_pool.close()
    mixed = [(HANG + item[0], item[1], item[2]) if index in hanging else item for index, item in enumerate(todo)]
    pool = VerifierPool(config)
    pool.ping()
    start = time.perf_counter()
    verdicts = pool.judge(mixed)
    mixed_s = time.perf_counter() - start
    state = pool.ping()
    pool.close()
    share_s = len(hanging) * timeout_s / processes
    return {
        "items": count,
        "hanging": len(hanging),
        "stopped at the limit": sum(verdict.method == "limit" for verdict in verdicts),
        "of them hanging items": sum(verdicts[index].method == "limit" for index in hanging),
        "without hanging s": clean_s,
        "with hanging s": mixed_s,
        "timeouts' own share s": share_s,
        "ratio of the rest": (mixed_s - share_s) / clean_s,
        "ratio to both": mixed_s / (1.3 * clean_s + share_s),
        "alive": state["alive"],
        "restarts": state["restarts"],
    }


def read_pairs(path: Path) -> list[tuple[str, str, bool]]:
    """Reads a labelled list of tests/data as (answer, gold, equal)."""
    pairs = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            equal = " <=> " in line
            answer, gold = line.split(" <=> " if equal else " <!> ")
            pairs.append((answer, gold, equal))
    return pairs


def pairs() -> dict[str, str]:
    """Returns our agreement with each labelled list, and bare math-verify's."""
    from math_verify import parse, verify

    found: dict[str, str] = {}
    pool = VerifierPool(VerifierConfig(processes=2, timeout_s=10.0))
    for path in sorted((ROOT / "tests" / "data").glob("pairs_*.txt")):
        labelled = read_pairs(path)
        verdicts = pool.judge([(f"\\boxed{{{answer}}}", (gold,), {}) for answer, gold, _equal in labelled])
        ours = [verdict.outcome == "correct" for verdict in verdicts]
        undecided = sum(verdict.outcome in ("timeout", "error") for verdict in verdicts)
        bare = [verify(parse(f"${gold}$"), parse(f"$\\boxed{{{answer}}}$")) for answer, gold, _equal in labelled]
        for name, said in (("ours", ours), ("math-verify", bare)):
            accepted = sum(one and not equal for one, (_a, _g, equal) in zip(said, labelled, strict=True))
            rejected = sum(equal and not one for one, (_a, _g, equal) in zip(said, labelled, strict=True))
            share = 1 - (accepted + rejected) / len(labelled)
            found[f"{path.name}, {name}"] = (
                f"{len(labelled)} pairs, agreement {share:.1%}, wrong accepted {accepted}, right refused {rejected}"
                + (f", of all {undecided} undecided" if name == "ours" else "")
            )
    pool.close()
    return found


def _shared(*parts: str) -> Path:
    return Path(os.environ.get("EXPO_SHARED", ROOT.parent / "shared")).joinpath(*parts)


def cases() -> dict[str, str]:
    """Returns our agreement and bare math-verify's for each kind of labelled response, without the contested ones."""
    from math_verify import parse, verify

    rows = [json.loads(line) for line in _shared("verifier", "cases.jsonl").open(encoding="utf-8")]
    rows = [row for row in rows if not row.get("contested")]
    table: dict[str, Counter[str]] = {}
    for task in sorted({row["task"] for row in rows}):
        pool = VerifierPool(VerifierConfig(name=task, processes=2))
        of_task = [row for row in rows if row["task"] == task]
        verdicts = pool.judge([(row["response"], (row["answer"],), {}) for row in of_task])
        pool.close()
        for row, verdict in zip(of_task, verdicts, strict=True):
            bare = verify(parse(f"${row['answer']}$"), parse(row["response"]))
            for name in (row["kind"], "all"):
                for side, said in (("ours", verdict.outcome == "correct"), ("bare", bare)):
                    verdict_on = "right" if said == row["equal"] else "accepted" if said else "refused"
                    table.setdefault(name, Counter())[f"{side} {verdict_on}"] += 1
    return {
        kind: "; ".join(
            f"{side} {count[f'{side} right']} right, {count[f'{side} accepted']} wrong accepted, "
            f"{count[f'{side} refused']} right refused"
            for side in ("ours", "bare")
        )
        for kind, count in sorted(table.items())
    }


def copies() -> dict[str, str]:
    """Returns the share of golds, and of formulas copied from the question, that count under each answer form."""
    rows = [json.loads(line) for line in _shared("data", "math_test.jsonl").open(encoding="utf-8")]
    formula = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
    found: dict[str, str] = {}
    for form in ("any", "simplified"):
        pool = VerifierPool(VerifierConfig(answer_form=form, processes=2))
        items: dict[str, list[Item]] = {"golds": [], "copies": []}
        for row in rows:
            question = row.get("problem") or row["question"]
            asked = [next(part for part in match.groups() if part) for match in formula.finditer(question)]
            meta = {"question": question}
            if row["answer"]:
                items["golds"].append((f"\\boxed{{{row['answer']}}}", (row["answer"],), meta))
                longest = max(asked, key=len, default="")
                items["copies"].append((f"\\boxed{{{longest}}}", (row["answer"],), meta))
        for name, todo in items.items():
            right = sum(verdict.outcome == "correct" for verdict in pool.judge(todo))
            found[f"{form}, {name}"] = f"{right} of {len(todo)}, {right / len(todo):.2%}"
        pool.close()
    return found


def main() -> None:
    """Prints one measurement, a line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "hang", "pairs", "cases", "copies"))
    parser.add_argument("--items", type=int)
    parser.add_argument("--timeout", type=float, default=1.0)
    options = parser.parse_args()
    if options.what == "speed":
        found: dict[str, Any] = dict(speed(options.items or 2000))
    elif options.what == "hang":
        found = hang(options.items or 10_000, options.timeout)
    else:
        found = dict({"pairs": pairs, "cases": cases, "copies": copies}[options.what]())
    for name, value in found.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
