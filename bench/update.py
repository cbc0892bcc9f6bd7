"""Update phase against a bare DeepSpeed loop: `python -m bench.update [pairs]`.

The same micro-batches on the same ranks alternate in one run between `LearnerGroup.update` (batch through the object
store, assignment to ranks, layout, scoring, losses, metrics) and forward, cross-entropy, backward, step of the plain
Hugging Face model in a second engine. Bar: the update takes at most 15 % more.
"""

import statistics
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from expo_ray.config.compose import compose_config
from expo_ray.config.schema import Config
from expo_ray.learner.group import LearnerGroup
from expo_ray.learner.rank import LearnerRank
from expo_ray.messages import TrainingBatch, TrainingSample
from expo_ray.runtime.process import environment
from expo_ray.runtime.waits import Waiter


class MeasuredRank(LearnerRank):
    """A learner rank with a second, bare DeepSpeed engine."""

    def build(self) -> None:
        super().build()
        import deepspeed

        from expo_ray.learner.policy import _load, deepspeed_config  # the same loading as ours

        lm = _load(self.config)
        settings = deepspeed_config(self.config.learner, on_gpu=False)
        self.plain, *_ = deepspeed.initialize(model=lm, model_parameters=lm.parameters(), config=settings)

    def bare(self, batch: TrainingBatch) -> float:
        """Returns the seconds of a bare loop over this rank's micro-batches of the batch."""
        import torch
        from torch.nn.functional import cross_entropy

        layouts = [micro.layout for micro in self.updater.micro_batches(batch.samples)]
        torch.distributed.barrier()
        began = time.monotonic()
        self.plain.train()
        for index, layout in enumerate(layouts):
            self.plain.set_gradient_accumulation_boundary(index == len(layouts) - 1)
            logits = self.plain(input_ids=layout.input_ids, use_cache=False).logits
            loss = cross_entropy(logits[layout.rows, layout.columns].float(), layout.targets)
            self.plain.backward(loss)
        self.plain.step()
        return time.monotonic() - began


def make_batch(config: Config, seed: int) -> TrainingBatch:
    """Makes a batch of a step's size with random ids and lengths as in the toy task."""
    random = np.random.default_rng(seed)
    count = config.trainer.prompts_per_step * (config.rollout.samples_per_prompt + 1)
    samples = []
    for index in range(count):
        length = int(random.integers(10, config.rollout.max_completion_tokens))
        samples.append(
            TrainingSample(
                prompt_ids=random.integers(3, 20, 12).astype(np.int32),
                completion_ids=random.integers(3, 20, length).astype(np.int32),
                term="policy" if index % 5 else "sft",
                weight=1.0 / (count * length),
                advantage=float(random.normal()),
                rollout_logprobs=random.normal(-3, 0.1, length).astype(np.float32) if index % 5 else None,
            )
        )
    return TrainingBatch(0, samples)


def main() -> None:
    import ray

    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    config = compose_config(["experiment=demo", "algo.kl_conditioned_coef=0"])
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    folder = mkdtemp(prefix="bench_update_")
    options = {"num_cpus": 1, "runtime_env": {"env_vars": environment("cpu", 1) | {"PYTHONPATH": str(Path.cwd())}}}
    actor = ray.remote(MeasuredRank).options(**options)
    ranks = {f"learner-{r}": actor.remote(config, r, folder) for r in range(config.learner.ranks)}
    address = ray.get(ranks["learner-0"].address.remote(), timeout=300)
    ray.get([rank.start.remote(*address) for rank in ranks.values()], timeout=600)
    group = LearnerGroup(ranks, Waiter(folder), 600, 600)
    found = []
    for pair in range(pairs + 1):
        batch = make_batch(config, pair)
        ours = group.update(batch).seconds
        found.append((ours, max(group.all("bare", "the bare loop", ray.put(batch)))))
    ray.shutdown()
    ratios = sorted(ours / bare for ours, bare in found[1:])
    ours, bare = (statistics.median(values) for values in zip(*found[1:], strict=True))
    print(f"update {ours:.3f} s, bare {bare:.3f} s")
    print(f"ratio of pairs: min {ratios[0]:.3f}, median {statistics.median(ratios):.3f}, max {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
