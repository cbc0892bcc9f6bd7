"""The reference policy scores exactly the samples whose term needs it; every rank scores in every round."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from expo_ray.config.schema import Config
from expo_ray.learner.update import Updater
from expo_ray.messages import TrainingSample

TERMS = ("policy", "policy", "policy", "sft", "conditioned")


def batch() -> list[TrainingSample]:
    draw = np.random.default_rng(0)
    samples = []
    for index in range(23):
        prompt, completion = (draw.integers(1, 90, n).astype(np.int32) for n in draw.integers(1, 30, 2))
        samples.append(TrainingSample(prompt, completion, TERMS[index % 5], 1.0))
    return samples


class Reference:
    """Returns a token's id as its log-probability, and records its calls."""

    def __init__(self) -> None:
        self.rounds: list[tuple[int, int]] = []

    def __call__(self, layout, temperature, entropy_gradient, most):
        self.rounds.append((len(layout.targets), most))
        return layout.targets.float(), None


def updater(rank: int, ranks: int, budget: int, packed: bool, terms: set[str], reference: Reference) -> Updater:
    config = Config()
    config.learner.tokens_per_micro_batch, config.learner.batching = budget, "packed" if packed else "padded"
    engine = SimpleNamespace(eval=lambda: None)
    return Updater(config, SimpleNamespace(reference_terms=frozenset(terms)), engine, reference, rank, ranks)


@pytest.mark.parametrize("terms", [{"conditioned"}, {"policy", "conditioned"}, set()])
@pytest.mark.parametrize("ranks, budget, packed", [(1, 60, False), (3, 60, False), (2, 200, True), (4, 1, True)])
def test_exactly_the_samples_that_need_it_are_scored(terms, ranks, budget, packed):
    asked, scored = [], 0
    for rank in range(ranks):
        reference = Reference()
        mine = updater(rank, ranks, budget, packed, terms, reference)
        micro_batches = mine.micro_batches(batch())
        mine._fix_references(micro_batches)
        asked.append(reference.rounds)
        for micro in micro_batches:
            parts = micro.reference_logprobs.split([len(s.completion_ids) for s in micro.samples])
            needed = [sample.term in terms for sample in micro.samples]
            for sample, part, wanted in zip(micro.samples, parts, needed, strict=True):
                if wanted:
                    assert torch.equal(part, torch.from_numpy(sample.completion_ids).float())
                elif any(needed):
                    assert not part.any()
            scored += sum(wanted and not micro.idle for wanted in needed)
    assert scored == sum(sample.term in terms for sample in batch())
    rounds = list(zip(*asked, strict=True))  # a rank with fewer rounds than another would leave it waiting
    for of_round in rounds:
        assert {most for _, most in of_round} == {max(tokens for tokens, _ in of_round)}
