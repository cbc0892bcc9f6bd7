"""What the learner does differently on a card, as far as a CPU can show it: kernels, copies, memory, offloaded states.

All on a random two-layer model in this process, without DeepSpeed's engine; 30 s, most of it importing and tracing.
"""

import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Lfm2Config, Lfm2ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from expo_ray.algorithms import make_algorithm
from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config
from expo_ray.driver.actors import Actors, _same
from expo_ray.learner import policy
from expo_ray.learner.micro_batches import lay_out
from expo_ray.learner.policy import DTYPES, VARLEN, TokenScorer, deepspeed_config, varlen_attention
from expo_ray.learner.rank import LearnerRank
from expo_ray.learner.update import Updater
from expo_ray.messages import Likeliest, TrainingBatch, TrainingSample
from expo_ray.preflight.estimate import learner_memory
from expo_ray.preflight.model_folder import KNOWN
from expo_ray.preflight.values import check_config

VOCABULARY = 31


def model(attention: str = "sdpa", **changes) -> Qwen2ForCausalLM:
    """Four query heads share two for keys and values."""
    torch.manual_seed(3)
    shape = dict(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, attn_implementation=attention,
    )  # fmt: skip
    return Qwen2ForCausalLM(Qwen2Config(**shape | changes))


class Engine:
    """DeepSpeed's engine as far as the updater calls it, on one rank and without its optimizer step."""

    def __init__(self, lm) -> None:
        self.module = TokenScorer(lm, 16)
        self.optimizer = SimpleNamespace(param_groups=[{}], _global_grad_norm=1.5)
        for name in ("train", "eval", "step"):
            setattr(self, name, lambda *_: None)
        self.set_gradient_accumulation_boundary = lambda last: None
        self.get_global_grad_norm = lambda: 1.5
        self.asked: list[str] = []

    def __call__(self, layout, temperature, entropy, most):
        self.asked.append(entropy)
        return self.module(layout, temperature, entropy, most)

    def backward(self, loss) -> None:
        loss.backward()


def batch(count: int = 9, step: int = 0) -> TrainingBatch:
    draw = np.random.default_rng(1)
    samples = []
    for index in range(count):
        prompt, completion = (draw.integers(1, VOCABULARY, n).astype(np.int32) for n in draw.integers(1, 30, 2))
        term = "sft" if index % 4 == 3 else "policy"
        old = draw.normal(-3, 0.1, len(completion)).astype(np.float32) if term == "policy" else None
        sample = TrainingSample(
            prompt, completion, term, 0.1 / len(completion), float(draw.normal()), rollout_logprobs=old
        )
        samples.append(taught(sample, draw) if index % 3 == 0 else sample)
    return TrainingBatch(step, samples)


def taught(sample: TrainingSample, draw: np.random.Generator) -> TrainingSample:
    """The sample with a teacher's four likeliest tokens, and with an advantage for each token."""
    tokens = len(sample.completion_ids)
    ids = np.argsort(draw.random((tokens, VOCABULARY)))[:, :4].astype(np.int32)
    teacher = Likeliest(ids, np.log(draw.dirichlet(np.ones(5), tokens)[:, :4]).astype(np.float32))
    return replace(sample, teacher=teacher, token_advantages=draw.normal(size=tokens).astype(np.float32))


def updated(lm, packed: bool, budget: int = 80, data: TrainingBatch | None = None, **algo):
    """Metrics and gradients of one update, and the engine."""
    config = Config()
    config.learner.tokens_per_micro_batch, config.learner.batching = budget, "packed" if packed else "padded"
    groups = {"entropy_every": config.logging, "share_prompts": config.learner}
    for name, value in algo.items():
        setattr(groups.get(name, config.algo), name, value)
    engine = Engine(lm)
    sums = Updater(config, make_algorithm(config), engine, None, 0, 1).update(data or batch(), 1e-3)
    return sums, {name: p.grad for name, p in lm.named_parameters()}, engine


