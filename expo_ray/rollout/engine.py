"""A vLLM engine inside the calling process: how it is built, who may use it when, and its outputs as completions."""

import itertools
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from expo_ray.config.schema import Config
from expo_ray.messages import Completion, Sampling
from expo_ray.prompts.templates import decode_rows
from expo_ray.runtime.process import while_importing
from expo_ray.runtime.waits import Deadline


class EngineStuck(RuntimeError):
    """Another thread did not release the engine within the bound."""


class EngineLoop:
    """Lets several threads take turns on an engine in this process (`vllm.LLM` without multiprocessing).

    `LLM.generate` would hold the engine until everything is sampled. Here each engine step is a turn of its own, so
    that a weight update or a probe can come between two steps; unfinished requests are kept.

    Args:
        llm: the engine.
        wait_s: bound on waiting for a turn.
        priorities: whether the engine schedules by priority, so that a probe can overtake unfinished requests.
        stream: the CUDA stream that the engine was built on; None without a GPU.
    """

    def __init__(self, llm: Any, wait_s: float, priorities: bool = False, stream: Any = None) -> None:
        self.llm, self.wait_s, self.priorities, self.stream = llm, wait_s, priorities, stream
        self.paused = False
        # Two locks make the queue fair. With one, a thread that samples would release it after a step and take it again
        # before a waiting thread wakes up. A waiting thread holds the door, so the sampling thread queues behind it.
        self._door, self._engine = threading.Lock(), threading.Lock()
        self._finished: dict[str, Any] = {}
        self._numbers = itertools.count()

    @contextmanager
    def turn(self, in_pause: bool = False) -> Iterator[Any]:
        """Gives this thread the engine, for the body of a with statement. Between `pause` and `resume` it blocks.

        Args:
            in_pause: allow the call while paused, for the code that paused the engine.

        Raises:
            EngineStuck: the engine was not free within the bound.
        """
        self.take_stream()
        if in_pause and self.paused:
            yield self.llm
            return
        self._enter()
        try:
            yield self.llm
        finally:
            self._engine.release()

    def take_stream(self) -> None:
        """Makes this thread work on the engine's CUDA stream.

        torch gives each thread the default stream, and vLLM one that asks for its stream a new one (vLLM's
        current_stream). The engine's kernels wait for neither.
        """
        if self.stream is not None:
            import torch

            torch.cuda.set_stream(self.stream)

    def finish_computing(self) -> None:
        """Waits until the card has done what the engine's stream holds."""
        if self.stream is not None:
            self.stream.synchronize()

    def pause(self) -> None:
        """Blocks all turns until `resume`, which another thread may call. Unfinished requests are kept.

        Raises:
            EngineStuck: a step did not end within the bound.
        """
        if not self.paused:
            self._enter()
            self.paused = True

    def resume(self) -> None:
        """Ends the pause; sampling continues."""
        if self.paused:
            self.paused = False
            self._engine.release()

    @property
    def busy(self) -> bool:
        """Whether requests are unfinished. The thread must have the turn."""
        return bool(self.llm.llm_engine.has_unfinished_requests())

    def submit(self, prompts: Sequence[Any], params: Sequence[Any], first: bool = False) -> list[str]:
        """Adds requests to the engine and returns their ids. The thread must have the turn.

        Args:
            prompts: vLLM's prompts.
            params: the SamplingParams of each; `output_kind` must be FINAL_ONLY.
            first: schedule them before waiting requests.
        """
        ids = [str(next(self._numbers)) for _ in prompts]
        priority = -1 if first and self.priorities else 0
        for request, prompt, wanted in zip(ids, prompts, params, strict=True):
            self.llm.llm_engine.add_request(request, prompt, wanted, priority=priority)
        return ids

    def results(self, requests: Sequence[str], in_pause: bool = False) -> list[Any]:
        """Steps the engine until these requests are finished; returns vLLM's outputs in their order.

        Args:
            requests: their ids.
            in_pause: as in `turn`.

        Raises:
            RuntimeError: the engine is idle and a request is not finished.
        """
        wanted = set(requests)
        while True:
            with self.turn(in_pause) as llm:
                if wanted <= self._finished.keys():
                    return [self._finished.pop(request) for request in requests]
                if not self.busy:
                    missing = sorted(wanted - self._finished.keys())
                    raise RuntimeError(f"the engine is idle, but requests {', '.join(missing[:5])} are not finished")
                # A step may also finish requests of another thread, which collects them from `_finished`.
                for output in llm.llm_engine.step():
                    if output.finished:
                        self._finished[output.request_id] = output

    def _enter(self) -> None:
        deadline = Deadline(self.wait_s)
        if self._door.acquire(timeout=deadline.left):
            try:
                if self._engine.acquire(timeout=deadline.left):
                    return
            finally:
                self._door.release()
        raise EngineStuck(f"the engine was not free within {self.wait_s:.0f} s")


