"""Builds a vLLM engine that lives inside the calling process, and turns its outputs into completions."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from expo_ray.config.schema import Config
from expo_ray.messages import Completion
from expo_ray.rollout.request import Sampling


def build_engine(config: Config, context_tokens: int, seed: int) -> Any:
    """A `vllm.LLM` that receives weights through vLLM's weight-transfer API.

    Args:
        config: the run's configuration (rollout, sync and profile are read).
        context_tokens: longest prompt plus longest completion, in tokens.
        seed: seed of the engine's random generator.
    """
    on_cpu = config.profile.device == "cpu"
    colocated = config.cluster.placement == "colocated"
    if on_cpu:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(config.rollout.kv_cache_gib)))
    if on_cpu and config.rollout.enforce_eager:
        import torch._dynamo

        # Eager still compiles one helper of the sampler, which costs the first probe 4 to 10 s.
        torch._dynamo.config.disable = True
    import vllm
    from vllm.config import WeightTransferConfig

    from expo_ray.sync.gloo_engine import register
    from expo_ray.sync.sender import resolve_backend

    register()
    # One line a batch that would be the last one in every log.
    logging.getLogger("vllm.v1.core.block_pool").setLevel(logging.WARNING)
    rollout = config.rollout
    where: dict[str, Any] = (
        {"distributed_executor_backend": "uni"}
        if on_cpu
        else {
            "gpu_memory_utilization": rollout.gpu_memory_utilization,
            "enable_sleep_mode": colocated,
            "distributed_executor_backend": "mp" if rollout.tensor_parallel > 1 else "uni",
        }
    )
    return vllm.LLM(
        model=config.model.path,
        dtype=rollout.dtype,
        enforce_eager=rollout.enforce_eager,
        tensor_parallel_size=rollout.tensor_parallel,
        max_model_len=context_tokens,
        max_num_seqs=rollout.max_sequences,
        seed=seed,
        trust_remote_code=config.model.trust_remote_code,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        enable_prefix_caching=True,
        disable_log_stats=True,
        # By priority a probe gets ahead of what is sampled meanwhile; in turn nothing is, and ties must stay in order.
        scheduling_policy="priority" if config.trainer.async_steps else "fcfs",
        weight_transfer_config=WeightTransferConfig(
            backend=resolve_backend(config.sync.backend, device=config.profile.device, colocated=colocated)
        ),
        **where,
    )


def sampling_params(
    sampling: Sampling, count: int, stop_ids: Sequence[int], seeds: np.random.Generator | None = None
) -> Any:
    """vLLM's parameters: log-probability of each sampled token, no text (detokenising there costs 4x).

    Args:
        sampling: how to sample.
        count: samples of one prompt.
        stop_ids: token ids that end a completion.
        seeds: draws the request's own seed; None: the engine's generator decides.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=count,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or -1,
        max_tokens=sampling.max_tokens,
        stop_token_ids=list(stop_ids),
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        seed=None if seeds is None else int(seeds.integers(1 << 31)),
    )


def completions(outputs: Sequence[Any], tokenizer: Any, weight_version: int) -> list[list[Completion]]:
    """vLLM's request outputs as completions, all texts decoded in one batch.

    Raises:
        RuntimeError: if the engine's log-probabilities do not belong to the tokens it returned.
    """
    flat = [sample for output in outputs for sample in output.outputs]
    texts = iter(tokenizer.batch_decode([list(s.token_ids) for s in flat], skip_special_tokens=True))
    return [[_completion(sample, next(texts), weight_version) for sample in output.outputs] for output in outputs]


def _completion(sample: Any, text: str, weight_version: int) -> Completion:
    ids = np.asarray(sample.token_ids, np.int32)
    if not np.array_equal(ids, np.asarray(sample.logprobs.token_ids, np.int32)):
        raise RuntimeError("the engine returned log-probabilities of other tokens than the ones it sampled")
    return Completion(
        token_ids=ids,
        logprobs=np.asarray(sample.logprobs.logprobs, np.float32),
        text=text,
        finish_reason="stop" if sample.finish_reason == "stop" else "length",
        weight_version=weight_version,
    )
