"""Distillation from a teacher's likeliest tokens, against float64 NumPy over the whole vocabulary, and its limits."""

import numpy as np
import pytest
import torch
from algorithm_cases import config_with, random_arrays, with_teacher

from expo_ray.algorithms.losses import SMALLEST_REST, divergence, grpo_loss
from expo_ray.messages import Likeliest, TrainingSample

KINDS = ("reverse_kl", "forward_kl", "jsd")


def entry(p: float, q: float, kind: str) -> float:
    m = (p + q) / 2
    return {
        "reverse_kl": q * np.log(q / p),
        "forward_kl": p * np.log(p / q),
        "jsd": (p * np.log(p / m) + q * np.log(q / m)) / 2,
    }[kind]


def formula(student: np.ndarray, teacher: np.ndarray, k: int, kind: str, clip: float) -> float:
    """Of one place, from both distributions over the whole vocabulary."""
    order = np.argsort(-teacher)
    rest = order[k:]
    ps, qs = list(teacher[order[:k]]), list(student[order[:k]])
    if len(rest):
        ps, qs = [*ps, teacher[rest].sum()], [*qs, student[rest].sum()]
    found = [entry(p, q, kind) for p, q in zip(ps, qs, strict=True)]
    return sum(min(value, clip) for value in found) if clip else sum(found)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


def places(seed: int = 0, count: int = 7, vocabulary: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Logits of student and teacher."""
    random = np.random.default_rng(seed)
    return random.normal(0, 1.5, (count, vocabulary)), random.normal(0, 1.5, (count, vocabulary))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k", "clip"), [(3, 0.0), (12, 0.0), (3, 0.05), (12, 0.05)])
def test_divergence_and_its_gradient_in_the_logits(kind, k, clip):
    student, teacher = places()
    logits = torch.tensor(student, requires_grad=True)
    likeliest = torch.tensor(teacher).log_softmax(-1).topk(k)
    found, clipped = divergence(logits.log_softmax(-1).gather(-1, likeliest.indices), likeliest.values, kind, clip)
    found.sum().backward()
    expected = [formula(softmax(s), softmax(t), k, kind, clip) for s, t in zip(student, teacher, strict=True)]
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-9)
    assert 0 < clipped.mean() < 1 if clip else not clipped.any()
    step, slopes = 1e-6, np.zeros_like(student)
    for place in np.ndindex(*student.shape):
        values = []
        for sign in (1, -1):
            moved = student[place[0]].copy()
            moved[place[1]] += sign * step
            values.append(formula(softmax(moved), softmax(teacher[place[0]]), k, kind, clip))
        slopes[place] = (values[0] - values[1]) / (2 * step)
    np.testing.assert_allclose(logits.grad.numpy(), slopes, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [3, 12])
def test_a_teacher_that_is_told_nothing_gives_no_loss_and_no_gradient(kind, k):
    """In float32, as the learners compute: also where the k tokens have all of the probability but rounding."""
    student, _ = places(1)
    logits = torch.tensor(10 * student, dtype=torch.float32, requires_grad=True)
    likeliest = logits.detach().log_softmax(-1).topk(k)
    found, _ = divergence(logits.log_softmax(-1).gather(-1, likeliest.indices), likeliest.values, kind, 0.0)
    found.sum().backward()
    assert found.detach().abs().max() < 1e-6 and logits.grad.abs().max() < 2 * SMALLEST_REST


@pytest.mark.parametrize("kind", KINDS)
def test_the_term_is_weighted_by_sample_and_coefficient_and_leaves_out_who_has_no_teacher(kind):
    arrays = random_arrays(["policy", "policy", "distill", "sft"], 2)
    plain = arrays.tokens()
    tokens = with_teacher(plain, taught=[0, 2, 3])
    algo = config_with(distill_coef=0.3, distill_divergence=kind).algo
    output = grpo_loss(tokens, algo)
    teacher, student = np.exp(tokens.teacher_logprobs.numpy()), np.exp(tokens.likely_logprobs.detach().numpy())
    expected, place = 0.0, 0
    for i, values in enumerate(arrays.logprobs):
        for _ in values:
            if i != 1:
                ps, qs = [*teacher[place], 1 - teacher[place].sum()], [*student[place], 1 - student[place].sum()]
                entries = [entry(p, q, kind) for p, q in zip(ps, qs, strict=True)]
                expected += 0.3 * arrays.weight[i] * sum(entries)
            place += 1
    assert output.loss.item() - grpo_loss(plain, algo).loss.item() == pytest.approx(expected, rel=1e-9)
    output.loss.backward()
    untaught, slopes = np.isnan(teacher[:, 0]), tokens.likely_logprobs.grad
    assert not slopes[untaught].any() and slopes[~untaught].abs().min() > 0
    assert output.metrics["distill/divergence"][1].item() == (~untaught).sum()


def test_no_weight_of_the_distillation_is_grpo():
    plain = random_arrays(["policy", "sft"], 3).tokens()
    tokens, algo = with_teacher(plain), config_with(distill_coef=0.0).algo
    output = grpo_loss(tokens, algo)
    assert output.loss.item() == grpo_loss(plain, algo).loss.item()
    output.loss.backward()
    assert not tokens.likely_logprobs.grad.any()


def test_samples_that_do_not_fit_are_refused():
    from expo_ray.learner.update import _teacher_ids, _token_advantages

    ids = np.arange(4, dtype=np.int32)
    short = TrainingSample(ids, ids, "policy", 1.0, token_advantages=np.ones(3, np.float32))
    with pytest.raises(ValueError, match="4 tokens has 3 token_advantages"):
        _token_advantages(short)
    two, three = (
        TrainingSample(ids, ids, "policy", 1.0, teacher=Likeliest(np.zeros((4, k), np.int32), np.zeros((4, k))))
        for k in (2, 3)
    )
    with pytest.raises(ValueError, match=r"\[2, 3\] likeliest tokens"):
        _teacher_ids([two, three])
