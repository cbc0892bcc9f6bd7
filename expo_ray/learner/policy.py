"""The policy and the reference policy as DeepSpeed engines, and the kernels that they compute with on a card."""

import copy
import inspect
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
from torch import Tensor, nn
from torch.nn.attention import varlen
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AutoModelForCausalLM, GenerationConfig
from transformers.integrations import HfDeepSpeedConfig

from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config
from expo_ray.learner.deepspeed_settings import deepspeed_config
from expo_ray.learner.micro_batches import Entropy, Layout

VARLEN = "torch_varlen"
"""Name of `varlen_attention` among transformers' attention implementations."""
COMPILED_MODULES = ("RMSNorm", "MLP")
"""Ends of the names of the module classes whose forward pass `compile_parts` compiles."""


class TokenScorer(nn.Module):
    """A causal language model reduced to what a policy-gradient learner needs.

    Logits exist for `chunk_tokens` scored tokens at a time and are recomputed in the backward pass, so memory does
    not grow with (tokens x vocabulary).
    """

    def __init__(self, lm: Any, chunk_tokens: int) -> None:
        super().__init__()
        self.lm = lm
        self.chunk_tokens = chunk_tokens
        self.token_scores: Callable[..., tuple[Tensor, Tensor | None]] = token_scores

    def forward(
        self, layout: Layout, temperature: float, entropy: Entropy, most_scored: int, likeliest: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Scores a micro-batch.

        Args:
            layout: the micro-batch, N scored tokens.
            temperature: the logits are divided by it, as the engine did when it sampled.
            entropy: whether the entropy is computed, and with a gradient.
            most_scored: the largest N of any rank in this round. Every rank makes as many chunks as this needs,
                because at ZeRO-3 each use of the output layer is a collective call.
            likeliest: k > 0: finds the k likeliest tokens in each place instead of scoring the targets.

        Returns:
            Log-probabilities in the shape of the targets and [N] entropies, or None in their place, both float32 nats.
            With `likeliest`: [N, k] log-probabilities and [N, k] ids; k is at most the size of the vocabulary.
        """
        decoder, packed = self.lm.base_model, {}
        if layout.starts is not None and self.lm.config._attn_implementation == VARLEN:
            packed = {"cu_seq_lens_q": layout.starts, "max_length_q": layout.longest}
            if layout.keys is not None:
                packed |= {"seen_keys": layout.keys}
                packed |= {"cu_seq_lens_k": layout.key_starts, "max_length_k": layout.longest_keys}
        hidden = decoder(input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=False, **packed)
        picked = hidden.last_hidden_state[layout.rows, layout.columns]
        count = max(1, -(-max(most_scored, len(picked)) // self.chunk_tokens))
        chunks = list(zip(picked.tensor_split(count), layout.targets.tensor_split(count), strict=True))
        if likeliest:
            found = [self._likeliest(h, temperature, likeliest) for h, _ in chunks]
            return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])
        again = len(chunks) > 1 and torch.is_grad_enabled()
        scored = [
            checkpoint(self._score, h, t, temperature, entropy, use_reentrant=False)
            if again
            else self._score(h, t, temperature, entropy)
            for h, t in chunks
        ]
        entropies = None if entropy == "none" else torch.cat([s[1] for s in scored])
        return torch.cat([s[0] for s in scored]), entropies

    def _score(
        self, hidden: Tensor, targets: Tensor, temperature: float, entropy: Entropy
    ) -> tuple[Tensor, Tensor | None]:
        return self.token_scores(self.lm.get_output_embeddings()(hidden), targets, temperature, entropy)

    def _likeliest(self, hidden: Tensor, temperature: float, count: int) -> tuple[Tensor, Tensor]:
        log_softmax = (self.lm.get_output_embeddings()(hidden).float() / temperature).log_softmax(-1)
        found = log_softmax.topk(min(count, log_softmax.shape[-1]), dim=-1)
        return found.values, found.indices


def token_scores(logits: Tensor, targets: Tensor, temperature: float, entropy: Entropy) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of targets [N] or [N, C] in their shape, and [N] entropies if asked for, of logits [N, V]; in
    float32 nats."""
    log_softmax = (logits.float() / temperature).log_softmax(-1)
    wanted = targets[:, None] if targets.ndim == 1 else targets
    logprobs = log_softmax.gather(-1, wanted).reshape(targets.shape)
    if entropy == "none":
        return logprobs, None
    source = log_softmax if entropy == "gradient" else log_softmax.detach()
    return logprobs, -(source.exp() * source).sum(-1)


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_k: int | None = None,
    seen_keys: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of one packed row, by torch's flash kernel for sequences of any lengths.

    transformers makes no mask for an implementation that it does not know, and keys and values keep their fewer heads.
    Where a sequence sees more keys than it has tokens, the last token sees all of them (torch.nn.attention.bias relies
    on that too).

    Args:
        module: the layer that attends.
        query: [1, heads, T, size].
        key: [1, key-value heads, T, size].
        value: as `key`.
        attention_mask: None.
        scaling: of the scores.
        dropout: 0, as the kernel has none.
        sliding_window: how many tokens a token sees, itself included; None: all before it.
        cu_seq_lens_q: Layout.starts.
        max_length_q: Layout.longest.
        cu_seq_lens_k: Layout.key_starts; None: as for the queries.
        max_length_k: Layout.longest_keys.
        seen_keys: Layout.keys; None: each sequence sees itself only.
        others: ignored, except what the kernel cannot compute (`softcap` and the like), which must be None.

    Returns:
        [1, T, heads, size], and None in place of the attention's weights.

    Raises:
        ValueError: the model or the row asks for something else.
    """
    wanted = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    wanted += ["attention_dropout"] * bool(dropout) + ["a mask"] * (attention_mask is not None)
    if wanted or cu_seq_lens_q is None:
        asked = f"asks for {', '.join(wanted)}, which torch's varlen_attn does not compute"
        what = asked if wanted else "is not given where the sequences of a packed row begin"
        raise ValueError(f"learner.batching=packed: {type(module).__name__} {what}: use learner.batching=padded")
    # torch 2.11 takes grouped heads as they are, 2.13 only with `enable_gqa`.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters else {}
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    if seen_keys is not None:
        key, value = (heads.index_select(2, seen_keys) for heads in (key, value))
    rows = (heads[0].transpose(0, 1) for heads in (query, key, value))
    places = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    if cu_seq_lens_k is not None:
        places = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    return varlen.varlen_attn(*rows, *places, scale=scaling, window_size=window, **grouped)[None], None


AttentionInterface.register(VARLEN, varlen_attention)


def compile_parts(lm: Any, scorer: TokenScorer, zero_stage: int, **options: Any) -> None:
    """Compiles what is many small kernels otherwise: norms, rotary embedding, gated MLP, and the scores of the logits.

    Classes are compiled, not instances, so that all layers share one graph. At ZeRO-3 modules are left as they are,
    because DeepSpeed's hooks in them gather the weights.

    Args:
        lm: the language model inside `scorer`.
        scorer: computes the scores.
        zero_stage: learner.zero_stage.
        options: of torch.compile.
    """
    torch._dynamo.config.recompile_limit = 64  # of one function: for each size 0, 1 and any, with and without gradient

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return (
            function
            if hasattr(function, "_torchdynamo_orig_callable")
            else torch.compile(function, dynamic=True, **options)
        )

    for kind in {type(module) for module in lm.modules()}:
        if zero_stage < 3 and kind.__name__.endswith(COMPILED_MODULES):
            kind.forward = compiled(kind.forward)
    code = sys.modules[type(lm).__module__]
    if hasattr(code, "apply_rotary_pos_emb"):
        code.apply_rotary_pos_emb = compiled(code.apply_rotary_pos_emb)  # type: ignore[attr-defined]
    scorer.token_scores = compiled(token_scores)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def skip_inference_op() -> None:
    """Keeps DeepSpeed from compiling its shared-memory kernel for CPU, which takes a compiler and half a minute.

    Only `inference_all_reduce` uses the kernel, and training never calls it.
    """
    # As an attribute, `deepspeed.comm.torch` is torch itself, not DeepSpeed's module of that name.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]


def join_group(on_gpu: bool, timeout: timedelta) -> None:
    """Joins the learners' process group; MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE must be set."""
    if not on_gpu:
        skip_inference_op()
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", timeout=timeout)


def load_policy(config: Config) -> tuple[Any, Any]:
    """Loads the policy to train: `(DeepSpeed engine around a TokenScorer, the language model inside it)`."""
    settings = deepspeed_config(config.learner, config.profile.device == "cuda")
    partitioned = _partition_while_loading(settings)
    lm = _load(config)
    del partitioned  # transformers partitions whatever it loads while this object is alive
    if config.learner.gradient_checkpointing:
        # This also makes the embeddings' output require a gradient. With LoRA all weights of a block may be frozen, and
        # a checkpointed block whose input needs no gradient passes none on.
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.model.lora.rank:
        from expo_ray.learner.lora import add_adapters

        add_adapters(lm, config.model.lora, config.seed)
    scorer = TokenScorer(lm, config.learner.logits_chunk_tokens)
    if config.learner.compile:
        compile_parts(lm, scorer, config.learner.zero_stage)
    if config.learner.offload_optimizer:
        build_cpu_adam()
    trained = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=scorer, model_parameters=trained, config=settings)
    return engine, lm