def by_the_sequence(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """What torch's varlen_attn computes, a sequence and a head at a time; a sequence's last token sees all its keys."""
    assert cu_q.dtype == cu_k.dtype == torch.int32 and (cu_q[-1], cu_k[-1]) == (len(query), len(key))
    assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max())) and window_size[1] == 0
    assert enable_gqa and key.shape[1] < query.shape[1]
    rows = []
    ends = [cu.tolist() for cu in (cu_q, cu_k)]
    for first, end, first_key, end_key in zip(ends[0], ends[0][1:], ends[1], ends[1][1:], strict=False):
        heads = []
        for head in range(query.shape[1]):
            shared = head * key.shape[1] // query.shape[1]
            scores = query[first:end, head] @ key[first_key:end_key, shared].T * scale
            place = torch.arange(end_key - first_key)
            back = place[-(end - first) :, None] - place
            seen = (back >= 0) & (back <= window_size[0] if window_size[0] >= 0 else True)
            heads.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value[first_key:end_key, shared])
        rows.append(torch.stack(heads, 1))
    return torch.cat(rows)


@pytest.fixture
def kernel(monkeypatch):
    """A mask of L x L would be an error: `varlen_attention` refuses any."""
    monkeypatch.setattr(varlen, "varlen_attn", by_the_sequence)


def largest_difference(found: dict, expected: dict) -> float:
    assert found.keys() == expected.keys()
    scale = max(float(e.abs().max()) for e in expected.values())
    return max(float((found[n] - e).abs().max()) for n, e in expected.items()) / scale


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_give_the_loss_and_gradient_of_padded_ones(kernel, checkpointing):
    sums, gradient, _ = updated(model(), packed=False)
    lm = model(VARLEN)
    if checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    packed_sums, packed_gradient, _ = updated(lm, packed=True)
    assert packed_sums["loss/total"][0] == pytest.approx(sums["loss/total"][0], rel=1e-6)
    assert largest_difference(packed_gradient, gradient) < 2e-6
    assert {n: c for n, (_, c) in packed_sums.items()} == {n: c for n, (_, c) in sums.items()}


@pytest.mark.parametrize("budget", [1, 40, 100_000])
def test_a_prompt_that_samples_share_is_computed_once(kernel, budget):
    """Groups of four and a lone sample; at 40 tokens groups are cut, at 1 nothing is shared."""
    own = batch(13).samples
    first = [0, 0, 0, 0, 4, 4, 4, 4, 8, 9, 9, 9, 9]
    data = TrainingBatch(0, [replace(s, prompt_ids=own[f].prompt_ids) for s, f in zip(own, first, strict=True)])
    sums, gradient, _ = updated(model(), packed=False, data=data)
    tokens: list[int] = []
    lm = model(VARLEN)
    lm.model.embed_tokens.register_forward_hook(lambda module, given, out: tokens.append(given[0].numel()))
    found, shared_gradient, _ = updated(lm, packed=True, data=data, budget=budget, share_prompts=True)
    assert found["loss/total"][0] == pytest.approx(sums["loss/total"][0], rel=1e-6)
    assert largest_difference(shared_gradient, gradient) < 2e-6
    completions = sum(len(s.completion_ids) for s in data.samples)
    once = sum(len(ids) for ids in {s.prompt_ids.tobytes(): s.prompt_ids for s in data.samples}.values())
    each = sum(len(s.prompt_ids) for s in data.samples)
    if budget == 40:
        assert completions + once < sum(tokens) < completions + each
    else:
        assert sum(tokens) == completions + (each if budget == 1 else once)


