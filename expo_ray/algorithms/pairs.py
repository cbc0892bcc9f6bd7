"""Preference pairs: made from groups, stored by problem, written to and read from JSON Lines, and used again."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from expo_ray.algorithms.base import Inputs
from expo_ray.config.errors import DataError
from expo_ray.config.keys import defaults
from expo_ray.files import write_whole
from expo_ray.messages import Group, Prompt, Term, TrainingSample

EXPLANATION, GOLD = "self-explanation", "gold solution"
"""Kinds of a pair's chosen completion."""


@dataclass(frozen=True, slots=True)
class MadeWith:
    """What a pair was made with."""

    model: str
    """Identity of the base model."""
    chosen: str
    """Kind of the chosen completion."""
    stop_ids: list[int]
    settings: dict[str, Any]
    """Dotted key -> value: the model's path, how completions were sampled, and how explanations were chosen."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A chosen and a rejected completion of one problem's free prompt, as ids and as texts."""

    uid: str
    step: int
    """The step whose policy sampled them."""
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_text: str
    rejected_text: str
    reference_chosen: float | None = None
    """Sum over the chosen completion of the reference's log-probabilities, nats; None until scored."""
    reference_rejected: float | None = None
    reference_model: str | None = None
    """Identity of the model that computed these sums, and the temperature that divided its logits."""
    reference_temperature: float | None = None
    question: str = ""
    answers: list[str] = field(default_factory=list)
    """The problem's text and gold answers; empty in pairs of earlier versions."""
    made_with: MadeWith | None = None
    """None in pairs of earlier versions."""


def make_pairs(
    group: Group, chosen: list[tuple[list[int], str]], step: int, made_with: MadeWith | None = None
) -> list[Pair]:
    """Makes one pair for each chosen (ids, text), taking the group's wrong completions in turn.

    Wrong means a verdict of wrong or no_answer, not timeout or error. Without a wrong completion there is no pair.
    """
    rollout = group.rollout
    wrong = [
        completion
        for completion, verdict in zip(rollout.completions, group.verdicts, strict=True)
        if verdict.outcome in ("wrong", "no_answer") and len(completion.token_ids)
    ]
    if not wrong:
        return []
    rejected = [wrong[i % len(wrong)] for i in range(len(chosen))]
    return [
        Pair(
            uid=rollout.prompt.problem.uid,
            step=step,
            prompt_ids=rollout.prompt.free_ids.tolist(),
            chosen_ids=ids,
            rejected_ids=loser.token_ids.tolist(),
            chosen_text=text,
            rejected_text=loser.text,
            question=rollout.prompt.problem.question,
            answers=list(rollout.prompt.problem.answers),
            made_with=made_with,
        )
        for (ids, text), loser in zip(chosen, rejected, strict=True)
    ]


def pair_samples(pairs: list[Pair]) -> list[TrainingSample]:
    """Returns two samples per pair; they share a unit, and each weighs 1 / pairs."""
    samples = []
    for unit, pair in enumerate(pairs):
        samples += [
            _sample(pair, pair.chosen_ids, "chosen", unit, 1.0 / len(pairs), pair.reference_chosen),
            _sample(pair, pair.rejected_ids, "rejected", unit, 1.0 / len(pairs), pair.reference_rejected),
        ]
    return samples


def _sample(
    pair: Pair, ids: list[int], term: Term, unit: int, weight: float, reference: float | None
) -> TrainingSample:
    return TrainingSample(
        prompt_ids=np.array(pair.prompt_ids, dtype=np.int32),
        completion_ids=np.array(ids, dtype=np.int32),
        term=term,
        weight=weight,
        unit=unit,
        reference_logprob=reference,
    )


