"""NuRL: where every completion is wrong, all but one are drawn again with a hint of the policy's own (2509.25666)."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from expo_ray.algorithms.base import Inputs, Properties, Sample
from expo_ray.algorithms.explanations import in_scope, review_explanations, review_metrics
from expo_ray.algorithms.grpo import Grpo, group_samples, sample_guided, weighted
from expo_ray.algorithms.rewards import group_metrics, has_signal, shaped_advantages
from expo_ray.config.algorithms import POLICY_KEYS, Explanations
from expo_ray.config.schema import Config
from expo_ray.messages import Group, IntArray, Rollout, RolloutRequest, TrainingBatch, TrainingSample
from expo_ray.prompts.templates import after_thought

HINT_KEYS = frozenset(
    {
        "explanation_scope",
        "explanation_threshold",
        "explanation_refresh_steps",
        "explanation_filter",
        "explanation_cut_off",
        "leak_filter",
    }
)


def nudged(group: Group) -> Group:
    """The group that advantages are computed over: one free completion and the guided ones."""
    told = group.guided
    assert told is not None, "only a group that was drawn again has another one"
    names = group.scores.keys() & told.scores.keys()
    return Group(
        Rollout(group.rollout.prompt, [*group.rollout.completions[:1], *told.rollout.completions], []),
        [*group.verdicts[:1], *told.verdicts],
        [],
        {name: [*group.scores[name][:1], *told.scores[name]] for name in sorted(names)},
    )


def nudged_samples(group: Group, config: Config) -> list[TrainingSample]:
    """A group's samples: GRPO's, or those of `nudged`, each after the prompt that it was drawn with."""
    if group.guided is None:
        return group_samples(group, shaped_advantages(group, config))
    advantages = shaped_advantages(nudged(group), config)
    first = replace(group, rollout=replace(group.rollout, completions=group.rollout.completions[:1]))
    return group_samples(first, advantages[:1]) + group_samples(group.guided, advantages[1:])


def tells(hint: str, answers: Iterable[str]) -> bool:
    """Whether a hint contains one of the answers, as whole words: "hits" does not tell "it", "15" does not tell "5"."""
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", hint) for answer in answers)


class NuRl(Grpo):
    """GRPO that draws all-wrong groups again with a hint in the prompt (docs/algorithms/nurl.md)."""

    label = "NuRL"
    explanations: Explanations = "optional"
    explains_when_needed = True
    uses = POLICY_KEYS | HINT_KEYS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.step = 0
        self.hinted: dict[str, tuple[int, IntArray]] = {}
        """uid -> the step at which its hint was made, and the prompt that shows it."""

    def begin(self, inputs: Inputs) -> list[str]:
        self.inputs = inputs
        return super().begin(inputs)

    def explanations_ahead(self, step: int) -> int:
        self.step = step  # of the requests that follow, which skips_explanations is asked about
        return 1 if self.config.rollout.explanations_per_prompt else 0

    def skips_explanations(self, uid: str) -> bool:
        return self._known(uid, self.step) is not None

    def guidance_tokens(self, prompts: list[Any]) -> int:
        """A hint, or the explanation of which one is asked, and the request around it."""
        return self.config.rollout.max_completion_tokens + 128

    def guide(self, groups: list[Group], step: int, sample: Sample) -> tuple[list[Group], dict[str, float]]:
        """Draws again, with a hint, G - 1 completions of each group in scope that has or gets one."""
        wanted = [i for i, group in enumerate(groups) if in_scope(group, self.config)]
        uids = {i: groups[i].rollout.prompt.problem.uid for i in wanted}
        prompts = {i: known for i, uid in uids.items() if (known := self._known(uid, step)) is not None}
        hints, counts = self._hints([(i, groups[i]) for i in wanted if i not in prompts], sample)
        builder = self.inputs.builder
        assert builder is not None, "the run made the prompts with one"
        prompts |= {i: builder.guided(groups[i].rollout.prompt.problem, "hint", text) for i, text in hints.items()}
        again = self.config.rollout.samples_per_prompt - 1
        groups, more = sample_guided(groups, dict(sorted(prompts.items())), again, self.inputs, self.config, sample)
        return groups, counts | more

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        sampled = [group for group in groups if group.rollout.completions]
        drops = self.config.algo.dynamic_sampling != "none"
        kept = [group for group in sampled if not drops or self.has_signal(group)]
        for group in sampled:
            uid = group.rollout.prompt.problem.uid
            held = self.hinted.get(uid)
            if group.guided is not None and (held is None or self._expired(held[0], step)):
                self.hinted[uid] = step, group.guided.rollout.prompt.free_ids
        samples = [sample for group in kept for sample in nudged_samples(group, self.config)]
        metrics = group_metrics(sampled, self.config) | {"groups/dropped": float(len(sampled) - len(kept))}
        return TrainingBatch(step=step, samples=weighted(samples, self.config), metrics=metrics)

    def has_signal(self, group: Group) -> bool:
        return has_signal(group if group.guided is None else nudged(group), self.config)

    def state_dict(self) -> dict[str, Any]:
        return {"hinted": {uid: [step, ids.tolist()] for uid, (step, ids) in self.hinted.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hinted = {uid: (step, np.array(ids, np.int32)) for uid, (step, ids) in state["hinted"].items()}

    def _known(self, uid: str, step: int) -> IntArray | None:
        """The prompt with the problem's hint, for `explanation_refresh_steps` steps after it was made; 0: for all.

        With `trainer.async_steps` k, step + k may be sampled before `step` has its batch or after it. So a hint counts
        from k + 1 steps on: what a step samples does not depend on which of both came first.
        """
        made, ids = self.hinted.get(uid, (step, None))
        early = step <= made + self.config.trainer.async_steps
        return None if early or self._expired(made, step) else ids

    def _expired(self, made: int, step: int) -> bool:
        period = self.config.algo.explanation_refresh_steps
        return period > 0 and step - made >= period

    def _hints(self, groups: list[tuple[int, Group]], sample: Sample) -> tuple[dict[int, str], dict[str, float]]:
        """Writes a hint from the first kept explanation of each group. Of both, thoughts are left out; a hint that the
        length limit cut off counts as empty.

        Returns:
            Index of the group -> hint, for those that got one, and counts to log.
        """
        algo, builder = self.config.algo, self.inputs.builder
        assert builder is not None, "the run made the prompts with one"
        reviews = [review_explanations(group, algo, None) for _, group in groups]
        counts = review_metrics([group for _, group in groups], reviews, algo)
        texts = {
            i: after_thought(next(e.text for e, r in zip(group.rollout.explanations, of, strict=True) if r.kept))
            for (i, group), of in zip(groups, reviews, strict=True)
            if any(review.kept for review in of)
        }
        texts = {i: text for i, text in texts.items() if text}
        leaks = empty = too_long = 0
        if texts and builder.asks_for_hints:
            problems = {i: group.rollout.prompt for i, group in groups if i in texts}
            asked = [
                RolloutRequest(replace(p, free_ids=builder.guided(p.problem, "ask_hint", texts[i])), 1, 0)
                for i, p in problems.items()
            ]
            fits = self.inputs.context - self.config.rollout.max_completion_tokens
            short = [(i, r) for i, r in zip(problems, asked, strict=True) if len(r.prompt.free_ids) <= fits]
            written = sample([request for _, request in short]) if short else []
            hints = {i: g.rollout.completions[0] for (i, _), g in zip(short, written, strict=True)}
            texts = {i: after_thought(hint.text) for i, hint in hints.items() if hint.finish_reason == "stop"}
            told = {i for i, text in texts.items() if tells(text, problems[i].problem.answers)}
            leaks, empty, too_long = len(told), len(hints) - sum(map(bool, texts.values())), len(asked) - len(short)
            texts = {i: text for i, text in texts.items() if text and not (algo.leak_filter and i in told)}
        return texts, counts | {
            "hints/written": float(len(texts)),
            "hints/leaked": float(leaks),
            "hints/empty": float(empty),
            "hints/too_long": float(too_long),
        }
