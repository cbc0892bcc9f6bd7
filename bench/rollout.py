"""Rollout phase against bare vLLM: `python -m bench.rollout [pairs [key=value ...]]`, the demo by default.

The same requests alternate in one run between the fleet (Ray, one batch of requests, token ids and log-probabilities
returned as messages, texts decoded) and `vllm.LLM.generate` inside the same actor. Bar: the fleet takes at most 10 %
more.
"""

import statistics
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from expo_ray.config.compose import compose_config
from expo_ray.config.schema import Config
from expo_ray.data.sources import Problems
from expo_ray.data.stream import PromptStream
from expo_ray.driver import actors as driver_actors
from expo_ray.messages import RolloutRequest, Sampling
from expo_ray.preflight.model_folder import generation_ends
from expo_ray.preflight.plan import make_plan
from expo_ray.prompts.loading import load_prompts, load_tokenizer, longest_sequence, make_builder, stop_ids
from expo_ray.rollout import worker
from expo_ray.rollout.engine import sampling_params
from expo_ray.rollout.requests import training_sampling


class MeasuredWorker(worker.RolloutWorker):
    """A rollout worker that can also run the bare engine on the same requests."""

    def bare(self, requests: list[RolloutRequest], sampling: Sampling, seed: int) -> float:
        """Returns the seconds that `LLM.generate` takes for the requests with the same sampling parameters."""
        import torch

        torch.manual_seed(seed)
        prompts: list[dict[str, Any]] = []
        params = []
        for request in requests:
            for ids, count in (
                (request.prompt.free_ids, request.samples),
                (request.prompt.conditioned_ids, request.explanations),
            ):
                if count:
                    prompts.append({"prompt_token_ids": ids.tolist()})
                    params.append(sampling_params(sampling, count, self.stop_ids))
        began = time.monotonic()
        self.engine.llm.generate(prompts, params, use_tqdm=False)
        return time.monotonic() - began


def measure(config: Config, pairs: int) -> list[tuple[float, float]]:
    """Returns `(fleet seconds, bare seconds)` of each pair after one warm-up pair."""
    import ray

    tokenizer = load_tokenizer(config)
    plan = make_plan(config, training=False)
    problems = Problems(config.data, config.seed)
    builder = make_builder(tokenizer, config)
    training, _ = load_prompts(config, builder, problems, plan.context)
    context = longest_sequence(training, config.rollout.max_completion_tokens)
    worker.RolloutWorker = MeasuredWorker  # type: ignore[misc]
    ends = stop_ids(builder, generation_ends(config.model.path))
    folder = Path(mkdtemp(prefix="bench_rollout_"))
    actors = driver_actors.Actors(plan, folder, context, ends)
    try:
        stream = PromptStream(training, config.trainer.prompts_per_step, config.seed)
        handle = next(iter(actors.rollouts.workers.values()))
        sampling, found = training_sampling(config), []
        for step in range(pairs + 1):
            rollout = config.rollout
            requests = [
                RolloutRequest(prompt, rollout.samples_per_prompt, rollout.explanations_per_prompt)
                for prompt in stream.prompts(step)
            ]
            began = time.monotonic()
            actors.rollouts.generate(requests, sampling, (0, step))
            fleet = time.monotonic() - began
            found.append((fleet, ray.get(handle.bare.remote(requests, sampling, step), timeout=600)))
        return found[1:]
    finally:
        actors.close()


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    found = measure(compose_config(sys.argv[2:] or ["experiment=demo"]), pairs)
    ratios = sorted(fleet / bare for fleet, bare in found)
    print(f"fleet {statistics.median(f for f, _ in found):.3f} s, bare {statistics.median(b for _, b in found):.3f} s")
    print(f"ratio of pairs: min {ratios[0]:.3f}, median {statistics.median(ratios):.3f}, max {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
