"""The losses of the GRPO family and of DPO.

The GRPO family's loss has a policy term, KL terms, an entropy bonus and the ExP-SFT term, summed over tokens:

    loss = - sum_policy w (c_t J_t - kl_coef k_t + entropy_bonus H_t)  -  sum_sft w log pi
           + sum_conditioned w kl_conditioned_coef k_t  +  sum_taught w distill_coef D_t

w is the sample's weight, which holds the batch-wide normaliser (and beta, for the ExP-SFT term). Taught are the tokens
of any sample that brings its teacher; D_t is `divergence`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expo_ray.algorithms.tokens import LossOutput, PolicyTokens
from expo_ray.config.schema import AlgoConfig

if TYPE_CHECKING:
    from torch import Tensor

    from expo_ray.messages import Term


LOG_RATIO_BOUND = 20.0
"""Log ratios are clamped to [-20, 20] before exp, as in verl: float32 overflows at 88, and inf * 0 is NaN. Beyond the
bound a ratio has no gradient; the tokens are counted."""

SMALLEST_REST = 1e-6
"""A smaller probability of all other tokens together counts as this one: in float32 it is rounding error."""

Metrics = dict[str, "tuple[Tensor, Tensor]"]


def grpo_loss(tokens: PolicyTokens, algo: AlgoConfig, own: frozenset[Term] = frozenset()) -> LossOutput:
    """Loss of a micro-batch of policy, sft, conditioned and distill samples, in nats (see the module's docstring).

    `own` are terms of the algorithm's own, which it adds (`plus`). Raises ValueError for a sample of any other term.
    """
    unknown = set(tokens.term) - {"policy", "sft", "conditioned", "distill"} - own
    if unknown:
        raise ValueError(f"the GRPO loss has no term for samples of {sorted(unknown)}")
    policy, metrics = _policy_terms(tokens, algo)
    sft, sft_metrics = _sft_term(tokens)
    conditioned, conditioned_metrics = _conditioned_term(tokens, algo)
    distilled, distill_metrics = _distill_term(tokens, algo)
    loss = policy + sft + conditioned + distilled
    metrics |= sft_metrics | conditioned_metrics | distill_metrics
    metrics["loss/total"] = (loss.detach(), loss.new_zeros(()))
    return LossOutput(loss, metrics)


def plus(output: LossOutput, name: str, loss: Tensor, metrics: Metrics) -> LossOutput:
    """Adds a term of an algorithm's own to a loss, as `loss/<name>`, with its statistics."""
    total = output.loss + loss
    nothing = total.new_zeros(())
    of_loss = {f"loss/{name}": (loss.detach(), nothing), "loss/total": (total.detach(), nothing)}
    return LossOutput(total, output.metrics | metrics | of_loss)


def _policy_terms(tokens: PolicyTokens, algo: AlgoConfig) -> tuple[Tensor, Metrics]:
    chosen = tokens_of(tokens, "policy")
    sample = tokens.sample_of_token[chosen]
    logprobs, old = tokens.logprobs[chosen], tokens.old_logprobs[chosen]
    entropy, weight = None if tokens.entropy is None else tokens.entropy[chosen], tokens.weight[sample]
    factor, metrics = importance_weights(
        old if tokens.exact_logprobs is None else tokens.exact_logprobs[chosen],
        tokens.rollout_logprobs[chosen],
        sample,
        len(tokens.term),
        algo.importance_correction,
        algo.importance_cap,
    )
    result = surrogate(logprobs, old, tokens.advantage[chosen], sample, len(tokens.term), algo)
    policy = -(weight * factor * result.objective).sum()
    loss = policy
    count = chosen.sum()
    nothing = policy.new_zeros(())
    metrics["loss/policy"] = (policy.detach(), nothing)
    if entropy is not None:
        metrics["policy/entropy"] = (entropy.detach().sum(), count)
    metrics["policy/clip_fraction"] = (result.clipped.sum(), count)
    metrics["policy/ratio_bounded"] = (result.beyond_bound.sum(), count)
    metrics["policy/ratio_mean"] = (result.ratio.sum(), count)
    if algo.entropy_bonus and entropy is not None:
        loss = loss - algo.entropy_bonus * (weight * entropy).sum()
    if algo.kl_coef:
        estimate = kl_estimate(logprobs, tokens.reference_logprobs[chosen], algo.kl_estimator)
        kl = algo.kl_coef * (weight * estimate).sum()
        loss = loss + kl
        metrics["loss/kl"] = (kl.detach(), nothing)
        metrics["kl/reference"] = (estimate.detach().sum(), count)
    return loss, metrics


def importance_weights(
    old: Tensor, rollout: Tensor, sample_of_token: Tensor, samples: int, mode: str, cap: float
) -> tuple[Tensor, Metrics]:
    """[N] factor on each token's policy term, without gradient, and statistics of the mismatch.

    With c_t = exp(old_t - rollout_t), learner over engine, the factor by `mode` is
      none           1
      truncate       min(c_t, cap)                            (truncated importance sampling)
      mask_token     c_t where 1/cap <= c_t <= cap, else 0     (IcePop)
      mask_sequence  min(c_t, cap), and 0 for the whole completion where exp(mean_t(old - rollout)) is
                     outside [1/cap, cap]
    Tokens whose `rollout` is NaN get 1 and are not counted. Masked tokens stay in the normaliser.
    """
    import torch

    known = ~torch.isnan(rollout)
    difference = torch.where(known, old - rollout, torch.zeros_like(old)).detach()
    ratio = _bounded(difference).exp()
    ones = torch.ones_like(ratio)
    truncated, masked = torch.zeros_like(known), torch.zeros_like(known)
    factor = ones
    if mode == "truncate":
        truncated = ratio > cap
        factor = ratio.clamp(max=cap)
    elif mode == "mask_token":
        masked = (ratio > cap) | (ratio < 1 / cap)
        factor = torch.where(masked, torch.zeros_like(ratio), ratio)
    elif mode == "mask_sequence":
        sequence_ratio = segment_mean(difference, sample_of_token, samples).exp()[sample_of_token]
        masked = (sequence_ratio > cap) | (sequence_ratio < 1 / cap)
        truncated = (ratio > cap) & ~masked
        factor = torch.where(masked, torch.zeros_like(ratio), ratio.clamp(max=cap))
    count = known.sum()
    largest = difference.abs().max() if difference.numel() else difference.new_zeros(())
    metrics: Metrics = {
        "mismatch/mean_abs": (difference.abs().sum(), count),
        "mismatch/max": (largest, torch.zeros_like(count)),
        "mismatch/ratio_mean": ((ratio * known).sum(), count),
        "mismatch/bounded": (_beyond_bound(difference).sum(), count),
        "mismatch/truncated": ((truncated & known).sum(), count),
        "mismatch/masked": ((masked & known).sum(), count),
    }
    return torch.where(known, factor, ones), metrics


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The objective of each policy token, to be maximised."""

    objective: Tensor
    """[N] with gradient."""
    ratio: Tensor
    """[N] importance ratio to the old policy (GSPO: of the token's sequence), without gradient."""
    clipped: Tensor
    """[N] bool: the clip determines this token's gradient."""
    beyond_bound: Tensor
    """[N] bool: the log ratio was clamped (LOG_RATIO_BOUND)."""


def surrogate(
    logprobs: Tensor, old: Tensor, advantage: Tensor, sample_of_token: Tensor, samples: int, algo: AlgoConfig
) -> Surrogate:
    """Objective of tokens [N] with per-token advantage [N], by `algo.policy_loss`:

    clip   min(r A, clip(r, 1 - clip_low, 1 + clip_high) A); with dual_clip c > 1, at least c A where A < 0
           (arXiv 1912.09729). r_t = pi(o_t) / pi_old(o_t).
    gspo   the same with the sequence's ratio s_i = exp(mean_t log r_t) in place of r_t (2507.18071).
    cispo  sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi (2506.13585; clip_low = 1 leaves no lower bound).
    """
    import torch

    log_ratio = logprobs - old
    if algo.policy_loss == "gspo":
        log_ratio = segment_mean(log_ratio, sample_of_token, samples)[sample_of_token]
    beyond_bound = _beyond_bound(log_ratio)
    log_ratio = _bounded(log_ratio)
    if algo.policy_loss == "cispo":
        ratio = log_ratio.detach().exp()
        bounded = ratio.clamp(1 - algo.clip_low, 1 + algo.clip_high)
        return Surrogate(bounded * advantage * logprobs, ratio, bounded != ratio, beyond_bound)
    ratio = log_ratio.exp()
    plain = ratio * advantage
    bounded = ratio.clamp(1 - algo.clip_low, 1 + algo.clip_high) * advantage
    objective = torch.minimum(plain, bounded)
    clipped = bounded < plain
    if algo.dual_clip > 0:
        floor = algo.dual_clip * advantage
        below = (advantage < 0) & (objective < floor)
        objective = torch.where(below, floor, objective)
        clipped = clipped | below
    return Surrogate(objective, ratio.detach(), clipped, beyond_bound)


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """[N] per-token estimate in nats, with gradient through `logprobs`.

    With d = log ref - log pi: k1 = -d; k2 = d^2 / 2; k3 = exp(d) - 1 - d.
    As a loss, k1's expected gradient is zero (it only adds noise); k2's is the KL's own; k3's is close to it
    near the reference. k3's d is bounded (LOG_RATIO_BOUND).
    """
    difference = reference - logprobs
    if estimator == "k3":
        difference = _bounded(difference)
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    return difference.expm1() - difference


def _sft_term(tokens: PolicyTokens) -> tuple[Tensor, Metrics]:
    chosen = tokens_of(tokens, "sft")
    logprobs = tokens.logprobs[chosen]
    loss = -(tokens.weight[tokens.sample_of_token[chosen]] * logprobs).sum()
    return loss, {
        "loss/sft": (loss.detach(), loss.new_zeros(())),
        "sft/logprob": (logprobs.detach().sum(), chosen.sum()),
    }


def _conditioned_term(tokens: PolicyTokens, algo: AlgoConfig) -> tuple[Tensor, Metrics]:
    chosen = tokens_of(tokens, "conditioned")
    logprobs = tokens.logprobs[chosen]
    if not algo.kl_conditioned_coef:
        return logprobs.sum() * 0.0, {}
    estimate = kl_estimate(logprobs, tokens.reference_logprobs[chosen], algo.kl_estimator)
    weight = tokens.weight[tokens.sample_of_token[chosen]]
    loss = algo.kl_conditioned_coef * (weight * estimate).sum()
    return loss, {
        "loss/kl_conditioned": (loss.detach(), loss.new_zeros(())),
        "kl/conditioned": (estimate.detach().sum(), chosen.sum()),
    }


def _distill_term(tokens: PolicyTokens, algo: AlgoConfig) -> tuple[Tensor, Metrics]:
    """sum w distill_coef D_t over the tokens that have a teacher."""
    import torch

    if tokens.teacher_logprobs is None or tokens.likely_logprobs is None:
        return tokens.logprobs.sum() * 0.0, {}
    taught = ~torch.isnan(tokens.teacher_logprobs[:, 0])
    student, teacher = tokens.likely_logprobs[taught], tokens.teacher_logprobs[taught]
    found, clipped = divergence(student, teacher, algo.distill_divergence, algo.distill_clip)
    loss = algo.distill_coef * (tokens.weight[tokens.sample_of_token[taught]] * found).sum()
    count = taught.sum()
    return loss, {
        "loss/distill": (loss.detach(), loss.new_zeros(())),
        "distill/divergence": (found.detach().sum(), count),
        "distill/clipped": (clipped.sum(), count),
        "distill/teacher_mass": (teacher.exp().sum(), count),
    }


def divergence(student: Tensor, teacher: Tensor, kind: str, clip: float) -> tuple[Tensor, Tensor]:
    """[N] divergence in nats, with gradient through `student`, and [N] the share of its entries that were clipped.

    With q the policy's probabilities, p the teacher's, both of the teacher's k likeliest tokens and of all others
    together as one more entry, and m = (p + q) / 2, the sum over the k + 1 entries of

      reverse_kl   q log(q / p)
      forward_kl   p log(p / q)
      jsd          (p log(p / m) + q log(q / m)) / 2

    If k is the size of the vocabulary, that is the divergence itself; otherwise it is a lower bound of it (the rest is
    merged). With `clip` > 0 an entry counts at most `clip`, and one beyond it has no gradient (pointwise clipping,
    OPSD, arXiv 2601.18734).

    Args:
        student: [N, k] log-probabilities of the teacher's k likeliest tokens, with gradient.
        teacher: [N, k] the teacher's.
        kind: algo.distill_divergence.
        clip: algo.distill_clip; 0: off.
    """
    import torch

    q, p = _with_rest(student), _with_rest(teacher)
    if kind == "reverse_kl":
        entries = q.exp() * (q - p)
    elif kind == "forward_kl":
        entries = p.exp() * (p - q)
    else:
        middle = torch.logaddexp(p, q) - torch.log(q.new_tensor(2.0))
        entries = (p.exp() * (p - middle) + q.exp() * (q - middle)) / 2
    clipped = entries.detach() > clip if clip else torch.zeros_like(entries, dtype=torch.bool)
    if clip:
        entries = entries.clamp(max=clip)
    return entries.sum(-1), clipped.to(entries.dtype).mean(-1)


def _with_rest(logprobs: Tensor) -> Tensor:
    """[N, k + 1] the log-probability of all other tokens together as a last entry."""
    import torch

    rest = (1.0 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST_REST)
    return torch.cat([logprobs, rest.log()], dim=-1)


def dpo_loss(tokens: PolicyTokens, dpo_beta: float) -> LossOutput:
    """- sum over pairs of w logsigmoid(dpo_beta ((l_c - l_r) - (ref_c - ref_r))), sums over each completion's tokens.

    w is the chosen sample's weight. A stored `reference_sum` takes the place of summing `reference_logprobs`.
    Raises ValueError if a unit is not one chosen and one rejected sample.
    """
    import torch
    from torch.nn.functional import logsigmoid

    samples = len(tokens.term)
    chosen, rejected = _members(tokens)
    policy = segment_sum(tokens.logprobs, tokens.sample_of_token, samples)
    scored = segment_sum(tokens.reference_logprobs, tokens.sample_of_token, samples)
    reference = torch.where(torch.isnan(tokens.reference_sum), scored, tokens.reference_sum)
    rise = policy - reference
    margin = dpo_beta * (rise[chosen] - rise[rejected])
    loss = -(tokens.weight[chosen] * logsigmoid(margin)).sum()
    count = loss.new_tensor(float(len(chosen)))
    detached = margin.detach()
    metrics: Metrics = {
        "loss/dpo": (loss.detach(), loss.new_zeros(())),
        "loss/total": (loss.detach(), loss.new_zeros(())),
        "dpo/margin": (detached.sum(), count),
        "dpo/accuracy": ((detached > 0).sum(), count),
        "dpo/chosen_rise": (rise[chosen].detach().sum(), count),
        "dpo/rejected_rise": (rise[rejected].detach().sum(), count),
    }
    if tokens.entropy is not None:
        metrics["policy/entropy"] = (tokens.entropy.detach().sum(), loss.new_tensor(float(tokens.entropy.numel())))
    return LossOutput(loss, metrics)


def _members(tokens: PolicyTokens) -> tuple[Tensor, Tensor]:
    """Returns the indices of the chosen and of the rejected samples, in the same order of pairs."""
    by_unit: dict[int, dict[str, int]] = {}
    for index, (term, unit) in enumerate(zip(tokens.term, tokens.unit.tolist(), strict=True)):
        pair = by_unit.setdefault(unit, {})
        if term in pair:
            raise ValueError(f"unit {unit} has two {term} samples")
        pair[term] = index
    for unit, pair in by_unit.items():
        if set(pair) != {"chosen", "rejected"}:
            raise ValueError(f"unit {unit} is not one chosen and one rejected sample, but {sorted(pair)}")
    indices = tokens.sample_of_token.new_tensor([[pair["chosen"], pair["rejected"]] for pair in by_unit.values()])
    indices = indices.reshape(-1, 2)
    return indices[:, 0], indices[:, 1]


def tokens_of(tokens: PolicyTokens, term: Term) -> Tensor:
    """[N] bool: the tokens whose sample belongs to `term`."""
    import torch

    members = torch.tensor([name == term for name in tokens.term], device=tokens.logprobs.device, dtype=torch.bool)
    return members[tokens.sample_of_token]


def _bounded(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def _beyond_bound(log_ratio: Tensor) -> Tensor:
    return log_ratio.detach().abs() > LOG_RATIO_BOUND


def segment_sum(values: Tensor, segment: Tensor, count: int) -> Tensor:
    """[count] sum of `values` [N] over each segment id of `segment` [N]; 0 for a segment without tokens."""
    return values.new_zeros(count).index_add(0, segment, values)


def segment_mean(values: Tensor, segment: Tensor, count: int) -> Tensor:
    """[count] mean of `values` [N] over each segment id of `segment` [N]; 0 for a segment without tokens."""
    lengths = segment_sum(values.new_ones(values.shape), segment, count)
    return segment_sum(values, segment, count) / lengths.clamp(min=1)