def test_a_sliding_window_counts_the_token_itself(kernel):
    layers = dict(use_sliding_window=True, sliding_window=5, max_window_layers=0, layer_types=["sliding_attention"] * 2)
    row = lay_out([np.arange(1, 12, dtype=np.int32)], [np.arange(3, 20, dtype=np.int32)], packed=True)
    found = TokenScorer(model(VARLEN, **layers), 16)(row, 1.0, "none", 17)[0]
    eager = model("eager", **layers)(input_ids=row.input_ids).logits[0]
    expected = eager.log_softmax(-1)[row.columns].gather(-1, row.targets[:, None])[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("asked", [{"softcap": 30.0}, {"dropout": 0.1}, {"cu_seq_lens_q": None}])
def test_what_the_kernel_cannot_compute_is_an_error(asked):
    heads = [torch.zeros(1, n, 4, 8) for n in (4, 2, 2)]
    known = {"cu_seq_lens_q": torch.tensor([0, 4], dtype=torch.int32), "max_length_q": 4}
    with pytest.raises(ValueError, match=r"packed: Module (asks for|is not given) .*: use learner\.batching=padded"):
        varlen_attention(torch.nn.Module(), *heads, None, **known | asked)


def test_torch_2_11_has_no_word_for_grouped_heads(monkeypatch):
    """It takes them as they are."""
    seen = []

    def older(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
    ):
        seen.append((key.shape, window_size))
        return query

    monkeypatch.setattr(varlen, "varlen_attn", older)
    heads = [torch.zeros(1, n, 4, 8) for n in (4, 2, 2)]
    starts = torch.tensor([0, 4], dtype=torch.int32)
    out, _ = varlen_attention(torch.nn.Module(), *heads, None, cu_seq_lens_q=starts, max_length_q=4)
    assert seen == [((4, 2, 8), (-1, 0))] and out.shape == (1, 4, 4, 8)


@pytest.mark.parametrize(
    ("batching", "dtype", "expected"), [("packed", "bfloat16", VARLEN), ("padded", "bfloat16", "sdpa")]
)
def test_which_attention_a_card_gets(tiny_models, batching, dtype, expected):
    config = compose_config(["profile=gpu", f"model.path={tiny_models['tied']}", f"learner.batching={batching}"])
    assert policy._load(config).config._attn_implementation == expected


def test_a_model_with_an_attention_of_its_own_cannot_be_packed(tiny_models, monkeypatch):
    monkeypatch.setattr(Qwen2ForCausalLM, "_supports_attention_backend", False)
    config = compose_config(["profile=gpu", f"model.path={tiny_models['tied']}"])
    with pytest.raises(ValueError, match=r"Qwen2ForCausalLM .* attention of its own: use learner\.batching=padded"):
        policy._load(config)


def test_a_model_that_carries_a_state_along_a_row_cannot_be_packed(tmp_path):
    """Its convolutions would reach from one sequence of a row into the next: 0.2 nats for this model."""
    shape = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_attention_heads=4)
    layers = dict(num_hidden_layers=2, num_key_value_heads=2, layer_types=["conv", "full_attention"])
    Lfm2ForCausalLM(Lfm2Config(**shape, **layers)).save_pretrained(tmp_path)
    config = compose_config(["profile=gpu", f"model.path={tmp_path}", "learner.batching=padded"])
    assert policy._load(config).config.layer_types == layers["layer_types"]
    config.learner.batching = "packed"
    with pytest.raises(ValueError, match=r"Lfm2ForCausalLM .* would mix the sequences .* use learner\.batching=padded"):
        policy._load(config)


def test_entropy_is_computed_where_something_asks_for_it():
    asked = {}
    for step in (0, 1, 10):
        sums, _, engine = updated(model(), packed=False, data=batch(step=step), entropy_every=10)
        asked[step] = set(engine.asked), "policy/entropy" in sums
    assert asked == {0: ({"value"}, True), 1: ({"none"}, False), 10: ({"value"}, True)}
    assert updated(model(), packed=False, entropy_every=0)[2].asked[0] == "none"
    sums, with_bonus, engine = updated(model(), packed=False, entropy_every=0, entropy_bonus=0.5)
    assert set(engine.asked) == {"gradient"} and "policy/entropy" in sums
    assert largest_difference(updated(model(), packed=False)[1], with_bonus) > 1e-3


def test_metrics_leave_the_device_once_a_step(monkeypatch):
    """Each way from a tensor to a number is counted, whatever the number of micro-batches; the kernel has none."""
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, *_, enable_gqa=False, **__: query)
    counts = []
    for budget in (30, 100_000):
        with monkeypatch.context() as patch:
            copies: list[str] = []
            for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__"):
                original = getattr(torch.Tensor, name)
                patch.setattr(
                    torch.Tensor, name, lambda self, *a, _o=original, _n=name, _c=copies: _c.append(_n) or _o(self, *a)
                )
            updated(model(VARLEN), packed=True, budget=budget)
        counts.append(copies)
    assert counts == [["tolist"], ["tolist"]]


