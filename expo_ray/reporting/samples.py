"""The samples that the report shows: whole groups, spread evenly over a run, within a stated limit."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.base import Algorithm, Properties
from expo_ray.algorithms.explanations import in_scope
from expo_ray.algorithms.properties import SampleProperties
from expo_ray.config.errors import ConfigError, DataError
from expo_ray.config.keys import defaults, facts_of, flat, value_of, with_new_keys
from expo_ray.config.schema import Config, VerifierConfig
from expo_ray.files import JsonLines
from expo_ray.messages import Completion, Group, IntArray, Outcome, Problem, Prompt, Rollout, Score, Verdict
from expo_ray.reporting.groups import RunGroup
from expo_ray.reporting.runs import RunFolder, finite
from expo_ray.rewards.functions import VERIFIER, own_functions

Lines = list[dict[str, Any]]
EMPTY = np.zeros(0, np.int32)
NAN = float("nan")


def config_of(loaded: Any) -> Config:
    """Converts a run's configuration to the schema: unknown keys are dropped, absent ones are what runs did then."""
    config = Config()
    saved: Any = OmegaConf.to_container(loaded, resolve=False)
    values = with_new_keys(saved)
    _fill(config, values)
    for key in defaults().keys() - flat(values).keys():
        if (then := facts_of(key).formerly) is not None:
            group, _, name = key.rpartition(".")
            setattr(value_of(config, group), name, then)
    config.algo.dpo_pairs_path = None
    return config


def _fill(target: Any, values: Any) -> None:
    for field in fields(target):
        if isinstance(values, dict) and field.name in values:
            if is_dataclass(getattr(target, field.name)):
                _fill(getattr(target, field.name), values[field.name])
            else:
                setattr(target, field.name, values[field.name])


class Replay:
    """Repeats for a recorded group what the training batch used of it.

    A batch weights a group's samples by the whole step's size, which is unknown here. Which samples it uses, in which
    term and with which advantage, depends on the group alone.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def uses(self, lines: Lines) -> tuple[list[list[tuple[str, float]]] | None, str]:
        """Returns each line's (term, advantage) pairs, none for a line that was not trained on, and a remark or "".

        None replaces the list if the uses cannot be known; the remark then gives the reason.
        """
        step = lines[0].get("step")
        if step is None:
            return None, "an evaluation: nothing is trained on"
        try:
            algorithm = make_algorithm(self.config)
        except ConfigError as error:  # a class that is not installed where the report is made
            return None, f"not known: {error}"
        group, properties = _group(lines, self.config.verifier), _properties(lines)
        reason = self._unknown(lines, group, algorithm, int(step))
        if reason:
            return None, reason
        algorithm.restate = lambda _, ids: (ids, "")  # the target is another text, made of the same line
        batch = algorithm.training_batch([group], int(step), properties)
        found: list[list[tuple[str, float]]] = [[] for _ in lines]
        for sample in batch.samples:
            found[int(sample.completion_ids[0])].append((sample.term, float(sample.advantage)))
        return found, self._remark(lines, algorithm, int(step))

    def _unknown(self, lines: Lines, group: Group, algorithm: Algorithm, step: int) -> str:
        counts = {kind: sum(line["kind"] == kind for line in lines) for kind in ("free", "explanation", "gold")}
        free = self.config.rollout.samples_per_prompt if algorithm.rollout_ahead(step) else 0
        explained = self.config.rollout.explanations_per_prompt if algorithm.needs_explanations(step) else 0
        # Out of scope, and where something stored takes their place, none are sampled.
        optional = algorithm.explains_when_needed or (free and not in_scope(group, self.config))
        enough = counts["explanation"] == explained or (optional and not counts["explanation"])
        if counts["free"] != free or not enough:
            return "not known: the group's samples are not all recorded"
        rewards = self.config.reward
        wanted = {VERIFIER, *own_functions(rewards)} if own_functions(rewards) or rewards.weights else set()
        earned = [(line.get("rewards") or {}).keys() for line in lines if line["kind"] in ("free", "guided")]
        if any(wanted - names for names in earned):
            return "not known: what each reward function gave is not recorded for every completion"
        # Without a policy term it hangs on the gold solution whether a free completion was used at all.
        by_gold = algorithm.gold_in_group or (algorithm.needs_gold and not algorithm.needs_group)
        if by_gold and not counts["gold"]:
            return "not known: the gold solution is recorded only where properties are measured"
        if algorithm.scores_batch:
            return "not known: it hangs on the learners' scores, which are not recorded"
        if algorithm.needs_properties(step) and _properties(lines) is None:
            return "not known: the choice needs properties, which are not recorded"
        return ""

    def _remark(self, lines: Lines, algorithm: Algorithm, step: int) -> str:
        kinds = {line["kind"] for line in lines}
        if algorithm.needs_gold and "gold" not in kinds:
            return "the gold solution is an SFT target too, where the problem has one and is in scope"
        explains = algorithm.explanations != "none" and self.config.algo.beta > 0
        if explains and algorithm.rollout_ahead(step) and not algorithm.needs_explanations(step):
            return "explanations kept from an earlier step may be SFT targets too"
        return ""


def _marked(line: dict[str, Any], mark: int) -> Completion:
    """Makes a completion of the recorded length; all its token ids are the line's number, which identifies it later."""
    tokens = int(line.get("tokens") or 0)
    return Completion(
        token_ids=np.full(tokens, mark, np.int32),
        logprobs=np.zeros(tokens, np.float32),
        text=str(line["text"]),
        finish_reason="length" if line.get("finish_reason") == "length" else "stop",
        weight_version=int(line.get("weight_version") or 0),
    )


