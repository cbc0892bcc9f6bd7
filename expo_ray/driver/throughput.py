"""How well a step used the hardware: tokens per second of an engine and of a rank, operations per second, MFU."""

from collections.abc import Sequence

from expo_ray.config.schema import Config
from expo_ray.messages import TrainingSample
from expo_ray.preflight.model_folder import ModelShape

PEAKS = {"H200": 989, "H100": 989, "H800": 989, "B200": 2250, "A100": 312, "A800": 312, "L40S": 362, "L4": 121}
"""Dense bfloat16 peak in 1e12 operations per second, by a part of the card's name (NVIDIA's data sheets, SXM)."""


def model_operations(shape: ModelShape, samples: Sequence[TrainingSample]) -> float:
    """Operations of one forward and backward pass over the samples as MFU counts them, without recomputation and
    padding.

    Each token takes 6 N, plus 12 L H D T for attention over T earlier tokens, of which a causal model computes half
    (arXiv 2204.02311, appendix B). N does not count the input embeddings, which are only looked up.
    """
    weights = shape.parameters - (0 if shape.tied else shape.vocabulary * shape.hidden)
    attention = 12 * shape.layers * shape.heads * shape.head_size / 2
    lengths = [len(sample.prompt_ids) + len(sample.completion_ids) for sample in samples]
    return float(sum(length * (6 * weights + attention * length) for length in lengths))


def peak_of(config: Config, card: str | None) -> float | None:
    """The card's peak in operations per second: `cluster.gpu_tflops`, otherwise by its name; None without a card."""
    if config.profile.device != "cuda":
        return None
    if config.cluster.gpu_tflops:
        return config.cluster.gpu_tflops * 1e12
    return next((tera * 1e12 for name, tera in PEAKS.items() if card and name in card), None)


def throughput(
    config: Config,
    shape: ModelShape | None,
    samples: Sequence[TrainingSample],
    generated: float,
    seconds: dict[str, float],
    peak: float | None,
) -> dict[str, float]:
    """A step's rates; a rate that cannot be known is left out.

    Args:
        config: the run's configuration.
        shape: the policy's dimensions.
        samples: the step's training samples.
        generated: number of sampled tokens.
        seconds: phase -> its seconds.
        peak: operations per second of a card.
    """
    found = {}
    sampling = seconds.get("generate") or seconds.get("beside_generate")
    if sampling and generated:
        found["tokens/per_second_of_an_engine_card"] = (
            generated / sampling / (config.rollout.workers * config.rollout.tensor_parallel)
        )
    tokens = sum(len(sample.prompt_ids) + len(sample.completion_ids) for sample in samples)
    if not samples or not seconds.get("update"):
        return found
    found["tokens/per_second_of_a_rank"] = tokens / seconds["update"] / config.learner.ranks
    found["tokens/mean_sequence"] = tokens / len(samples)
    if shape is not None:
        passes = config.algo.updates_per_batch
        rate = passes * model_operations(shape, samples) / seconds["update"] / config.learner.ranks
        found["update/tera_operations_per_second"] = rate / 1e12
        if peak:
            found["update/mfu"] = rate / peak
    return found