class PairStore:
    """The pairs of each problem, by uid; `put` replaces a problem's pairs."""

    def __init__(self) -> None:
        self._pairs: dict[str, list[Pair]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._pairs.values()))

    def __contains__(self, uid: str) -> bool:
        """Whether the problem's pairs were made, even if there were none to make."""
        return uid in self._pairs

    def __iter__(self) -> Iterator[Pair]:
        for pairs in self._pairs.values():
            yield from pairs

    def put(self, uid: str, pairs: list[Pair]) -> None:
        self._pairs[uid] = pairs

    def get(self, uid: str) -> list[Pair]:
        return self._pairs.get(uid, [])

    def keep_problems(self, uids: Iterable[str]) -> None:
        """Forgets the pairs of all other problems."""
        self._pairs = {uid: self._pairs[uid] for uid in uids if uid in self._pairs}

    def unscored(self) -> list[tuple[list[int], list[int]]]:
        """Returns the (context ids, scored ids) whose log-probability sums `set_reference` takes, in this order: the
        chosen and the rejected completion of each pair without reference sums."""
        without = [pair for pair in self if pair.reference_chosen is None or pair.reference_rejected is None]
        return [(pair.prompt_ids, ids) for pair in without for ids in (pair.chosen_ids, pair.rejected_ids)]

    def set_reference(self, sums: list[float], model: str, temperature: float) -> None:
        """Stores the sums of `unscored()` and what computed them. Raises ValueError if there are more or fewer."""
        if len(sums) != (wanted := len(self.unscored())):
            raise ValueError(f"{wanted // 2} pairs need {wanted} reference sums, got {len(sums)}")
        left = iter(sums)

        def with_sums(pair: Pair) -> Pair:
            if pair.reference_chosen is not None and pair.reference_rejected is not None:
                return pair
            scored = replace(pair, reference_chosen=next(left), reference_rejected=next(left))
            return replace(scored, reference_model=model, reference_temperature=temperature)

        self._pairs = {uid: [with_sums(pair) for pair in pairs] for uid, pairs in self._pairs.items()}

    def keep_reference_of(self, model: str, temperature: float) -> None:
        """Forgets reference sums that another model, or the same one at another temperature, computed."""

        def kept(pair: Pair) -> Pair:
            fits = pair.reference_model == model and pair.reference_temperature == temperature
            return pair if fits else replace(pair, reference_chosen=None, reference_rejected=None)

        self._pairs = {uid: [kept(pair) for pair in pairs] for uid, pairs in self._pairs.items()}

    def write(self, path: Path) -> None:
        """Writes one pair per line, with the fields of Pair as keys."""
        write_whole(path, "".join(json.dumps(asdict(pair)) + "\n" for pair in self))

    def read(self, path: Path) -> None:
        """Replaces the store's content by the pairs in a file.

        Raises:
            DataError: a line is not a pair, or the file has none; names file and line.
        """
        found = PairStore()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                pair = _pair(json.loads(line))
            except (json.JSONDecodeError, TypeError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not a stored pair ({error})") from error
            found.put(pair.uid, [*found.get(pair.uid), pair])
        if not len(found):
            raise DataError(f"{path} holds no pairs")
        self._pairs = found._pairs

    def state_dict(self) -> dict[str, Any]:
        """Returns the store as a value that JSON can hold."""
        return {uid: [asdict(pair) for pair in pairs] for uid, pairs in self._pairs.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces the store's content by a `state_dict()`."""
        self._pairs = {uid: [_pair(fields) for fields in pairs] for uid, pairs in state.items()}


def _pair(fields: dict[str, Any]) -> Pair:
    """Raises TypeError for fields that are not a pair's."""
    if not isinstance(fields, dict):
        raise TypeError(f"not an object but {type(fields).__name__}")
    made_with = fields.get("made_with")
    pair = Pair(**fields | {"made_with": None if made_with is None else MadeWith(**made_with)})
    for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
        if not isinstance(ids, list) or not ids or any(type(token) is not int for token in ids):
            raise TypeError("prompt_ids, chosen_ids and rejected_ids are lists of token ids")
    return pair


def use_again(store: PairStore, path: Path, inputs: Inputs, now: MadeWith) -> list[str]:
    """Reads stored pairs of an earlier run, and keeps those of this run's problems.

    The texts may come from another model or another temperature, if their ids fit this run's tokenizer: then only the
    reference sums are forgotten, to be computed again. Whatever else differs is refused.

    Args:
        store: takes the pairs.
        path: algo.dpo_pairs_path.
        inputs: the run's inputs.
        now: what this run would make pairs with.

    Returns:
        Sentences that say how many pairs are used and what differs.

    Raises:
        DataError: the file has no pair of the run's problems, or one that does not fit; one sentence.
    """
    store.read(path)
    prompts = {prompt.problem.uid: prompt for prompt in inputs.prompts}
    everything = list(store)
    pairs = [pair for pair in everything if pair.uid in prompts]
    if not pairs:
        raise DataError(
            f"algo.dpo_pairs_path={path}: its pairs are of other problems (first {everything[0].uid}) than the "
            f"{len(prompts)} of this run (first {next(iter(prompts))}): use the data that they were made of"
        )
    for pair in pairs:
        if (problem := _misfit(pair, prompts[pair.uid], inputs, now)) is not None:
            raise DataError(
                f"algo.dpo_pairs_path={path}: problem {pair.uid} {problem}, or leave the key out to make pairs"
            )
    store.keep_problems(prompts.keys())
    store.keep_reference_of(now.model, now.settings["rollout.temperature"])
    used = f"{len(pairs)} of {len(everything)} pairs in {path} belong to problems of this run and are used again"
    if not (again := len(store.unscored()) // 2):
        return [used]
    others = sorted({text for pair in pairs for text in _differences(pair, now)})
    return [used, f"the reference sums of {again} pairs are computed again ({'; '.join(others)})"]


def _misfit(pair: Pair, prompt: Prompt, inputs: Inputs, now: MadeWith) -> str | None:
    """Why a pair cannot be used again, after "problem UID"; None if it can."""
    problem, made = prompt.problem, pair.made_with
    settings = {} if made is None else made.settings
    data = "use the data that the pairs were made of"
    tokenizer = f"use the tokenizer and prompts of model.path={settings.get('model.path', 'the model that made them')}"
    if pair.question and pair.question != problem.question:
        return f"was {pair.question!r:.80} and is {problem.question!r:.80} now: {data}"
    if pair.answers and pair.answers != list(problem.answers):
        return f"had the answers {pair.answers!r:.80} and has {list(problem.answers)!r:.80} now: {data}"
    if pair.prompt_ids != (ids := prompt.free_ids.tolist()):
        then = f"{len(pair.prompt_ids)} prompt tokens {pair.prompt_ids[:4]}..."
        return f"had {then} and has {len(ids)} tokens {ids[:4]}... now: {tokenizer}"
    if made is not None and made.chosen != now.chosen:
        return f"has a {made.chosen} as its chosen completion, not a {now.chosen}: use the algo that made the pairs"
    sampled = [(pair.rejected_ids, pair.rejected_text), (pair.chosen_ids, pair.chosen_text)]
    if now.chosen == GOLD:
        if prompt.gold_ids is None or pair.chosen_ids != prompt.gold_ids.tolist():
            return f"had another {GOLD} than now: {data}"
        sampled.pop()
    for ids, text in sampled:
        if "".join((here := inputs.decode(ids)).split()) != "".join(text.split()):
            return f"has ids that were the text {text!r:.60} and are {here!r:.60} now: {tokenizer}"
        if made is not None and ids[-1] in made.stop_ids and ids[-1] not in inputs.stop_ids:
            return (
                f"has a completion that ends with token {ids[-1]}, and now {list(inputs.stop_ids)} end one: use a "
                "model that ends completions in the same way (generation_config.json)"
            )
    for key, value in now.settings.items():
        if made is not None and key.startswith("algo.") and (old := settings.get(key, defaults().get(key))) != value:
            return f"has a pair that was made with {key}={old}, and now it is {value}: use {key}={old}"
    return None


def _differences(pair: Pair, now: MadeWith) -> list[str]:
    """What a pair was made with, where this run differs."""
    made = pair.made_with
    if made is None:
        return ["an earlier version made pairs without saying with what"]
    keys = [] if made.model == now.model else ["model.path"]
    keys += [k for k, v in now.settings.items() if k.startswith("rollout.") and made.settings.get(k) != v]
    found = [f"made with {key}={made.settings.get(key)}, now {now.settings[key]}" for key in keys]
    return found or ["another model or temperature computed them, or none did"]
