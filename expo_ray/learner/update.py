"""One update of the policy: score, sum the algorithm's losses over micro-batches, take the optimizer step."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expo_ray.algorithms.base import Algorithm
from expo_ray.algorithms.tokens import MetricSums, PolicyTokens, merge_metrics
from expo_ray.config.schema import Config, LearnerConfig
from expo_ray.learner.micro_batches import Entropy, Layout, deal, lay_out, most_scored, shortest_unit
from expo_ray.messages import Likeliest, TrainingBatch, TrainingSample
from expo_ray.runtime.spans import span


def learning_rate(config: LearnerConfig, step: int, steps: int) -> float:
    """Learning rate of update `step` (from 0) of `steps`: linear warm-up, then constant, linear or cosine to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    if config.schedule == "linear":
        return config.learning_rate * (1 - progress)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate


def rate_of_update(config: Config, update: int) -> float:
    """Learning rate of a run's update, counted from 0.

    `trainer.sft_steps` and the updates after them each run the whole schedule, over their own updates.
    """
    learner, sft, steps = config.learner, config.trainer.sft_steps, config.trainer.steps
    if update >= sft:
        return learning_rate(learner, update - sft, steps - sft)
    highest = learner.learning_rate if learner.sft_learning_rate is None else learner.sft_learning_rate
    return learning_rate(replace(learner, learning_rate=highest), update, sft)


@dataclass
class MicroBatch:
    """Some samples of a batch, laid out, with the log-probabilities that stay fixed during the update."""

    samples: list[TrainingSample]
    layout: Layout
    most_scored: int
    """The largest number of scored tokens that any rank has in this round."""
    idle: bool
    """Whether this rank has nothing left to do. The micro-batch is then computed with weight 0, because every rank
    must take part in the collective calls."""
    compared: list[int]
    """Ascending indices in `samples` of those that need the reference policy: the shortest one if none of these
    samples does, none at all if no sample of the whole batch does."""
    most_compared: int
    """The largest number of scored tokens that any rank's `compared` has in this round."""
    old_logprobs: Tensor | None = None
    exact_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None


