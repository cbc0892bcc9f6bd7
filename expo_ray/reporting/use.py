"""What became of recorded samples: each group is given once more to its algorithm, which says what it trains on."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.base import Algorithm, Properties
from expo_ray.algorithms.properties import SampleProperties
from expo_ray.config.schema import Config, VerifierConfig
from expo_ray.messages import Completion, Group, IntArray, Outcome, Problem, Prompt, Rollout, Verdict
from expo_ray.reporting.json_lines import finite

Lines = list[dict[str, Any]]
EMPTY = np.zeros(0, np.int32)
NAN = float("nan")


def config_of(loaded: Any) -> Config:
    """A run's configuration as the typed one. Keys unknown to this version are left out, missing ones have defaults."""
    config = Config()
    _fill(config, OmegaConf.to_container(loaded, resolve=False))
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
    """Says for the recorded lines of a group what the training batch took of them.

    A batch weighs a group's samples by the whole step's size, which is not known here; which samples it takes, in
    which term and with which advantage, depends on the group alone.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def uses(self, lines: Lines) -> tuple[list[list[tuple[str, float]]] | None, str]:
        """For each line its (term, advantage) pairs, none where it was not trained on; and a remark, or "".

        None in place of the list where it cannot be known, for the reason in the remark.
        """
        step = lines[0].get("step")
        if step is None:
            return None, "an evaluation: nothing is trained on"
        algorithm = make_algorithm(self.config)
        reason = self._unknown(lines, algorithm, int(step))
        if reason:
            return None, reason
        group, properties = _group(lines, self.config.verifier), _properties(lines)
        batch = algorithm.training_batch([group], int(step), properties)
        found: list[list[tuple[str, float]]] = [[] for _ in lines]
        for sample in batch.samples:
            found[int(sample.completion_ids[0])].append((sample.term, float(sample.advantage)))
        return found, self._remark(lines, algorithm, int(step))

    def _unknown(self, lines: Lines, algorithm: Algorithm, step: int) -> str:
        counts = {kind: sum(line["kind"] == kind for line in lines) for kind in ("free", "explanation", "gold")}
        free = self.config.rollout.samples_per_prompt if algorithm.rollout_ahead(step) else 0
        told = self.config.rollout.explanations_per_prompt if algorithm.needs_explanations(step) else 0
        if counts["free"] != free or counts["explanation"] != told:
            return "not known: the group's samples are not all recorded"
        if self.config.algo.name == "dpo_gt" and not counts["gold"]:
            return "not known: the gold solution is recorded only where properties are measured"
        if algorithm.needs_properties(step) and _properties(lines) is None:
            return "not known: the choice needs properties, which are not recorded"
        return ""

    def _remark(self, lines: Lines, algorithm: Algorithm, step: int) -> str:
        kinds = {line["kind"] for line in lines}
        if self.config.algo.name == "sft_gt_grpo" and "gold" not in kinds:
            return "the gold solution is an SFT target too, where the problem has one and is in scope"
        explains = self.config.algo.name in ("exp_grpo", "explanation_sft") and self.config.algo.beta > 0
        if explains and not algorithm.needs_explanations(step):
            return "explanations kept from an earlier step may be SFT targets too"
        return ""


def _marked(line: dict[str, Any], mark: int) -> Completion:
    """A completion of the recorded length whose every id is the line's number, so that it is known again."""
    tokens = int(line.get("tokens") or 0)
    return Completion(
        token_ids=np.full(tokens, mark, np.int32),
        logprobs=np.zeros(tokens, np.float32),
        text=str(line["text"]),
        finish_reason="length" if line.get("finish_reason") == "length" else "stop",
        weight_version=int(line.get("weight_version") or 0),
    )


def _verdict(line: dict[str, Any], config: VerifierConfig) -> Verdict:
    """The recorded verdict; what a wrong answer earned tells its partial credit."""
    outcome: Outcome = line.get("outcome") or "error"
    earned = finite(line.get("reward"))
    span = config.reward_correct - config.reward_wrong
    if outcome != "wrong" or earned is None or not span:
        return Verdict(outcome, line.get("extracted"))
    return Verdict(outcome, line.get("extracted"), credit=(earned - config.reward_wrong) / span)


def _group(lines: Lines, config: VerifierConfig) -> Group:
    first = lines[0]
    gold: IntArray | None = None
    parts: dict[str, list[tuple[Completion, Verdict]]] = {"free": [], "explanation": []}
    for mark, line in enumerate(lines):
        if line["kind"] == "gold":
            gold = np.full(1, mark, np.int32)
        else:
            parts[line["kind"]].append((_marked(line, mark), _verdict(line, config)))
    answers = tuple(str(answer) for answer in first.get("answers") or [])
    problem = Problem(str(first.get("uid")), str(first.get("question")), answers, None, first.get("level"))
    prompt = Prompt(problem, free_ids=EMPTY, conditioned_ids=EMPTY, gold_ids=gold)
    return Group(
        Rollout(prompt, [c for c, _ in parts["free"]], [c for c, _ in parts["explanation"]]),
        [v for _, v in parts["free"]],
        [v for _, v in parts["explanation"]],
    )


def _properties(lines: Lines) -> Properties | None:
    """What a choice among the explanations needs; None where it was not measured for all of them."""
    explanations = [line.get("properties") or {} for line in lines if line["kind"] == "explanation"]
    found = [(finite(p.get("mean_logprob")), finite(p.get("answer_rise"))) for p in explanations]
    measured = [SampleProperties(m, NAN, rise, NAN) for m, rise in found if m is not None and rise is not None]
    return [measured] if len(measured) == len(explanations) else None
