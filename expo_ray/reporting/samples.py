"""The samples that the report shows: whole groups, spread evenly over a run, within a stated limit."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from expo_ray.config.errors import DataError
from expo_ray.reporting.groups import RunGroup
from expo_ray.reporting.json_lines import LineReader, finite
from expo_ray.reporting.runs import RunFolder
from expo_ray.reporting.use import Lines, Replay, config_of

KINDS = ("free", "explanation", "gold")
"""In the order in which a group's lines are written."""
MAX_CHARACTERS = 20_000
"""A longer text is cut there, and says so."""
PROPERTIES = ("mean_logprob", "answer_rise", "rise_over_free")


@dataclass(frozen=True)
class RecordedSamples:
    """One run's samples as the page shows them."""

    prompts: list[dict[str, Any]]
    shown: int
    recorded: int
    notes: list[str]


def embedded_samples(groups: Sequence[RunGroup], limit: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The prompts with samples of all runs, at most about `limit` samples, and sentences on what was left out.

    The limit is shared out evenly over the runs. A prompt has `run`, the place of its run in `run_names`.
    """
    runs = [run for group in groups for run in group.runs]
    each = max(1, limit // max(1, len(runs)))
    prompts: list[dict[str, Any]] = []
    notes: list[str] = []
    shown = recorded = 0
    for index, (run, name) in enumerate(zip(runs, run_names(groups), strict=True)):
        found = read_samples(run, each)
        prompts += [{"run": index} | prompt for prompt in found.prompts]
        notes += [f"{name}: {note}" for note in found.notes]
        shown, recorded = shown + found.shown, recorded + found.recorded
    if shown < recorded:
        notes.append(
            f"{shown} of {recorded} recorded samples are in this page: at most {each} of a run, whole prompts spread "
            "evenly over its steps. The others are in the runs' samples.jsonl; --max-samples takes in more."
        )
    return prompts, notes


def run_names(groups: Sequence[RunGroup]) -> list[str]:
    """A name for each run: its group's label and its seed; its folder too where the seed was run twice."""
    return [
        f"{group.label}, seed {seed}" + (f" ({run.path.name})" if group.seeds.count(seed) > 1 else "")
        for group in groups
        for run, seed in zip(group.runs, group.seeds, strict=True)
    ]


def read_samples(run: RunFolder, limit: int) -> RecordedSamples:
    """A run's groups, thinned to at most `limit` samples (but one group at least)."""
    reader = LineReader(run.path / "samples.jsonl", keys=("kind", "text"))
    kept, recorded = thinned(recorded_groups(reader), limit)
    try:
        replay = Replay(config_of(run.config))
        prompts = [_prompt(lines, replay) for lines in kept]
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        message = f"{reader.path}: not the samples of this run's config.yaml ({type(error).__name__}: {error})"
        raise DataError(message) from error
    return RecordedSamples(prompts, sum(map(len, kept)), recorded, reader.notes())


def recorded_groups(lines: Iterable[dict[str, Any]]) -> Iterator[Lines]:
    """The lines of one group after the other: a group's lines stand together, free ones first, gold last."""
    group: Lines = []
    for line in lines:
        if line["kind"] not in KINDS:
            continue
        if group and (_key(line) != _key(group[-1]) or _place(line) < _place(group[-1])):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _key(line: dict[str, Any]) -> tuple[Any, Any]:
    return line.get("step"), line.get("uid")


def _place(line: dict[str, Any]) -> int:
    return KINDS.index(line["kind"])


def thinned(groups: Iterable[Lines], limit: int) -> tuple[list[Lines], int]:
    """Every n-th group, n the smallest power of two that leaves at most `limit` samples; and how many there were.

    One pass, and never more than twice the limit in memory.
    """
    kept: list[Lines] = []
    stride, recorded = 1, 0
    for place, group in enumerate(groups):
        recorded += len(group)
        if place % stride == 0:
            kept.append(group)
        while len(kept) > 1 and sum(map(len, kept)) > limit:
            kept = kept[::2]
            stride *= 2
    return kept, recorded


def _prompt(lines: Lines, replay: Replay) -> dict[str, Any]:
    first = lines[0]
    uses, remark = replay.uses(lines)
    answers = first.get("answers") or []
    return {
        "step": first.get("step"),
        "uid": str(first.get("uid")),
        "level": first.get("level"),
        "question": _cut(str(first.get("question"))),
        "answers": [_cut(str(answer)) for answer in answers],
        "remark": remark,
        "samples": [_sample(line, uses[i] if uses is not None else None) for i, line in enumerate(lines)],
    }


def _sample(line: dict[str, Any], uses: list[tuple[str, float]] | None) -> dict[str, Any]:
    measured = line.get("properties") or {}
    extracted, leak = line.get("extracted"), line.get("leak")
    return {
        "kind": line["kind"],
        "text": _cut(str(line["text"])),
        "outcome": line.get("outcome"),
        "extracted": None if extracted is None else _cut(str(extracted)),
        "reward": finite(line.get("reward")),
        "tokens": finite(line.get("tokens")),
        "finish": line.get("finish_reason"),
        "version": line.get("weight_version"),
        "logprob": finite(line.get("rollout_mean_logprob")),
        "properties": [finite(measured.get(name)) for name in PROPERTIES] if measured else None,
        "leak": None if leak is None else str(leak),
        "uses": None if uses is None else [[term, round(advantage, 4)] for term, advantage in uses],
    }


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} [... {len(text) - MAX_CHARACTERS} more characters are left out of this page]"