class Updater:
    """Runs updates on one rank.

    Args:
        config: the run's configuration.
        algorithm: computes the losses.
        engine: the policy's DeepSpeed engine around a TokenScorer.
        reference: the reference policy, called like the engine, without gradient; None if no term needs it, or if it
            is loaded only when a sample needs it.
        rank: this rank.
        ranks: number of ranks.
        load_reference: loads it then; a collective call. Anything may ask to be scored by it (`score`).
    """

    def __init__(
        self,
        config: Config,
        algorithm: Algorithm,
        engine: Any,
        reference: Callable[..., tuple[Tensor, Tensor | None]] | None,
        rank: int,
        ranks: int,
        load_reference: Callable[[], Callable[..., tuple[Tensor, Tensor | None]]] | None = None,
    ) -> None:
        self.config, self.algorithm, self.engine, self.reference = config, algorithm, engine, reference
        self.rank, self.ranks, self.load_reference = rank, ranks, load_reference
        # Dropout makes another policy of the one that is updated than of the one that sampled.
        self.drops_out = config.model.lora.dropout > 0 and algorithm.needs_group
        self.packed = config.learner.batching == "packed"
        self.shares = config.learner.share_prompts
        self.device = torch.device(config.profile.device)

    def update(self, batch: TrainingBatch, learning_rate: float) -> MetricSums:
        """Takes `algo.updates_per_batch` optimizer steps on the batch.

        Returns:
            This rank's metric sums: those of the losses at the first optimizer step, the only on-policy one, and,
            with several steps, the policy term's at the last one under `last_policy/`.
        """
        micro_batches = self.micro_batches(batch.samples)
        with span("fix references", micro_batches=len(micro_batches)):
            self._fix_references(micro_batches)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        parts: list[MetricSums] = []
        every = self.config.logging.entropy_every
        measured = bool(every) and batch.step % every == 0
        for _ in range(self.config.algo.updates_per_batch):
            with span("forward and backward", micro_batches=len(micro_batches)):
                parts.append(self.accumulate(micro_batches, measured))
            with span("optimizer step"):
                parts.append({"update/gradient_norm": (self.step(), 1.0)})
        # `parts` alternates: the sums of a step's losses, then its gradient norm.
        losses = {} if len(parts) <= 2 else {k: v for k, v in parts[-2].items() if k.startswith("policy/")}
        last = {f"last_{name}": value for name, value in losses.items()}
        return merge_metrics([parts[0], last, *parts[1::2]])

    def micro_batches(self, samples: list[TrainingSample]) -> list[MicroBatch]:
        """Cuts out this rank's share of a batch: at least one micro-batch, which may be idle."""
        lengths = [len(s.prompt_ids) + len(s.completion_ids) for s in samples]
        budget = self.config.learner.tokens_per_micro_batch
        numbers: dict[bytes, int] = {}
        prompts = [numbers.setdefault(s.prompt_ids.tobytes(), len(numbers)) for s in samples]
        shared = list(zip(prompts, (len(s.prompt_ids) for s in samples), strict=True)) if self.shares else None
        shares = deal(lengths, [s.unit for s in samples], self.ranks, budget, self.packed, shared)
        spare = shortest_unit(lengths, [s.unit for s in samples])
        scored = [len(s.completion_ids) for s in samples]
        most = most_scored(shares, scored, spare)
        terms = self.algorithm.reference_terms
        wanted = [sample.term in terms and sample.reference_logprob is None for sample in samples]
        # Scoring is a collective call: either every rank scores in every round of the batch, or none ever does.
        compared = [[_compared(cut or spare, wanted, lengths) for cut in share] for share in shares]
        most_compared = most_scored(compared, scored, spare)
        found = []
        for number, cut in enumerate(shares[self.rank]):
            chosen = cut or spare
            places = [chosen.index(i) for i in compared[self.rank][number]]
            mine = [samples[i] for i in chosen]
            layout = self._layout(mine)
            if (taught := _teacher_ids(mine)) is not None:
                layout.targets = torch.cat([layout.targets[:, None], torch.from_numpy(taught).to(self.device)], dim=1)
            found.append(MicroBatch(mine, layout, most[number], not cut, places, most_compared[number]))
        return found

    def accumulate(self, micro_batches: list[MicroBatch], measure_entropy: bool = True) -> MetricSums:
        """Accumulates the gradient of every micro-batch; the last one completes the reduction over ranks.

        The metrics stay on the device until then: to copy them for each micro-batch would stop the card each time.
        """
        self.engine.train()
        parts: list[dict[str, tuple[Tensor, Tensor]]] = []
        entropy_is: Entropy = "value" if measure_entropy or self.algorithm.needs_entropy else "none"
        if self.config.algo.entropy_bonus:
            entropy_is = "gradient"
        for index, micro in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            output = self.algorithm.loss(self._policy_tokens(micro, *self._score(self.engine, micro, entropy_is)))
            # DeepSpeed averages gradients over ranks, but the samples' weights are made for a sum.
            self.engine.backward(output.loss * (0.0 if micro.idle else self.ranks))
            if not micro.idle:
                parts.append(output.metrics)
        return merge_metrics(_as_floats(parts, self.device))

    def step(self) -> float:
        """Takes an optimizer step; returns the norm of the whole gradient, before clipping."""
        own = None
        if not hasattr(self.engine.optimizer, "_global_grad_norm"):
            # At ZeRO 0 in float32 DeepSpeed clips with torch and does not keep the norm; every rank has all gradients.
            trained = (p.grad for p in self.engine.module.parameters() if p.grad is not None)
            own = float(torch.nn.utils.get_total_norm(trained))
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if own is None else own

    def score(
        self,
        sequences: list[tuple[np.ndarray, np.ndarray]],
        temperature: float = 1.0,
        reference: bool = False,
        likeliest: int = 0,
    ) -> dict[int, Any]:
        """Log-probabilities of this rank's share of `(context ids, scored ids)` pairs.

        Args:
            sequences: those of all ranks.
            temperature: the logits are divided by it.
            reference: by the reference policy, which is loaded if it is not there, instead of the current one.
            likeliest: k > 0: of the k likeliest tokens in each place instead of the scored ones.

        Returns:
            Index of each sequence of the share -> [T] float32 nats, or its `Likeliest`.
        """
        lengths = [len(context) + len(ids) for context, ids in sequences]
        alone = [-1] * len(sequences)
        shares = deal(lengths, alone, self.ranks, self.config.learner.tokens_per_micro_batch, self.packed)
        shortest = int(np.argmin(lengths))
        most = most_scored(shares, [len(ids) for _, ids in sequences], [shortest])
        self.engine.eval()
        model = self._loaded_reference() if reference else self.engine
        found: dict[int, Any] = {}
        for cut, most_of_round in zip(shares[self.rank], most, strict=True):
            chosen = cut or [shortest]
            layout = lay_out([sequences[i][0] for i in chosen], [sequences[i][1] for i in chosen], self.packed)
            with torch.no_grad():
                logprobs, ids = model(layout.to(self.device), temperature, "none", most_of_round, likeliest)
            ends = np.cumsum([len(sequences[i][1]) for i in chosen])[:-1]
            values: list[Any] = np.split(logprobs.float().cpu().numpy(), ends)
            if ids is not None:
                values = list(map(Likeliest, np.split(ids.int().cpu().numpy(), ends), values))
            if cut:
                found.update(zip(chosen, values, strict=True))
        return found

    def _layout(self, samples: list[TrainingSample]) -> Layout:
        prompts, completions = [s.prompt_ids for s in samples], [s.completion_ids for s in samples]
        found = lay_out(prompts, completions, self.packed, self.shares)
        return found.to(self.device)

    def _fix_references(self, micro_batches: list[MicroBatch]) -> None:
        """Computes the log-probabilities that stay fixed during the update: the reference policy's and, for several
        steps on one batch or with dropout, the policy's before the first of them, without dropout."""
        self.engine.eval()
        if self.load_reference is not None and any(m.compared for m in micro_batches):
            self._loaded_reference()
        for micro in micro_batches:
            # Whether a model is called must not depend on this rank's samples: every call is a collective one.
            with torch.no_grad():
                if self.reference is not None and micro.compared:
                    micro.reference_logprobs = self._reference_logprobs(self.reference, micro)
                if self.config.algo.updates_per_batch > 1:
                    micro.old_logprobs = self._score(self.engine, micro, "none")[0]
                elif self.drops_out:
                    micro.exact_logprobs = self._score(self.engine, micro, "none")[0]

    def _loaded_reference(self) -> Callable[..., tuple[Tensor, Tensor | None]]:
        if self.reference is None:
            assert self.load_reference is not None, "there is no reference policy to load"
            self.reference = self.load_reference()
        return self.reference

    def _reference_logprobs(self, reference: Callable[..., tuple[Tensor, Tensor | None]], micro: MicroBatch) -> Tensor:
        """[N] nats; 0 for samples whose term does not need them, which is most of a batch."""
        layout = self._layout([micro.samples[i] for i in micro.compared])
        scored = reference(layout, self.config.rollout.temperature, "none", micro.most_compared)[0]
        of_token = micro.layout.sample_of_token
        found = scored.new_zeros(len(of_token))
        found[torch.isin(of_token, torch.tensor(micro.compared, device=of_token.device))] = scored
        return found

    def _score(
        self, model: Callable[..., tuple[Tensor, Tensor | None]], micro: MicroBatch, entropy: Entropy
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """[N] log-probabilities, [N] entropies if asked for, and [N, k] log-probabilities at the teacher's ids."""
        scored, entropies = model(micro.layout, self.config.rollout.temperature, entropy, micro.most_scored)
        return (scored, entropies, None) if scored.ndim == 1 else (scored[:, 0], entropies, scored[:, 1:])

    def _policy_tokens(
        self, micro: MicroBatch, logprobs: Tensor, entropy: Tensor | None, likely: Tensor | None
    ) -> PolicyTokens:
        samples = micro.samples
        return PolicyTokens(
            logprobs=logprobs,
            entropy=entropy,
            old_logprobs=logprobs.detach() if micro.old_logprobs is None else micro.old_logprobs,
            exact_logprobs=micro.exact_logprobs,
            rollout_logprobs=self._floats(_rollout_logprobs(samples)),
            reference_logprobs=torch.zeros_like(logprobs.detach())
            if micro.reference_logprobs is None
            else micro.reference_logprobs,
            sample_of_token=micro.layout.sample_of_token,
            term=[s.term for s in samples],
            weight=self._floats([s.weight for s in samples]),
            advantage=self._floats(np.concatenate([_token_advantages(s) for s in samples])),
            teacher_logprobs=None if likely is None else self._floats(_teacher_logprobs(samples, likely.shape[1])),
            likely_logprobs=likely,
            unit=torch.tensor([s.unit for s in samples], dtype=torch.int64, device=self.device),
            reference_sum=self._floats(
                [float("nan") if s.reference_logprob is None else s.reference_logprob for s in samples]
            ),
        )

    def _floats(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, np.float32), device=self.device)