def build_cpu_adam() -> None:
    """Compiles DeepSpeed's Adam for host memory, half a minute where it has not been done; the ranks' start bounds it.

    Raises:
        RuntimeError: it cannot be compiled, or not be loaded.
    """
    from deepspeed.ops.op_builder import CPUAdamBuilder

    os.environ["PATH"] += f"{os.pathsep}{Path(sys.executable).parent}"  # there is the ninja of the environment
    try:
        CPUAdamBuilder().load(verbose=False)
    except (RuntimeError, ImportError, OSError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise RuntimeError(
            f"learner.offload_optimizer=true compiles DeepSpeed's CPU Adam on each learner's node with g++ and ninja, "
            f"which failed: {cause}; install them there, or use learner.offload_optimizer=false"
        ) from error


def move_optimizer(engine: Any, to_host: bool) -> None:
    """Moves the optimizer's states and the float32 weights between the card and pinned host memory (ZeRO-1 and 2)."""
    if not to_host:
        engine.reload_states()
        return
    states = (OffloadStateTypeEnum.optim_states, OffloadStateTypeEnum.hp_params)
    engine.offload_states(include=states, pin_memory=torch.cuda.is_available())


def load_reference(config: Config, engine: Any, lm: Any) -> Any:
    """Loads the frozen reference policy, which is called like the policy's engine.

    With LoRA it is the policy, `(engine, lm)` of `load_policy`, without its adapters. Otherwise every rank holds a
    whole copy below ZeRO-3, and at ZeRO-3 it is partitioned like the policy.
    """
    if config.model.lora.rank:
        from expo_ray.learner.lora import AdaptersOffReference

        return AdaptersOffReference(engine, lm)
    settings = deepspeed_config(config.learner, config.profile.device == "cuda")
    partitioned = _partition_while_loading(settings)
    scorer = TokenScorer(_load(config), config.learner.logits_chunk_tokens).eval().requires_grad_(False)
    del partitioned
    if config.learner.compile:
        compile_parts(scorer.lm, scorer, config.learner.zero_stage)
    if config.learner.zero_stage < 3:
        return scorer.to(config.profile.device)
    frozen = copy.deepcopy(settings)
    del frozen["optimizer"]
    engine, *_ = deepspeed.initialize(model=scorer, config=frozen)
    engine.eval()  # unlike torch, DeepSpeed returns None here
    return engine


def _load(config: Config) -> Any:
    """Loads the base model.

    Raises:
        ConfigError: its files lack tensors, which transformers would draw at random with no more than a warning.
    """
    learner = config.learner
    # Packed rows need torch's own attention in its form for sequences of any lengths, which there is for cards only.
    varying = learner.batching == "packed" and learner.attention == "sdpa" and config.profile.device == "cuda"
    lm, found = AutoModelForCausalLM.from_pretrained(
        config.model.path,
        dtype=DTYPES[learner.dtype],
        attn_implementation=VARLEN if varying else learner.attention,
        trust_remote_code=config.model.trust_remote_code,
        output_loading_info=True,
        generation_config=GenerationConfig(),  # learners do not generate: the model's own is not read, whatever it has
    )
    if lacking := sorted(found["missing_keys"]):
        raise ConfigError(
            f"model.path={config.model.path}: its weights lack {lacking[0]} ({len(lacking)} of the tensors of "
            f"{type(lm).__name__}), which would be drawn at random: copy config.json and weights from one source"
        )
    if unused := sorted(found["unexpected_keys"]):
        print(f"{len(unused)} tensors of {config.model.path} are not used ({unused[0]}, ...)", flush=True)
    if varying and not lm._supports_attention_backend:
        raise ValueError(
            f"learner.batching=packed: {type(lm).__name__} of model.path={config.model.path} has an attention of its "
            "own: use learner.batching=padded"
        )
    if learner.batching == "packed" and (mixed := {type(m).__name__ for m in lm.modules() if isinstance(m, nn.Conv1d)}):
        # Mamba, gated delta rule and the like: what they carry along a row does not stop where a sequence ends.
        raise ValueError(
            f"learner.batching=packed: {type(lm).__name__} of model.path={config.model.path} has layers ({min(mixed)}) "
            "that would mix the sequences of a row: use learner.batching=padded"
        )
    lm.config.use_cache = False
    if frozen := beyond_text(lm):
        print(f"{len(frozen)} tensors that text does not pass are frozen ({frozen[0]}, ...)", file=sys.stderr)
        for name in frozen:
            lm.get_parameter(name).requires_grad_(False)
    _stop_dropout(lm)
    if config.model.head_dtype == "float32":
        compute_head_in_float32(lm.get_output_embeddings())
    return lm


def beyond_text(lm: Any) -> list[str]:
    """Names of the weights that text does not pass, in a multimodal model: encoders of images and the like. Trained,
    they would have gradients of zero, and weight decay would shrink them."""
    if lm.config.get_text_config() is lm.config:
        return []
    passed = {id(weight) for part in (lm.get_decoder(), lm.get_output_embeddings()) for weight in part.parameters()}
    return [name for name, weight in lm.named_parameters() if id(weight) not in passed]


def _stop_dropout(lm: Any) -> None:
    """Sets the model's own dropout to 0: engines and the reference policy have none, so that log-probabilities of the
    updated policy would differ from theirs by noise. Adapters have their own (`model.lora.dropout`)."""
    found = [
        (module, name, value)
        for module in lm.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and value > 0 and ("drop" in name or isinstance(module, nn.Dropout))
    ]
    for module, name, _ in found:
        setattr(module, name, 0.0)
    if found:
        rates = sorted({value for *_, value in found})
        print(f"the model's own dropout (rates {rates}, {len(found)} places) is off", file=sys.stderr)


def compute_head_in_float32(head: nn.Module) -> None:
    """Makes an output layer multiply in float32 whatever the type of its weights, as vLLM's `head_dtype` does."""
    # Only what the module computes is replaced: calling it still runs the hooks with which ZeRO-3 gathers its weights.
    head.forward = lambda hidden: nn.functional.linear(hidden.float(), head.weight.float())


def _partition_while_loading(settings: dict[str, Any]) -> HfDeepSpeedConfig | None:
    """At ZeRO-3, makes transformers partition each tensor as it loads, as long as the returned object is alive."""
    return HfDeepSpeedConfig(settings) if settings["zero_optimization"]["stage"] == 3 else None