def test_compiled_parts_compute_the_same_from_few_graphs():
    """Traced and not turned into code, for which a CPU would need minutes; 12 s."""
    from torch._dynamo.utils import counters
    from transformers.models.qwen2 import modeling_qwen2 as code

    sums, gradient, _ = updated(model(), packed=False)
    before = {of: of.forward for of in (code.Qwen2RMSNorm, code.Qwen2MLP)}, code.apply_rotary_pos_emb
    try:
        torch._dynamo.reset()
        lm = model(num_hidden_layers=2)
        compiled = Engine(lm)
        policy.compile_parts(lm, compiled.module, 2, backend="eager")
        policy.compile_parts(lm, compiled.module, 2, backend="eager")  # as for the reference policy
        config = Config()
        config.learner.tokens_per_micro_batch = 80
        found = Updater(config, make_algorithm(config), compiled, None, 0, 1).update(batch(), 1e-3)
        graphs = counters["stats"]["unique_graphs"]
    finally:
        for of, forward in before[0].items():
            of.forward = forward
        code.apply_rotary_pos_emb = before[1]
        torch._dynamo.reset()
    assert found["loss/total"][0] == pytest.approx(sums["loss/total"][0], rel=1e-6)
    assert largest_difference({n: p.grad for n, p in lm.named_parameters()}, gradient) < 2e-6
    assert 4 <= graphs <= 12, "norm, MLP, rotary embedding and scores, for a few kinds of sizes"


def test_a_run_that_compiles_shares_no_actors_with_one_that_does_not():
    """What was compiled is a class of the process, which a later run of the same process would use."""
    plans = [
        check_config(compose_config(["experiment=math_l5_qwen2.5_3b", "cluster=4xh100", "dry_run=true", *change]))
        for change in (["algo.beta=0.1"], ["algo.beta=0.2"], ["learner.compile=false"])
    ]
    assert _same(plans[0], plans[1]) and not _same(plans[0], plans[2])