def _as_floats(parts: list[dict[str, tuple[Tensor, Tensor]]], device: torch.device) -> list[MetricSums]:
    """Copies the metrics of all micro-batches to the host at once."""
    values = [
        torch.as_tensor(v, dtype=torch.float64, device=device) for part in parts for p in part.values() for v in p
    ]
    numbers = torch.stack(values).tolist() if values else []
    pairs = iter(zip(numbers[::2], numbers[1::2], strict=True))
    return [dict(zip(part, pairs, strict=False)) for part in parts]


def _compared(cut: list[int], wanted: list[bool], lengths: list[int]) -> list[int]:
    """The samples of a cut that need the reference; at least one if any of the whole batch does."""
    if not any(wanted):
        return []
    return [i for i in cut if wanted[i]] or [min(cut, key=lambda i: (lengths[i], i))]


def _rollout_logprobs(samples: Iterable[TrainingSample]) -> np.ndarray:
    return np.concatenate(
        [
            np.full(len(s.completion_ids), np.nan, np.float32) if s.rollout_logprobs is None else s.rollout_logprobs
            for s in samples
        ]
    )


def _token_advantages(sample: TrainingSample) -> np.ndarray:
    if sample.token_advantages is None:
        return np.full(len(sample.completion_ids), sample.advantage, np.float32)
    if len(sample.token_advantages) != len(sample.completion_ids):
        raise ValueError(
            f"a sample of {len(sample.completion_ids)} tokens has {len(sample.token_advantages)} token_advantages"
        )
    return sample.token_advantages


def _teacher_ids(samples: Sequence[TrainingSample]) -> np.ndarray | None:
    """[N, k] int64 ids of the teacher's likeliest tokens, 0 for samples without one; None if none has a teacher."""
    widths = {s.teacher.ids.shape[1] for s in samples if s.teacher is not None}
    if not widths:
        return None
    if len(widths) > 1:
        raise ValueError(f"a micro-batch has teachers with {sorted(widths)} likeliest tokens; the number must be one")
    blank = [np.zeros((len(s.completion_ids), *widths), np.int64) for s in samples]
    return np.concatenate([b if s.teacher is None else s.teacher.ids for s, b in zip(samples, blank, strict=True)])


def _teacher_logprobs(samples: Iterable[TrainingSample], width: int) -> np.ndarray:
    return np.concatenate(
        [
            np.full((len(s.completion_ids), width), np.nan, np.float32) if s.teacher is None else s.teacher.logprobs
            for s in samples
        ]
    )