def _verdict(line: dict[str, Any], config: VerifierConfig) -> Verdict:
    """Restores the recorded verdict, with the partial credit that a wrong answer's reward implies."""
    outcome: Outcome = line.get("outcome") or "error"
    earned = finite((line.get("rewards") or {}).get(VERIFIER, {}).get("value", line.get("reward")))
    span = config.reward_correct - config.reward_wrong
    if outcome != "wrong" or earned is None or not span:
        return Verdict(outcome, line.get("extracted"))
    return Verdict(outcome, line.get("extracted"), credit=(earned - config.reward_wrong) / span)


def _group(lines: Lines, config: VerifierConfig) -> Group:
    first = lines[0]
    gold: IntArray | None = None
    parts: dict[str, list[tuple[Completion, Verdict]]] = {"free": [], "explanation": [], "guided": []}
    for mark, line in enumerate(lines):
        if line["kind"] == "gold":
            gold = np.full(1, mark, np.int32)
        else:
            parts[line["kind"]].append((_marked(line, mark), _verdict(line, config)))
    answers = tuple(str(answer) for answer in first.get("answers") or [])
    problem = Problem(str(first.get("uid")), str(first.get("question")), answers, None, first.get("level"))
    prompt = Prompt(problem, free_ids=EMPTY, conditioned_ids=EMPTY, gold_ids=gold)
    told = parts["guided"]
    return Group(
        Rollout(prompt, [c for c, _ in parts["free"]], [c for c, _ in parts["explanation"]]),
        [v for _, v in parts["free"]],
        [v for _, v in parts["explanation"]],
        _scores(lines, "free"),
        Group(Rollout(prompt, [c for c, _ in told], []), [v for _, v in told], [], _scores(lines, "guided"))
        if told
        else None,
    )


def _scores(lines: Lines, kind: str) -> dict[str, list[Score]]:
    """What each function of one's own gave for the completions of one kind."""
    scored = [line.get("rewards") or {} for line in lines if line["kind"] == kind]
    functions = dict.fromkeys(name for of in scored for name in of if name != VERIFIER)
    return {name: [Score(finite(of.get(name, {}).get("value"))) for of in scored] for name in functions}


def _properties(lines: Lines) -> Properties | None:
    """Restores the explanations' properties, by which some algorithms choose; None if not all were measured."""
    explanations = [line.get("properties") or {} for line in lines if line["kind"] == "explanation"]
    found = [(finite(p.get("mean_logprob")), finite(p.get("answer_rise"))) for p in explanations]
    measured = [SampleProperties(m, NAN, rise, NAN) for m, rise in found if m is not None and rise is not None]
    return [measured] if len(measured) == len(explanations) else None


WRITTEN = ("free", "guided", "explanation", "gold")
"""The kinds of samples in the order in which a group's lines are written."""
MAX_CHARACTERS = 20_000
"""Longer texts are cut there, and say so."""
PROPERTIES = ("mean_logprob", "answer_rise", "rise_over_free")


@dataclass(frozen=True)
class RecordedSamples:
    """One run's samples as the page shows them."""

    prompts: list[dict[str, Any]]
    shown: int
    recorded: int
    notes: list[str]


def embedded_samples(groups: Sequence[RunGroup], limit: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the prompts of all runs with about `limit` samples at most, and sentences on what was left out.

    The limit is divided evenly among the runs. A prompt's `run` is the index of its run in `run_names`.
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
            f"This page has {shown} of {recorded} recorded samples: at most {each} per run, whole prompts spread "
            "evenly over its steps. The others are in the runs' samples.jsonl; --max-samples raises the limit."
        )
    return prompts, notes


def run_names(groups: Sequence[RunGroup]) -> list[str]:
    """Names each run by its group's label and seed, and by its folder if the seed was run twice."""
    return [
        f"{group.label}, seed {seed}" + (f" ({run.path.name})" if group.seeds.count(seed) > 1 else "")
        for group in groups
        for run, seed in zip(group.runs, group.seeds, strict=True)
    ]


def read_samples(run: RunFolder, limit: int) -> RecordedSamples:
    """Reads a run's groups, thinned to at most `limit` samples but at least one group."""
    reader = JsonLines(run.path / "samples.jsonl", keys=("kind", "text"))
    kept, recorded = thinned(recorded_groups(reader), limit)
    try:
        replay = Replay(config_of(run.config))
        prompts = [_prompt(lines, replay) for lines in kept]
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        message = f"{reader.path}: not the samples of this run's config.yaml ({type(error).__name__}: {error})"
        raise DataError(message) from error
    return RecordedSamples(prompts, sum(map(len, kept)), recorded, reader.notes())


def recorded_groups(lines: Iterable[dict[str, Any]]) -> Iterator[Lines]:
    """Yields the lines group by group: a group's lines are consecutive, free ones first, gold last."""
    group: Lines = []
    for line in lines:
        if line["kind"] not in WRITTEN:
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
    return WRITTEN.index(line["kind"])


def thinned(groups: Iterable[Lines], limit: int) -> tuple[list[Lines], int]:
    """Keeps every n-th group, n being the smallest power of two that leaves at most `limit` samples.

    Makes one pass and never holds more than about twice the limit in memory.

    Returns:
        The kept groups and the number of all samples.
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
    return f"{text[:MAX_CHARACTERS]} [... {len(text) - MAX_CHARACTERS} more characters are not in this page]"
