"""What the learners say of a teacher, on any rank and in any cut, and that an update learns just that."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from expo_ray.algorithms import make_algorithm
from expo_ray.config.schema import Config
from expo_ray.learner.policy import TokenScorer
from expo_ray.learner.update import Updater
from expo_ray.messages import Likeliest, TrainingSample

VOCABULARY = 40


def language_model(seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    shape = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    return Qwen2ForCausalLM(shape)


class Engine(SimpleNamespace):
    """A language model where the updater expects DeepSpeed's engine."""

    def __init__(self, lm: Qwen2ForCausalLM) -> None:
        super().__init__(scorer=TokenScorer(lm, 16), backward=lambda loss: loss.backward())
        self.eval = self.train = lambda: None
        self.set_gradient_accumulation_boundary = lambda last: None

    def __call__(self, *arguments):
        return self.scorer(*arguments)


def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 30, (11, 2))
    return [tuple(draw.integers(1, VOCABULARY, n).astype(np.int32) for n in row) for row in lengths]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(("ranks", "budget", "batching"), [(1, 4096, "padded"), (3, 60, "padded"), (2, 100, "packed")])
def test_the_likeliest_tokens_are_those_of_the_model(reference, ranks, budget, batching):
    policy, fixed = language_model(0), language_model(1)
    config = Config()
    config.learner.tokens_per_micro_batch, config.learner.batching = budget, batching
    found, loaded = {}, []
    for rank in range(ranks):
        load = lambda: loaded.append(None) or TokenScorer(fixed, 16)  # noqa: E731
        mine = Updater(config, make_algorithm(config), Engine(policy), None, rank, ranks, load)
        found |= mine.score(pairs(), 0.7, reference, 5)
    assert len(loaded) == (ranks if reference else 0)
    lm = fixed if reference else policy
    for i, (context, ids) in enumerate(pairs()):
        row = torch.from_numpy(np.concatenate([context, ids])[None].astype(np.int64))
        expected = (lm(row).logits[0, len(context) - 1 : -1].double() / 0.7).log_softmax(-1).topk(5)
        assert np.array_equal(found[i].ids, expected.indices.numpy()) and found[i].ids.dtype == np.int32
        np.testing.assert_allclose(found[i].logprobs, expected.values.detach().numpy(), atol=1e-5)


def test_more_than_the_vocabulary_is_all_of_it():
    config = Config()
    mine = Updater(config, make_algorithm(config), Engine(language_model(0)), None, 0, 1)
    found = mine.score(pairs(), 1.0, False, 1000)
    every = np.arange(VOCABULARY)
    assert all(np.array_equal(np.sort(of.ids), np.tile(every, (len(of.ids), 1))) for of in found.values())
    assert all(np.allclose(np.exp(of.logprobs).sum(-1), 1, atol=1e-6) for of in found.values())


def samples() -> list[TrainingSample]:
    """Eleven, of which each second has an advantage for each token, and each third a teacher with four tokens."""
    draw, found = np.random.default_rng(3), []
    for index, (context, ids) in enumerate(pairs()):
        rows = draw.dirichlet(np.ones(5), len(ids))[:, :4].astype(np.float32)
        likeliest = np.argsort(draw.random((len(ids), VOCABULARY)))[:, :4].astype(np.int32)
        advantages = draw.normal(size=len(ids)).astype(np.float32)
        found.append(
            TrainingSample(
                context,
                ids,
                "policy",
                0.1 / len(ids),
                advantage=0.7,
                token_advantages=advantages if index % 2 else None,
                teacher=None if index % 3 else Likeliest(likeliest, np.log(rows)),
            )
        )
    return found


@pytest.mark.parametrize(("ranks", "budget"), [(1, 4096), (3, 60)])
def test_an_update_follows_each_tokens_advantage_and_teacher(ranks, budget):
    """Against the gradient of - w A log pi + w sum q log(q / p), a sample at a time and with plain indices."""
    config, lm, plain = Config(), language_model(0), language_model(0)
    config.learner.tokens_per_micro_batch, config.algo.distill_divergence = budget, "reverse_kl"
    for rank in range(ranks):
        mine = Updater(config, make_algorithm(config), Engine(lm), None, rank, ranks)
        mine.accumulate(mine.micro_batches(samples()), measure_entropy=False)
    for sample in samples():
        row = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.completion_ids])[None].astype(np.int64))
        logprobs = plain(row).logits[0, len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
        loss = 0.0
        for t, token in enumerate(sample.completion_ids.tolist()):
            advantage = 0.7 if sample.token_advantages is None else float(sample.token_advantages[t])
            loss = loss - sample.weight * advantage * logprobs[t, token]
            if sample.teacher is not None:
                q, p = (
                    logprobs[t, sample.teacher.ids[t].tolist()].exp(),
                    torch.from_numpy(sample.teacher.logprobs[t]).exp(),
                )
                q, p = torch.cat([q, 1 - q.sum()[None]]), torch.cat([p, 1 - p.sum()[None]])
                loss = loss + sample.weight * (q * (q / p).log()).sum()
        loss.backward()
    for (name, mine_p), (_, plain_p) in zip(lm.named_parameters(), plain.named_parameters(), strict=True):
        np.testing.assert_allclose(mine_p.grad.numpy() / ranks, plain_p.grad.numpy(), atol=2e-6, err_msg=name)
