"""The rollout actor: prompts in, rollouts out, weights received between them."""

from typing import Any

from expo_ray.actor_process import ActorProcess, begin
from expo_ray.config.schema import Config
from expo_ray.messages import Completion, IntArray, Rollout
from expo_ray.rollout.engine import build_engine, completions, sampling_params
from expo_ray.rollout.request import RolloutRequest, Sampling
from expo_ray.sync.receiver import WeightReceiver


class RolloutWorker(ActorProcess, WeightReceiver):
    """One vLLM engine in this process.

    Args:
        config: the run's configuration.
        index: which rollout worker this is.
        context_tokens: longest prompt plus longest completion.
        stop_ids: token ids that end a completion.
        log_folder: where this actor's log goes.
    """

    def __init__(
        self, config: Config, index: int, context_tokens: int, stop_ids: tuple[int, ...], log_folder: str
    ) -> None:
        begin(f"rollout-{index}", log_folder)
        from transformers import AutoTokenizer

        self.stop_ids = stop_ids
        self.tokenizer = AutoTokenizer.from_pretrained(
            config.model.path, trust_remote_code=config.model.trust_remote_code
        )
        self.llm = build_engine(config, context_tokens, seed=config.seed)
        self.update_weight_version(0)

    def generate(self, requests: list[RolloutRequest], sampling: Sampling, seed: int) -> list[Rollout]:
        """Samples every request's free completions and self-explanations in one batch of engine requests.

        Args:
            requests: what to sample for each prompt.
            sampling: how.
            seed: reseeds the generator before the batch. With the same weights, the same call gives the same
                rollouts in any engine, whatever it did before. (vLLM's per-request seeds end the engine on some
                batches of its CPU build.)

        Returns:
            Rollouts in the order of the requests.
        """
        import torch

        torch.manual_seed(seed)
        # A cached prefix is computed in other shapes than a fresh one, which moves the last bits.
        self.llm.reset_prefix_cache()
        jobs: list[tuple[IntArray, int]] = []
        for request in requests:
            jobs += [(request.prompt.free_ids, request.samples), (request.prompt.conditioned_ids, request.explanations)]
        wanted = [(ids, count) for ids, count in jobs if count]
        outputs = self.llm.generate(
            [{"prompt_token_ids": ids.tolist()} for ids, _ in wanted],
            [sampling_params(sampling, count, self.stop_ids) for _, count in wanted],
            use_tqdm=False,
        )
        sampled = iter(completions(outputs, self.tokenizer, self.get_weight_version()))
        return [
            Rollout(request.prompt, _next(sampled, request.samples), _next(sampled, request.explanations))
            for request in requests
        ]


def _next(sampled: Any, count: int) -> list[Completion]:
    return next(sampled) if count else []
