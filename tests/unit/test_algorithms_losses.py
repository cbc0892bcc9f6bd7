"""The GRPO family's loss against a second computation: plain loops over samples in float64, written from the formulas.

Gradients are compared with central differences of that second computation.
"""

import itertools

import numpy as np
import pytest
import torch
from algorithm_cases import Arrays, config_with, random_arrays

from expo_ray.algorithms.losses import grpo_loss
from expo_ray.algorithms.tokens import PolicyTokens, merge_metrics, metric_means

TERMS = ["policy", "sft", "policy", "conditioned", "policy", "sft", "policy", "policy", "conditioned", "policy"]


def formula(batch: Arrays, algo, frozen: list[np.ndarray]) -> float:
    """The loss from the formulas. `frozen` is where a stop-gradient stands in them (CISPO)."""
    loss = 0.0
    for i, term in enumerate(batch.term):
        for t in range(len(batch.logprobs[i])):
            kl = kl_of(batch.logprobs[i][t], batch.reference[i][t], algo.kl_estimator)
            if term == "sft":
                loss -= batch.weight[i] * batch.logprobs[i][t]
            elif term == "conditioned":
                loss += batch.weight[i] * algo.kl_conditioned_coef * kl
            else:
                value = correction(batch, i, t, algo) * objective(batch, i, t, algo, frozen)
                value += algo.entropy_bonus * batch.entropy[i][t] - algo.kl_coef * kl
                loss -= batch.weight[i] * value
    return loss


def objective(batch: Arrays, i: int, t: int, algo, frozen: list[np.ndarray]) -> float:
    advantage, low, high = batch.advantage[i][t], 1 - algo.clip_low, 1 + algo.clip_high
    if algo.policy_loss == "cispo":
        ratio = np.exp(frozen[i][t] - batch.old[i][t])
        return min(max(ratio, low), high) * advantage * batch.logprobs[i][t]
    if algo.policy_loss == "gspo":
        ratio = np.exp((batch.logprobs[i].sum() - batch.old[i].sum()) / len(batch.old[i]))
    else:
        ratio = np.exp(batch.logprobs[i][t] - batch.old[i][t])
    value = min(ratio * advantage, min(max(ratio, low), high) * advantage)
    if algo.dual_clip and advantage < 0:
        value = max(value, algo.dual_clip * advantage)
    return value


def correction(batch: Arrays, i: int, t: int, algo) -> float:
    cap, mode = algo.importance_cap, algo.importance_correction
    if mode == "none" or np.isnan(batch.rollout[i][t]):
        return 1.0
    ratio = np.exp(batch.old[i][t] - batch.rollout[i][t])
    if mode == "truncate":
        return min(ratio, cap)
    if mode == "mask_token":
        return ratio if 1 / cap <= ratio <= cap else 0.0
    sequence = np.exp(np.mean(batch.old[i] - batch.rollout[i]))
    return min(ratio, cap) if 1 / cap <= sequence <= cap else 0.0


def kl_of(logprob: float, reference: float, estimator: str) -> float:
    ratio = np.exp(reference - logprob)
    return {"k1": -np.log(ratio), "k2": 0.5 * np.log(ratio) ** 2, "k3": ratio - 1 - np.log(ratio)}[estimator]


def difference_quotient(batch: Arrays, algo, name: str, step: float = 1e-5) -> np.ndarray:
    frozen = [values.copy() for values in batch.logprobs]
    gradient = []
    for values in getattr(batch, name):
        for t in range(len(values)):
            kept = values[t]
            values[t] = kept + step
            above = formula(batch, algo, frozen)
            values[t] = kept - step
            below = formula(batch, algo, frozen)
            values[t] = kept
            gradient.append((above - below) / (2 * step))
    return np.array(gradient)


CASES = [
    {"policy_loss": loss, "importance_correction": correct, "dual_clip": dual, "clip_low": 0.2, "clip_high": high}
    for loss, correct, (dual, high) in itertools.product(
        ("clip", "gspo", "cispo"),
        ("none", "truncate", "mask_token", "mask_sequence"),
        ((0.0, 0.2), (1.5, 0.35)),
    )
] + [
    {"kl_coef": 0.3, "kl_conditioned_coef": 0.7, "kl_estimator": estimator, "entropy_bonus": bonus}
    for estimator, bonus in itertools.product(("k1", "k2", "k3"), (0.0, 0.01))
]


