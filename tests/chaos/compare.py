"""What a disturbed run must have in common with an undisturbed one: everything but the time it took."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from expo_ray.checkpoint.manifest import damage

TIMED = ("time/", "memory/", "sync/seconds", "tokens/per_second", "update/tera_operations", "update/mfu")


def lines(path: Path) -> list[dict[str, Any]]:
    """A JSON Lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without what depends on the machine's speed."""
    return {name: value for name, value in line.items() if not name.startswith(TIMED)}


def policy_digest(folder: Path, steps: int) -> str:
    """SHA-256 of the final policy's weights."""
    weights = folder / "checkpoints" / f"step_{steps:06d}" / "policy" / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def consumed(folder: Path) -> Counter[tuple[int, str]]:
    """How often each (step, problem) was trained on."""
    return Counter((line["step"], uid) for line in lines(folder / "batches.jsonl") for uid in line["uids"])


def assert_same_run(disturbed: Path, undisturbed: Path, steps: int, samples: int) -> None:
    """Prompts, batches, metrics, evaluations, samples and weights are the same, bit for bit."""
    assert consumed(disturbed) == consumed(undisturbed)
    for line in lines(disturbed / "batches.jsonl"):
        assert line["completions"] == [samples] * len(line["uids"]), f"step {line['step']} is not complete"
    mine, theirs = (list(map(untimed, lines(folder / "metrics.jsonl"))) for folder in (disturbed, undisturbed))
    assert [line["step"] for line in mine] == list(range(steps))
    for here, there in zip(mine, theirs, strict=True):
        assert here == there, f"step {here['step']}: {differing(here, there)}"
    for name in ("samples.jsonl", "evaluations.jsonl"):
        assert (disturbed / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert policy_digest(disturbed, steps) == policy_digest(undisturbed, steps)


def assert_whole_checkpoints(disturbed: Path, undisturbed: Path) -> None:
    """The same checkpoints are kept, all of them whole; no half-written one is left."""
    left = sorted(path.name for path in (disturbed / "checkpoints").iterdir())
    assert left == sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    damaged = {path.name: damage(path) for path in (disturbed / "checkpoints").iterdir()}
    assert not any(damaged.values()), damaged


def differing(here: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """The entries in which two lines differ."""
    return {k: (here.get(k), there.get(k)) for k in here.keys() | there.keys() if here.get(k) != there.get(k)}
