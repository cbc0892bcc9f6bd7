"""Estimators of KL(policy || reference) from the tokens that the policy sampled (joschu.net/blog/kl-approx.html)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """[N] per-token estimate in nats, with gradient through `logprobs`.

    With d = log ref - log pi: k1 = -d; k2 = d^2 / 2; k3 = exp(d) - 1 - d.
    As a loss, k1's expected gradient is zero (it only adds noise); k2's is the KL's own; k3's is close to it
    near the reference. Raises ValueError for another name.
    """
    difference = reference - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return difference.expm1() - difference
    raise ValueError(f"algo.kl_estimator={estimator}: expected k1, k2 or k3")