class Peak(TorchDispatchMode):
    """The largest number of bytes that the tensors made in this mode take at once."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, int] = {}
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self.known[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.known.pop, storage._cdata)
                self.largest = max(self.largest, sum(self.known.values()))
        return made


@pytest.mark.parametrize(("dtype", "head"), [("bfloat16", "model"), ("bfloat16", "float32"), ("float32", "model")])
@pytest.mark.parametrize(("asked", "keys"), [("none", (0, 0.0)), ("value", (1, 0.0)), ("gradient", (1, 0.1))])
def test_the_plan_knows_what_the_scores_of_the_logits_take(dtype, head, asked, keys):
    tokens, vocabulary, hidden = 64, 20_000, 32 if head == "float32" else 2
    config = Config()
    config.learner.dtype, config.learner.logits_chunk_tokens, config.model.head_dtype = dtype, tokens, head
    config.logging.entropy_every, config.algo.entropy_bonus = keys
    shape = replace(KNOWN["qwen2.5-0.5b"], vocabulary=vocabulary, hidden=hidden)
    planned = learner_memory(config, shape, 0.0).host["logits"] * 2**30
    layer = torch.nn.Linear(hidden, vocabulary, bias=False).to(DTYPES[dtype])
    if head == "float32":
        policy.compute_head_in_float32(layer)
    given = torch.randn(tokens, hidden).to(DTYPES[dtype]).requires_grad_()
    with Peak() as peak:
        found = policy.token_scores(layer(given), torch.arange(tokens), 0.7, asked)
        loss = -found[0].sum() - (found[1].sum() if asked == "gradient" else 0)
        del found
        loss.backward()
    assert peak.largest == pytest.approx(planned, rel=0.06)


def test_the_plan_knows_what_a_block_keeps_for_its_backward_pass():
    """Within a tenth of what autograd saves for two more blocks; without compiled parts, which save less."""

    def saved(layers: int) -> int:
        lm = model(num_hidden_layers=layers, hidden_size=128, intermediate_size=640, num_attention_heads=8).bfloat16()
        weights = {p.untyped_storage().data_ptr() for p in lm.parameters()}
        kept: dict[int, torch.Tensor] = {}
        hooks = (lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t) is None or t), lambda t: t
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            out = lm.base_model(input_ids=torch.ones(4, 64, dtype=torch.int64), use_cache=False).last_hidden_state
        assert out.requires_grad
        return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)

    config = Config()
    config.learner.dtype, config.learner.tokens_per_micro_batch = "bfloat16", 256
    config.rollout.max_prompt_tokens = config.rollout.max_completion_tokens = 8
    shape = replace(KNOWN["qwen2.5-0.5b"], hidden=128, intermediate=640, heads=8, kv_heads=2, head_size=16, layers=2)
    planned = learner_memory(config, shape, 0.0).host["activations"] * 2**30
    assert saved(4) - saved(2) == pytest.approx(planned, rel=0.1)


def test_cudnn_attention_is_on_again_after_the_import_of_vllm(monkeypatch):
    """vllm.platforms.cuda turns it off for the process, and the weight transfer imports that."""
    for device, deterministic, expected in (("cuda", False, [True]), ("cuda", True, []), ("cpu", False, [])):
        calls: list[bool] = []
        monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", calls.append)
        rank = object.__new__(LearnerRank)
        rank.config = Config()
        rank.config.profile.device, rank.config.profile.deterministic = device, deterministic
        rank.sender = SimpleNamespace(connect=lambda *_, _calls=calls: _calls == [] or pytest.fail("before the import"))
        rank.connect({})
        assert calls == expected


def test_the_optimizer_is_on_the_card_for_updates_and_loading_only(monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("free"))
    rank = object.__new__(LearnerRank)
    rank.config, rank.updates = Config(), 0
    rank.config.learner.offload_between_updates, rank.config.cluster.placement = True, "colocated"
    rank.engine = SimpleNamespace(
        offload_states=lambda include, pin_memory: calls.append(f"away {sorted(s.value for s in include)}"),
        reload_states=lambda: calls.append("back"),
    )
    rank.updater = SimpleNamespace(
        update=lambda *_: calls.append("update") or {}, score=lambda *_: calls.append("score")
    )
    rank.update(batch())
    rank.score([])
    away = "away ['hp_params', 'optim_states']"
    assert calls == ["back", "update", away, "free", "score", away, "free"]


def test_an_offloaded_optimizer_is_deepspeeds_on_all_cores():
    config = Config()
    parameters = deepspeed_config(config.learner, on_gpu=True)["optimizer"]["params"]
    assert parameters["torch_adam"] and parameters["fused"]
    config.learner.offload_optimizer = True
    settings = deepspeed_config(config.learner, on_gpu=True)
    assert (
        not {"torch_adam", "fused"} & set(settings["optimizer"]["params"]) and settings["zero_force_ds_cpu_optimizer"]
    )
    base = ["experiment=math_l5_qwen2.5_3b", "cluster=4xh100", "dry_run=true"]
    threads = {}
    for change in ("learner.offload_optimizer=false", "learner.offload_optimizer=true", "trainer.async_steps=1"):
        plan = check_config(compose_config([*base, "learner.offload_optimizer=true", change]))
        actors = object.__new__(Actors)
        actors.plan, actors.config, actors._group = plan, plan.config, None
        found = (
            actors._options(name, 0)["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] for name in ("rollout", "learner")
        )
        threads[change] = tuple(found)
    # 64 cores for two ranks; one step ahead, two engines keep two of them each.
    assert list(threads.values()) == [("2", "2"), ("2", "32"), ("2", "30")]


def test_an_adam_that_cannot_be_compiled_is_one_sentence(monkeypatch):
    from deepspeed.ops.op_builder import CPUAdamBuilder

    def load(self, verbose=True):
        raise RuntimeError("Unable to JIT load the cpu_adam op") from OSError("g++: not found\nmore")

    monkeypatch.setattr(CPUAdamBuilder, "load", load)
    with pytest.raises(RuntimeError, match=r"with g\+\+ and ninja, which failed: g\+\+: not found; install") as caught:
        policy.build_cpu_adam()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["learner.dtype=float32"], "has no learner.dtype=float32: use learner.batching=padded"),
        (["learner.attention=eager"], "has no learner.attention=eager: use learner.batching=padded"),
        (["learner.offload_between_updates=true", "learner.zero_stage=3"], "needs learner.zero_stage=1 or 2"),
        (["learner.offload_between_updates=true", "learner.offload_optimizer=true"], "nothing to move"),
        (["learner.offload_optimizer=true", "learner.zero_stage=0"], "needs learner.zero_stage=1 or more"),
        (["learner.offload_between_updates=true", "cluster=2xh100"], "without cluster.placement=colocated"),
    ],
)
def test_what_a_card_cannot_do_is_refused(overrides, sentence):
    with pytest.raises(ConfigError) as caught:
        check_config(compose_config(["experiment=gsm8k_qwen2.5_0.5b", "cluster=1xh100", "dry_run=true", *overrides]))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_offloading_needs_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("expo_ray.preflight.values.cpu_build", lambda: False)
    asked = ["experiment=gsm8k_qwen2.5_0.5b", "cluster=1xh100", "learner.offload_optimizer=true"]
    with pytest.raises(ConfigError, match=r"for which g\+\+ .*must be installed"):
        check_config(compose_config(asked))
