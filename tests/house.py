"""The figures of the house: how large its files and functions are, and which way its imports run.

python -m tests.house            prints the figures, each beside its bound
python -m tests.house --imports  prints the imports that run from a lower layer to a higher one
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from expo_ray.config.algorithms import ALGORITHMS

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "expo_ray"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("messages", "files", "balance", "leaks"),
    ("config",),
    ("runtime",),
    ("verifier",),
    ("rewards",),
    ("world", "data"),
    ("prompts",),
    ("algorithms",),
    ("rollout", "learner", "sync"),
    ("preflight",),
    ("checkpoint",),
    ("evaluation",),
    ("driver",),
    ("reporting",),
    ("sweep", "submission"),
    ("entry", "command"),
    ("train", "demo", "evaluate", "verify", "report", "submit"),
)
"""Folders and top-level files of the package, lowest layer first. Within a layer any order of imports is allowed
that has no circle."""

SMALL_LINES, LONG_LINES, LONG_FUNCTION = 60, 450, 60
STEP = (
    "train", "entry", "messages", "files", "balance", "leaks", "config", "runtime", "data", "prompts", "rollout",
    "verifier.actor", "verifier.pool", "verifier.wire", "verifier.worker", "verifier.tasks",
    "algorithms", "learner", "sync", "driver",
)  # fmt: skip


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def layer(self) -> int:
        """Index into LAYERS."""
        first = self.name.split(".")[1]
        return next(index for index, names in enumerate(LAYERS) if first in names)


@cache
def modules() -> dict[str, Module]:
    """The package's modules by dotted name; an `__init__` goes by its folder's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text(encoding="utf-8")
        found[name] = Module(name, path, ast.parse(text), len(text.splitlines()))
    return found


def imports(module: Module) -> Iterator[str]:
    """Names of the package's modules that `module` imports, also inside functions and for type checkers."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom) and node.module in modules():
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules() else str(node.module)


def imports_back_up() -> list[tuple[str, str]]:
    """Imports from a lower layer to a higher one."""
    files = [m for m in modules().values() if m.name != "expo_ray"]
    return sorted(
        {(m.name, name) for m in files for name in imports(m) if name != "expo_ray" and modules()[name].layer > m.layer}
    )


def circles() -> list[list[str]]:
    """Groups of files that import each other in a circle (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in set(imports(modules()[name])) - {name}:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            position = stack.index(name)
            component, stack[position:] = stack[position:], []
            if len(component) > 1:
                found.append(sorted(component))

    for name in modules():
        if name not in index:
            visit(name)
    return found


def long_functions() -> list[tuple[str, int]]:
    """Functions over LONG_FUNCTION lines, `module.function` and lines."""
    return [
        (f"{module.name}.{node.name}", node.end_lineno - node.lineno + 1)
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > LONG_FUNCTION
    ]


def files() -> list[Module]:
    """The files with code: all but `__init__`s that only name their folder."""
    return [m for m in modules().values() if m.path.name != "__init__.py" or m.lines > 10]


def method_files() -> set[str]:
    """The files of registered algorithms, but those of GRPO, ExPO and DPO."""
    return {path.partition(":")[0] for path in ALGORITHMS.values()} - {
        f"expo_ray.algorithms.{name}" for name in ("grpo", "exp_grpo", "exp_dpo")
    }


def step_files() -> list[str]:
    """The files that a reader opens to follow one ExP-GRPO step from the command to the synced weights.

    Those reached by imports from the loop and its actors, in the folders that a step passes through.
    """
    seen: set[str] = set()
    todo = ["expo_ray.driver.loop", "expo_ray.rollout.worker", "expo_ray.learner.rank", "expo_ray.verifier.actor"]
    todo += ["expo_ray.algorithms.exp_grpo"]
    while todo:
        name = todo.pop()
        short = name.removeprefix("expo_ray.")
        if name in seen or not any(short == part or short.startswith(part + ".") for part in STEP):
            continue
        seen.add(name)
        todo += imports(modules()[name])
    return sorted(name for name in seen if modules()[name] in files())


@cache
def figures() -> list[tuple[str, float, str, float]]:
    """(what, figure, "at most" or "at least", bound)."""
    sizes = [m.lines for m in files()]
    return [
        # A method is one file by design, so those beyond GRPO, ExPO and DPO do not count.
        ("files", len(sizes) - len(method_files()), "at most", 130),
        ("lines", sum(m.lines for m in modules().values()), "at most", 17_000),
        ("median lines", median(sizes), "at least", 120),
        ("files under 60 lines", sum(size < SMALL_LINES for size in sizes), "at most", 18),
        ("longest file", max(sizes), "at most", LONG_LINES),
        ("functions over 60 lines", len(long_functions()), "at most", 0),
        ("imports back up", len(imports_back_up()), "at most", 0),
        ("import circles", len(circles()), "at most", 0),
        ("files of one step", len(step_files()), "at most", 60),
    ]


def main() -> int:
    """Prints the figures; 1 where one is out of bounds."""
    wrong = False
    for what, figure, which, bound in figures():
        holds = figure <= bound if which == "at most" else figure >= bound
        wrong |= not holds
        print(f"{what:26}{figure:>8g}   {which} {bound:g}{'' if holds else '   <-- MISSED'}")
    if "--imports" in sys.argv:
        print(*(f"{a} -> {b}" for a, b in imports_back_up()), *circles(), sep="\n")
    if "--step" in sys.argv:
        print(*step_files(), sep="\n")
    if "--small" in sys.argv:
        print(*(f"{m.lines:4} {m.name}" for m in sorted(files(), key=lambda m: m.lines) if m.lines < 80), sep="\n")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
