"""The reference policy scores exactly the samples whose term needs it, in every round; an update's gradient norm."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.tokens import metric_means
from expo_ray.config.schema import Config
from expo_ray.learner.micro_batches import lay_out
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


def updater(rank: int, ranks: int, budget: int, packed: bool, terms: set[str], reference: Reference | None) -> Updater:
    config = Config()
    config.learner.tokens_per_micro_batch, config.learner.batching = budget, "packed" if packed else "padded"
    engine = SimpleNamespace(eval=lambda: None)
    return Updater(config, SimpleNamespace(reference_terms=frozenset(terms)), engine, reference, rank, ranks)


def pairs(stored: tuple[int, ...]) -> list[TrainingSample]:
    """Six pairs; those in `stored` bring their reference sums."""
    return [
        replace(sample, term=("chosen", "rejected")[index % 2], unit=index // 2, reference_logprob=-1.0)
        if index // 2 in stored
        else replace(sample, term=("chosen", "rejected")[index % 2], unit=index // 2)
        for index, sample in enumerate(batch()[:12])
    ]


@pytest.mark.parametrize("stored", [(), (0, 3), tuple(range(6))])
@pytest.mark.parametrize("ranks, budget", [(1, 4096), (3, 60)])
def test_pairs_with_stored_sums_are_not_scored_and_load_no_reference(stored, ranks, budget):
    """Every rank scores in every round, or none in any, and loads the reference policy once, or not at all."""
    loaded, rounds, scored = [], [], 0
    for rank in range(ranks):
        reference = Reference()
        mine = updater(rank, ranks, budget, False, {"chosen", "rejected"}, None)
        mine.load_reference = lambda reference=reference: loaded.append(reference) or reference
        for _ in range(2):
            micro_batches = mine.micro_batches(pairs(stored))
            mine._fix_references(micro_batches)
        rounds.append(len(reference.rounds))
        for micro in micro_batches:
            if micro.reference_logprobs is None:
                continue
            parts = micro.reference_logprobs.split([len(s.completion_ids) for s in micro.samples])
            for sample, part in zip(micro.samples, parts, strict=True):
                wanted = sample.reference_logprob is None
                assert torch.equal(part, torch.from_numpy(sample.completion_ids).float()) or not wanted
                scored += wanted and not micro.idle
    assert scored == 2 * (6 - len(stored))
    assert len(loaded) == (0 if len(stored) == 6 else ranks)
    assert len(set(rounds)) == 1 and bool(rounds[0]) == (len(stored) < 6)


class Dropping:
    """A policy whose log-probability of token t is -t / 100, and 0.3 nats lower for odd tokens in training mode."""

    def __init__(self) -> None:
        self.training, self.calls = False, []
        self.set_gradient_accumulation_boundary = self.backward = lambda _: None

    def eval(self):
        self.training = False

    def train(self):
        self.training = True

    def __call__(self, layout, temperature, entropy_gradient, most):
        self.calls.append(self.training)
        exact = -layout.targets.float() / 100
        noise = 0.3 * (layout.targets % 2) if self.training else 0.0
        return (exact - noise).requires_grad_(), torch.zeros(len(exact))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dropout_is_no_mismatch_between_learner_and_engine(dropout):
    """The engine samples from the policy without dropout: a difference to that one, of which there is none here, is
    what the importance correction and trainer.max_mismatch look at; the ratio of a single update remains 1."""
    config = Config()
    config.model.lora.dropout, config.model.lora.rank = dropout, 4
    samples = [
        replace(s, advantage=1.0, rollout_logprobs=(-s.completion_ids / 100).astype(np.float32))
        for s in batch()
        if s.term == "policy"
    ]
    engine = Dropping()
    mine = Updater(config, make_algorithm(config), engine, None, 0, 1)
    micro_batches = mine.micro_batches(samples)
    mine._fix_references(micro_batches)
    found = metric_means(mine.accumulate(micro_batches))
    odd = np.concatenate([s.completion_ids % 2 for s in samples]).mean()
    assert found["mismatch/mean_abs"] == pytest.approx(0.0 if dropout else 0.3 * odd, abs=1e-6)
    assert found["mismatch/ratio_mean"] == pytest.approx(1.0 if dropout else 1 - odd + odd * np.exp(-0.3), abs=1e-6)
    assert found["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert engine.calls.count(False) == (len(micro_batches) if dropout else 0)


def test_the_models_own_dropout_is_off(tmp_path, capsys):
    from transformers import GPT2Config, GPT2LMHeadModel

    from expo_ray.learner.policy import TokenScorer, _load

    shape = GPT2Config(vocab_size=90, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    assert shape.resid_pdrop == shape.attn_pdrop == 0.1
    torch.manual_seed(0)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path)
    config = Config()
    config.model.path = str(tmp_path)
    lm = _load(config)
    assert "dropout (rates [0.1]" in capsys.readouterr().err
    layout = lay_out([s.prompt_ids for s in batch()], [s.completion_ids for s in batch()], packed=False)
    scorer = TokenScorer(lm, 1024)
    training, still = (scorer.train(mode)(layout, 1.0, False, 0)[0].detach() for mode in (True, False))
    assert torch.equal(training, still)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6},
        {"do_sample": False, "top_p": 0.9},
        {"max_new_tokens": -1},
        {"cache_implementation": "mine"},
    ],
)
def test_generation_settings_as_people_have_them_do_not_keep_a_model_from_loading(tiny_models, tmp_path, settings):
    """transformers warns of the first two, and refuses to load a model with the others."""
    import json
    import shutil

    from expo_ray.learner.policy import _load

    config = Config()
    config.model.path = str(shutil.copytree(tiny_models["tied"], tmp_path / "model"))
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    assert _load(config).num_parameters() > 0


def test_weights_that_lack_a_tensor_are_not_loaded(tmp_path):
    """In a file whose names the checks before the start do not read."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from expo_ray.config.errors import ConfigError
    from expo_ray.learner.policy import _load

    shape = Qwen2Config(
        vocab_size=90, hidden_size=16, num_hidden_layers=2, intermediate_size=16, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    state = Qwen2ForCausalLM(shape).state_dict()
    shape.save_pretrained(tmp_path)
    config = Config()
    config.model.path = str(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert torch.equal(_load(config).lm_head.weight.float(), state["lm_head.weight"])
    del state["lm_head.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"lack lm_head.weight \(1 of the tensors of Qwen2ForCausalLM\)"):
        _load(config)


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
        for micro in micro_batches if terms else []:
            parts = micro.reference_logprobs.split([len(s.completion_ids) for s in micro.samples])
            needed = [sample.term in terms for sample in micro.samples]
            for sample, part, wanted in zip(micro.samples, parts, needed, strict=True):
                if wanted:
                    assert torch.equal(part, torch.from_numpy(sample.completion_ids).float())
                elif any(needed):
                    assert not part.any()
            scored += sum(wanted and not micro.idle for wanted in needed)
    assert scored == sum(sample.term in terms for sample in batch())
    assert bool(terms) == any(asked)
    rounds = list(zip(*asked, strict=True))  # a rank with fewer rounds than another would leave it waiting
    for of_round in rounds:
        assert {most for _, most in of_round} == {max(tokens for tokens, _ in of_round)}


@pytest.mark.parametrize("kept", [None, 3.5], ids=["ZeRO 0 in float32", "an optimizer that keeps its norm"])
def test_the_gradient_norm_is_that_before_clipping(kept):
    """DeepSpeed's engine around a plain optimizer keeps no norm: the step clips, and the norm is of before."""
    module = torch.nn.Linear(5, 3)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    expected = np.sqrt(sum(np.sum(p.grad.numpy().astype(np.float64) ** 2) for p in module.parameters()))
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    optimizer = SimpleNamespace(param_groups=[]) if kept is None else SimpleNamespace(_global_grad_norm=kept)
    engine = SimpleNamespace(
        module=torch.nn.ModuleList([module, frozen]),
        optimizer=optimizer,
        step=lambda: torch.nn.utils.clip_grad_norm_(module.parameters(), 1e-3),
        get_global_grad_norm=lambda: kept,
    )
    mine = Updater(Config(), make_algorithm(Config()), engine, None, 0, 1)
    assert mine.step() == pytest.approx(expected if kept is None else kept, rel=1e-6)