@pytest.mark.parametrize("keys", CASES, ids=lambda keys: "-".join(map(str, keys.values())))
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_equal_the_formula(keys, seed):
    algo = config_with(**keys, importance_cap=1.3).algo
    batch = random_arrays(TERMS, seed)
    tokens = batch.tokens()
    output = grpo_loss(tokens, algo)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(formula(batch, algo, batch.logprobs), abs=1e-6)
    np.testing.assert_allclose(tokens.logprobs.grad.numpy(), difference_quotient(batch, algo, "logprobs"), atol=1e-6)
    if algo.entropy_bonus:
        np.testing.assert_allclose(tokens.entropy.grad.numpy(), difference_quotient(batch, algo, "entropy"), atol=1e-6)
    else:
        assert tokens.entropy.grad is None


def test_cases_reach_every_branch():
    """Otherwise the comparison above would prove less than it seems to."""
    batch = random_arrays(TERMS, 0)
    metrics = metric_means(floats(grpo_loss(batch.tokens(), config_with(importance_cap=1.3).algo)))
    assert 0 < metrics["policy/clip_fraction"] < 1
    assert 0 < metrics["mismatch/truncated"] < 1
    for mode in ("mask_token", "mask_sequence"):
        algo = config_with(importance_cap=1.3, importance_correction=mode).algo
        assert 0 < metric_means(floats(grpo_loss(batch.tokens(), algo)))["mismatch/masked"] < 1
    dual = config_with(dual_clip=1.5).algo
    assert grpo_loss(batch.tokens(), dual).loss.item() != grpo_loss(batch.tokens(), config_with().algo).loss.item()


@pytest.mark.parametrize("policy_loss", ["clip", "gspo", "cispo"])
@pytest.mark.parametrize("cuts", [[1] * 10, [3, 3, 4], [9, 1], [5, 5]])
def test_sum_over_any_cut_and_order_is_the_whole(policy_loss, cuts):
    algo = config_with(
        policy_loss=policy_loss, kl_coef=0.1, kl_conditioned_coef=0.2, importance_correction="mask_sequence"
    ).algo
    batch = random_arrays(TERMS, 3)
    whole_tokens = batch.tokens()
    whole = grpo_loss(whole_tokens, algo)
    whole.loss.backward()
    order = np.random.default_rng(5).permutation(len(TERMS))
    lengths = [len(values) for values in batch.logprobs]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    total, gradient, parts = 0.0, np.zeros(sum(lengths)), []
    for chosen in np.split(order, np.cumsum(cuts)[:-1]):
        tokens = batch.take(chosen.tolist()).tokens()
        output = grpo_loss(tokens, algo)
        output.loss.backward()
        total += output.loss.item()
        parts.append(floats(output))
        places = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])
        gradient[places] = tokens.logprobs.grad.numpy()
    assert total == pytest.approx(whole.loss.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, whole_tokens.logprobs.grad.numpy(), rtol=1e-12, atol=1e-15)
    combined, expected = metric_means(merge_metrics(parts)), metric_means(floats(whole))
    assert combined == pytest.approx(expected, rel=1e-9)


def test_mismatch_statistics():
    batch = random_arrays(["policy", "sft", "policy"], 4)
    gaps = np.concatenate([batch.old[i] - batch.rollout[i] for i in (0, 2)])
    metrics = metric_means(floats(grpo_loss(batch.tokens(), config_with(importance_cap=1.3).algo)))
    assert metrics["mismatch/mean_abs"] == pytest.approx(np.abs(gaps).mean())
    assert metrics["mismatch/max"] == pytest.approx(np.abs(gaps).max())
    assert metrics["mismatch/ratio_mean"] == pytest.approx(np.exp(gaps).mean())
    assert metrics["mismatch/truncated"] == pytest.approx((np.exp(gaps) > 1.3).mean())
    assert metrics["mismatch/masked"] == 0


