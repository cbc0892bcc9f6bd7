"""Operations of an update, compared with torch's own count, and the rates computed from them; the progress line."""

import numpy as np
import pytest

from expo_ray.config.schema import Config
from expo_ray.driver.throughput import model_operations, peak_of, throughput
from expo_ray.driver.trackers import ProgressTracker
from expo_ray.messages import TrainingSample
from expo_ray.preflight.model_folder import ModelShape

SHAPE = ModelShape(64, 3, 160, 96, 4, 2, 16, tied=True, qkv_bias=True, context=512)


def sample(prompt: int, completion: int) -> TrainingSample:
    return TrainingSample(np.zeros(prompt, np.int32), np.zeros(completion, np.int32), "sft", 1.0)


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_torch_counts(tied):
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = ModelShape(64, 3, 160, 96, 4, 2, 16, tied=tied, qkv_bias=True, context=512)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=64,
            num_hidden_layers=3,
            intermediate_size=160,
            vocab_size=96,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            attn_implementation="eager",
        )
    )
    lengths = [(10, 30), (5, 123)]
    counted = 0
    for prompt, completion in lengths:
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, prompt + completion, dtype=torch.long)).logits.sum().backward()
        counted += counter.get_total_flops()
    found = model_operations(shape, [sample(*length) for length in lengths])
    # Eager attention computes the half above the diagonal as well; torch counts products of matrices alone.
    half = sum(6 * 3 * 64 * (p + c) ** 2 for p, c in lengths)
    assert found + half == pytest.approx(counted, rel=0.02)


def test_rates_of_a_step():
    config = Config()
    config.rollout.workers, config.rollout.tensor_parallel, config.learner.ranks = 2, 3, 4
    samples = [sample(10, 30), sample(5, 15)]
    seconds = {"generate": 2.0, "update": 5.0}
    found = throughput(config, SHAPE, samples, generated=600.0, seconds=seconds, peak=1e9)
    rate = model_operations(SHAPE, samples) / 5 / 4
    assert found == pytest.approx(
        {
            "tokens/per_second_of_an_engine_card": 600 / 2 / 6,
            "tokens/per_second_of_a_rank": 60 / 5 / 4,
            "tokens/mean_sequence": 30,
            "update/tera_operations_per_second": rate / 1e12,
            "update/mfu": rate / 1e9,
        }
    )
    config.algo.updates_per_batch = 3
    again = throughput(config, SHAPE, samples, generated=600.0, seconds={"update": 5.0}, peak=1e9)
    assert again["update/mfu"] == pytest.approx(3 * rate / 1e9)
    assert "tokens/per_second_of_an_engine_card" not in again
    assert throughput(config, None, [], generated=0.0, seconds={}, peak=None) == {}


def test_the_peak_comes_from_the_cluster_or_from_the_cards_name():
    config = Config()
    assert peak_of(config, "NVIDIA H100 80GB HBM3") is None
    config.profile.device = "cuda"
    assert peak_of(config, "NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of(config, "some card") is None and peak_of(config, None) is None
    config.cluster.gpu_tflops = 312
    assert peak_of(config, "some card") == 312e12


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"reward/mean": 0.25, "pass_rate/level_5": 0.5}, "reward 0.25  L5 50%  7 tok/s"),
        ({"loss/total": 17.53}, "loss 17.5  7 tok/s"),
        ({}, "no update  7 tok/s"),
    ],
)
def test_the_progress_line_shows_no_reward_where_nothing_has_one(values, shown, capsys):
    progress = ProgressTracker("run", 0, 1)
    progress.scalars(0, values | {"time/step": 1.0, "tokens/per_second": 7.0})
    progress.close()
    assert capsys.readouterr().err.strip() == f"run step 1/1  {shown}"
