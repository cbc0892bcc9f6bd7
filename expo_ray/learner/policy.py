"""The policy and the reference policy as DeepSpeed engines."""

import copy
import sys
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from expo_ray.config.schema import Config, LearnerConfig
from expo_ray.learner.micro_batches import Layout


class TokenScorer(nn.Module):
    """A causal language model reduced to what a policy-gradient learner needs.

    Logits exist for `chunk_tokens` scored tokens at a time and are recomputed in the backward pass, so memory does
    not grow with (tokens x vocabulary).
    """

    def __init__(self, lm: Any, chunk_tokens: int) -> None:
        super().__init__()
        self.lm = lm
        self.chunk_tokens = chunk_tokens

    def forward(
        self, layout: Layout, temperature: float, entropy_gradient: bool, most_scored: int
    ) -> tuple[Tensor, Tensor]:
        """Scores a micro-batch.

        Args:
            layout: the micro-batch, N scored tokens.
            temperature: the logits are divided by it, as the engine did when it sampled.
            entropy_gradient: whether the entropy needs a gradient (entropy bonus).
            most_scored: the largest N of any rank in this round. Every rank makes as many chunks as this needs,
                because at ZeRO-3 each use of the output layer is a collective call.

        Returns:
            [N] log-probabilities and [N] entropies, both float32 nats.
        """
        decoder = self.lm.base_model
        hidden = decoder(input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=False)
        picked = hidden.last_hidden_state[layout.rows, layout.columns]
        count = max(1, -(-max(most_scored, len(picked)) // self.chunk_tokens))
        chunks = list(zip(picked.tensor_split(count), layout.targets.tensor_split(count), strict=True))
        again = len(chunks) > 1 and torch.is_grad_enabled()
        scored = [
            checkpoint(self._score, h, t, temperature, entropy_gradient, use_reentrant=False)
            if again
            else self._score(h, t, temperature, entropy_gradient)
            for h, t in chunks
        ]
        return torch.cat([s[0] for s in scored]), torch.cat([s[1] for s in scored])

    def _score(
        self, hidden: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        logits = self.lm.get_output_embeddings()(hidden).float() / temperature
        log_softmax = logits.log_softmax(-1)
        logprobs = log_softmax.gather(-1, targets[:, None])[:, 0]
        source = log_softmax if entropy_gradient else log_softmax.detach()
        return logprobs, -(source.exp() * source).sum(-1)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def deepspeed_config(config: LearnerConfig, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's settings (deepspeed.ai/docs/config-json).

    `gradient_accumulation_steps` is 1, so that DeepSpeed does not scale the loss; expo_ray.learner.update sets the
    accumulation boundary itself.
    """
    adam = {
        "lr": config.learning_rate,
        "betas": [config.adam_beta1, config.adam_beta2],
        "weight_decay": config.weight_decay,
        # DeepSpeed would compile its own kernel at start, for which the CUDA toolkit must be installed.
        "torch_adam": True,
        "fused": on_gpu and not config.offload_optimizer,
    }
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": on_gpu,
        "stage3_gather_16bit_weights_on_model_save": False,
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": config.offload_optimizer,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        # A bfloat16 sum over many micro-batches would depend on how the batch was cut.
        "data_types": {"grad_accum_dtype": "fp32" if config.zero_stage >= 2 else None},
        "steps_per_print": 1 << 30,
    }


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
    trained = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=scorer, model_parameters=trained, config=settings)
    return engine, lm


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
    if config.learner.zero_stage < 3:
        return scorer.to(config.profile.device)
    frozen = copy.deepcopy(settings)
    del frozen["optimizer"]
    engine, *_ = deepspeed.initialize(model=scorer, config=frozen)
    engine.eval()  # unlike torch, DeepSpeed returns None here
    return engine


def _load(config: Config) -> Any:
    lm = AutoModelForCausalLM.from_pretrained(
        config.model.path,
        dtype=DTYPES[config.learner.dtype],
        attn_implementation=config.learner.attention,
        trust_remote_code=config.model.trust_remote_code,
    )
    lm.config.use_cache = False
    _stop_dropout(lm)
    return lm


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


def _partition_while_loading(settings: dict[str, Any]) -> HfDeepSpeedConfig | None:
    """At ZeRO-3, makes transformers partition each tensor as it loads, as long as the returned object is alive."""
    return HfDeepSpeedConfig(settings) if settings["zero_optimization"]["stage"] == 3 else None
