"""The rollout actor: prompts in, rollouts out, weights received between them."""

from typing import Any

import numpy as np

from expo_ray.config.schema import Config
from expo_ray.messages import Completion, IntArray, Rollout, RolloutRequest, Sampling
from expo_ray.rollout.engine import EngineLoop, build_engine, completions, sampling_params
from expo_ray.rollout.receiver import WeightReceiver
from expo_ray.runtime.process import ActorProcess, begin
from expo_ray.runtime.spans import span


class RolloutWorker(ActorProcess, WeightReceiver):
    """One vLLM engine in this process.

    Args:
        config: the run's configuration.
        index: which rollout worker this is.
        context_tokens: longest prompt plus longest completion.
        stop_ids: token ids that end a completion.
        log_folder: the folder of this actor's log.
    """

    def __init__(
        self, config: Config, index: int, context_tokens: int, stop_ids: tuple[int, ...], log_folder: str
    ) -> None:
        begin(f"rollout-{index}", log_folder)
        from transformers import AutoTokenizer

        self.stop_ids = stop_ids
        self.on_gpu = config.profile.device == "cuda"
        self.tokenizer = AutoTokenizer.from_pretrained(
            config.model.path, trust_remote_code=config.model.trust_remote_code
        )
        llm = build_engine(config, context_tokens, seed=config.seed)
        import torch

        stream = torch.cuda.current_stream() if self.on_gpu else None
        self.engine = EngineLoop(llm, config.trainer.wait_s, config.trainer.async_steps > 0, stream)
        self.asleep = False
        self.update_weight_version(0)

    def sleep(self) -> None:
        """Frees the card's memory, weights included: the next sync brings new ones. All requests must be finished."""
        self.engine.pause()
        if not self.asleep:
            with span("sleep"):
                self.engine.llm.sleep(level=2)
            self.asleep = True

    def wake(self, part: str) -> None:
        """Allocates memory again: "weights" before a sync, "kv_cache" after it. Does nothing if the engine is awake."""
        if self.asleep:
            with span(f"wake {part}"):
                self.engine.llm.wake_up(tags=[part])
            self.asleep = part != "kv_cache"

    def generate(self, requests: list[RolloutRequest], sampling: Sampling, seed: int) -> list[Rollout]:
        """Samples every request's free completions and self-explanations in one batch of engine requests.

        Args:
            requests: what to sample for each prompt.
            sampling: how to sample.
            seed: with the same weights and the same arguments, any engine returns the same rollouts, whatever it
                sampled before.

        Returns:
            Rollouts in the order of the requests. Their weight version is that of their first token; if the weights
            change during sampling (trainer.async_steps), later tokens come from newer weights.
        """
        import torch

        jobs: list[tuple[IntArray, int, str]] = []
        for request in requests:
            prompt = request.prompt
            jobs.append((prompt.free_ids, request.samples, prompt.thought))
            jobs.append((prompt.conditioned_ids, request.explanations, prompt.thought))
        wanted = [job for job in jobs if job[1]]
        with self.engine.turn() as llm:
            # On CPU the engine draws from torch's generator: per-request seeds crash vLLM's CPU build on some batches.
            # On GPU each request gets a seed: vLLM's GPU workers do not read this generator.
            torch.manual_seed(seed)
            # A cached prefix was computed in other shapes than a fresh one, which changes the last bits.
            llm.reset_prefix_cache()
            version = self.get_weight_version()
            seeds = np.random.default_rng(seed) if self.on_gpu else None
            begun = self.engine.submit(
                [{"prompt_token_ids": ids.tolist()} for ids, _, _ in wanted],
                [sampling_params(sampling, count, self.stop_ids, seeds) for _, count, _ in wanted],
            )
        with span("sample", requests=len(wanted), version=version):
            outputs = self.engine.results(begun)
        with span("decode texts"):
            sampled = iter(completions(outputs, self.tokenizer, version, [thought for *_, thought in wanted]))
        return [
            Rollout(request.prompt, _next(sampled, request.samples), _next(sampled, request.explanations))
            for request in requests
        ]


def _next(sampled: Any, count: int) -> list[Completion]:
    return next(sampled) if count else []
