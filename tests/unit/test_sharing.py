"""A batch is shared out over ranks and cut into micro-batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expo_ray.learner.micro_batches import deal, lay_out, most_scored, shortest_unit


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(-1, 5)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 1000),
    st.booleans(),
)
def test_every_sample_is_in_one_share_and_units_stay_together(samples, ranks, budget, packed):
    lengths, units = [s[0] for s in samples], [s[1] for s in samples]
    shares = deal(lengths, units, ranks, budget, packed)
    assert sorted(i for share in shares for cut in share for i in cut) == list(range(len(samples)))
    assert len({len(share) for share in shares}) == 1
    for unit in set(units) - {-1}:
        holders = {
            (r, c) for r, share in enumerate(shares) for c, cut in enumerate(share) for i in cut if units[i] == unit
        }
        assert len(holders) == 1
    for share in shares:
        for cut in share:
            tokens = sum(lengths[i] for i in cut) if packed else max((lengths[i] for i in cut), default=0) * len(cut)
            one_unit = len({units[i] if units[i] >= 0 else ("alone", i) for i in cut}) <= 1
            assert tokens <= budget or one_unit


def test_tokens_are_balanced_over_ranks():
    lengths = np.random.default_rng(0).integers(1, 500, 200).tolist()
    shares = deal(lengths, [-1] * 200, 4, 4096, packed=True)
    tokens = [sum(lengths[i] for cut in share for i in cut) for share in shares]
    assert max(tokens) - min(tokens) <= 500


@pytest.mark.parametrize("packed", [False, True])
def test_layout_points_at_the_token_before_each_scored_one(packed):
    contexts = [np.array([5, 6], np.int32), np.array([7], np.int32)]
    scored = [np.array([8, 9, 10], np.int32), np.array([11], np.int32)]
    layout = lay_out(contexts, scored, packed)
    before = layout.input_ids[layout.rows, layout.columns].tolist()
    assert before == [6, 8, 9, 7]
    assert layout.targets.tolist() == [8, 9, 10, 11]
    assert layout.sample_of_token.tolist() == [0, 0, 0, 1]
    assert layout.position_ids[layout.rows, layout.columns].tolist() == [1, 2, 3, 0]


def test_an_empty_context_is_refused():
    with pytest.raises(ValueError, match="empty context"):
        lay_out([np.array([], np.int32)], [np.array([1], np.int32)], packed=False)


def test_the_largest_number_of_scored_tokens_of_each_round():
    shares = [[[0, 1], [2]], [[3], []]]
    assert most_scored(shares, [5, 6, 7, 9], idle=[0]) == [11, 7]
    assert most_scored(shares, [5, 6, 7, 9], idle=[3]) == [11, 9]
    assert most_scored(shares, [5, 6, 7, 9], idle=[0, 3]) == [11, 14]


def test_an_idle_rank_computes_a_whole_unit():
    """Half a DPO pair has no loss; one pair on two ranks ended a run."""
    assert shortest_unit([9, 2, 3, 4], [0, 0, 1, 1]) == [2, 3]
    assert shortest_unit([9, 2, 3], [0, 0, -1]) == [2]
    assert shortest_unit([5, 5], [7, 7]) == [0, 1]


def test_a_float32_head_rounds_no_logit_and_still_passes_its_gradient_on():
    """Against float64: bfloat16 logits are off by a quarter at 32 and above, float32 ones by rounding alone."""
    from expo_ray.learner.policy import TokenScorer, compute_head_in_float32

    head = torch.nn.Linear(64, 50, bias=False).bfloat16()
    with torch.no_grad():
        head.weight.normal_(0, 1, generator=torch.Generator().manual_seed(2))
    hidden = (3 * torch.randn(20, 64, generator=torch.Generator().manual_seed(3))).bfloat16()
    targets = torch.arange(20)
    exact = (hidden.double() @ head.weight.double().T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    lm = torch.nn.Module()
    lm.get_output_embeddings = lambda: head
    scorer = TokenScorer(lm, 8)

    def error() -> float:
        return float((scorer._score(hidden, targets, 1.0, "none")[0] - exact).detach().abs().max())

    assert error() > 0.02
    compute_head_in_float32(head)
    assert error() < 1e-4
    called: list[object] = []
    head.register_forward_pre_hook(lambda *_: called.append(None))  # as ZeRO-3's, which gathers the weights
    scorer._score(hidden, targets, 1.0, "none")[0].sum().backward()
    assert called and head.weight.grad.dtype is torch.bfloat16 and head.weight.grad.abs().sum() > 0