def build_engine(config: Config, context_tokens: int, seed: int) -> Any:
    """Builds a `vllm.LLM` that receives weights through vLLM's weight-transfer API.

    Args:
        config: the run's configuration.
        context_tokens: longest prompt plus longest completion, in tokens.
        seed: seed of the engine's random generator.
    """
    on_cpu = config.profile.device == "cpu"
    if on_cpu:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(config.rollout.kv_cache_gib)))
    if on_cpu and config.rollout.enforce_eager:
        import torch._dynamo

        # Eager mode still compiles one helper of the sampler, which costs the first probe 4 to 10 s.
        torch._dynamo.config.disable = True
    with while_importing():
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        from expo_ray.sync.gloo.engine import register
        from expo_ray.sync.sender import resolve_backend

    rollout, options = config.rollout, config.rollout.engine_options
    # An engine on several cards has a process for each, which do not know what is registered in this one. Weights that
    # are quantised as they are loaded must be loaded, not copied.
    reload = config.rollout.tensor_parallel > 1 or any(name.startswith("quantization") for name in options)
    receiver = "reload" if reload else config.sync.receiver
    backend = register(resolve_backend(config), receiver)
    # It logs a line for each batch, which would hide the last line that matters in an error.
    logging.getLogger("vllm.v1.core.block_pool").setLevel(logging.WARNING)
    where: dict[str, Any] = {"distributed_executor_backend": "mp" if rollout.tensor_parallel > 1 else "uni"}
    if not on_cpu:
        where["gpu_memory_utilization"] = rollout.gpu_memory_utilization
        where["enable_sleep_mode"] = config.cluster.placement == "colocated"
    llm = LLM(
        model=config.model.path,
        dtype=rollout.dtype,
        enforce_eager=rollout.enforce_eager,
        tensor_parallel_size=rollout.tensor_parallel,
        max_model_len=context_tokens,
        max_num_seqs=rollout.max_sequences,
        seed=seed,
        trust_remote_code=config.model.trust_remote_code,
        hf_overrides=None if config.model.head_dtype == "model" else {"head_dtype": config.model.head_dtype},
        logprobs_mode="processed_logprobs",  # after temperature, top-p and top-k: what was really sampled from
        generation_config="vllm",  # not the model's own, whose repetition penalty and the like would change samples
        enable_prefix_caching=True,
        language_model_only=True,  # of a multimodal model: prompts are text, so its encoders are left out
        disable_log_stats=True,
        # In async mode a probe must overtake unfinished samples. Otherwise requests must start in exactly their order,
        # which decides the random numbers that each gets; "priority" does not promise that for equal priorities.
        scheduling_policy="priority" if config.trainer.async_steps else "fcfs",
        weight_transfer_config=WeightTransferConfig(backend=backend),
        **where,
        **options,
    )
    if on_cpu:
        _remove_rendezvous(llm)
    return llm


def _remove_rendezvous(llm: Any) -> None:
    """Removes the file in /tmp through which vLLM's one rank joined its process group; vLLM never does.

    Only on CPU: NCCL's watchdog keeps reading the file.
    """
    for method in llm.collective_rpc(lambda worker: worker.distributed_init_method):
        if method.startswith("file://"):
            Path(method.removeprefix("file://")).unlink(missing_ok=True)


def sampling_params(
    sampling: Sampling, count: int, stop_ids: Sequence[int], seeds: np.random.Generator | None = None
) -> Any:
    """Builds vLLM's parameters: log-probabilities of the sampled tokens, but no texts (decoding there costs 4x).

    Args:
        sampling: how to sample.
        count: samples of one prompt.
        stop_ids: token ids that end a completion.
        seeds: draws a seed for the request; None to use the engine's generator.
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


def completions(
    outputs: Sequence[Any], tokenizer: Any, weight_version: int, thoughts: Sequence[str]
) -> list[list[Completion]]:
    """Turns vLLM's request outputs into completions, with all texts decoded in one batch.

    Args:
        outputs: of the engine, one of each request.
        tokenizer: decodes them.
        weight_version: that of the engine.
        thoughts: `Prompt.thought` of each request.

    Raises:
        RuntimeError: the engine's log-probabilities do not belong to the tokens that it returned.
    """
    flat = [sample for output in outputs for sample in output.outputs]
    texts = iter(decode_rows(tokenizer, [list(s.token_ids) for s in flat]))
    return [
        [_completion(sample, thought + next(texts), weight_version) for sample in output.outputs]
        for output, thought in zip(outputs, thoughts, strict=True)
    ]


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