def test_first_update_has_ratio_one_and_no_clipping():
    batch = random_arrays(["policy"] * 4, 6)
    batch.old = [values.copy() for values in batch.logprobs]
    metrics = metric_means(floats(grpo_loss(batch.tokens(), config_with(importance_correction="none").algo)))
    assert metrics["policy/ratio_mean"] == pytest.approx(1.0)
    assert metrics["policy/clip_fraction"] == 0


def test_no_signal_leaves_only_the_sft_gradient():
    """Advantages 0, no KL: the gradient is minus the weight on sft tokens and exactly 0 elsewhere."""
    batch = random_arrays(TERMS, 7)
    batch.advantage = [np.zeros(len(values)) for values in batch.advantage]
    tokens = batch.tokens()
    grpo_loss(tokens, config_with().algo).loss.backward()
    weights = np.concatenate(
        [
            np.full(len(v), -w if t == "sft" else 0.0)
            for v, w, t in zip(batch.logprobs, batch.weight, TERMS, strict=True)
        ]
    )
    np.testing.assert_array_equal(tokens.logprobs.grad.numpy(), weights)


def test_conditioned_samples_have_no_gradient_without_their_coefficient():
    batch = random_arrays(["conditioned", "conditioned"], 8)
    tokens = batch.tokens()
    output = grpo_loss(tokens, config_with(kl_conditioned_coef=0.0).algo)
    output.loss.backward()
    assert output.loss.item() == 0 and not tokens.logprobs.grad.any()


@pytest.mark.parametrize("policy_loss", ["clip", "gspo", "cispo"])
@pytest.mark.parametrize("advantage", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [100.0, -100.0])
def test_a_log_ratio_beyond_float32_is_bounded_and_counted(policy_loss, advantage, log_ratio):
    """In float32 exp(100) is inf. Sample 0 has the log ratio, sample 1 has none."""
    algo = config_with(policy_loss=policy_loss, kl_coef=0.1, importance_correction="truncate").algo
    logprobs = torch.tensor([-1.0, -1.0, -2.0, -2.0], requires_grad=True)
    still = logprobs.detach().clone()
    old = still - torch.tensor([log_ratio, log_ratio, 0, 0])
    tokens = PolicyTokens(
        logprobs=logprobs,
        entropy=torch.zeros(4),
        old_logprobs=old,
        rollout_logprobs=torch.where(torch.arange(4) < 2, old - log_ratio, still),
        reference_logprobs=torch.where(torch.arange(4) < 2, still + log_ratio, still),
        sample_of_token=torch.tensor([0, 0, 1, 1]),
        term=["policy", "policy"],
        weight=torch.tensor([0.25, 0.25]),
        advantage=torch.full((4,), advantage),
        unit=torch.tensor([-1, -1]),
        reference_sum=torch.full((2,), torch.nan),
    )
    output = grpo_loss(tokens, algo)
    output.loss.backward()
    metrics = metric_means(floats(output))
    assert torch.isfinite(output.loss) and torch.isfinite(logprobs.grad).all()
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["policy/ratio_bounded"] == metrics["mismatch/bounded"] == 0.5
    # min(c, 2) J of the two bounded tokens; of the others r = c = 1; k3 with d = +-20 and 0.
    ratio, correction = np.exp(np.sign(log_ratio) * 20), min(np.exp(np.sign(log_ratio) * 20), 2)
    clipped = min(max(ratio, 0.8), 1.2)
    bounded = clipped * advantage * -1.0 if policy_loss == "cispo" else min(ratio * advantage, clipped * advantage)
    plain = advantage * -2.0 if policy_loss == "cispo" else advantage
    kl = 2 * (np.exp(np.sign(log_ratio) * 20) - 1 - np.sign(log_ratio) * 20)
    expected = -0.25 * (2 * correction * bounded + 2 * plain) + 0.25 * 0.1 * kl
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_samples_of_another_objective_are_refused():
    with pytest.raises(ValueError, match="chosen"):
        grpo_loss(random_arrays(["policy", "chosen"]).tokens(), config_with().algo)


def floats(output) -> dict[str, tuple[float, float]]:
    assert not any(isinstance(t, torch.Tensor) and t.requires_grad for pair in output.metrics.values() for t in pair)
    return {name: (float(value), float(count)) for name, (value, count) in output.metrics.items()}
