"""The gradient of a batch does not depend on how it was cut: budgets, ranks, ZeRO stages, layout, order, offload.

And DeepSpeed's buffers are as large as the plan says; that, and offloading, about 2 minutes.
"""

import copy
import gc
import sys
from typing import Any

import numpy as np
import pytest

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.tokens import PolicyTokens
from expo_ray.config.resources import GIB
from expo_ray.config.schema import Config
from expo_ray.learner.rank import LearnerRank
from expo_ray.messages import Likeliest, TrainingBatch, TrainingSample
from expo_ray.preflight.estimate import CONTEXT_GIB, learner_memory, resting_gib
from expo_ray.preflight.model_folder import model_shape
from expo_ray.runtime.process import environment

VOCABULARY = 25
BOUND = 1e-5


class GradientRank(LearnerRank):
    """A learner rank that shows its gradient instead of taking the step."""

    def gradient(self, batch: TrainingBatch, budget: int, batching: str) -> dict[str, np.ndarray]:
        """Of this batch, cut into micro-batches of `budget` tokens. Another cut needs no new engine."""
        from deepspeed.utils import safe_get_full_grad

        self.updater.config.learner.tokens_per_micro_batch = budget
        self.updater.packed = batching == "packed"
        micro_batches = self.updater.micro_batches(batch.samples)
        self.updater._fix_references(micro_batches)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = 0.0
        self.updater.accumulate(micro_batches)
        # DeepSpeed shows stage 0's own gradients before it clips, the others' as well: clipping is in step().
        found = {name: safe_get_full_grad(p).float().numpy().copy() for name, p in self.lm.named_parameters()}
        self._norm = self.updater.step()
        return found

    def norm(self) -> float:
        """Of the last gradient, as the step reports it."""
        return self._norm

    def build(self) -> None:
        self.before = set(storages())
        super().build()

    def trained(self, batch: TrainingBatch, budget: int, folder: str | None = None) -> dict[str, np.ndarray]:
        """The weights after two updates as a run makes them, between which a checkpoint is saved and loaded."""
        from deepspeed.utils import safe_get_full_fp32_param

        self.updater.config.learner.tokens_per_micro_batch = budget
        self.update(batch)
        if folder is not None:
            assert self.save(folder, background=False) == [] and self.load(folder) == 1
        self.update(batch)
        self._take_card()
        return {name: safe_get_full_fp32_param(p).numpy().copy() for name, p in self.lm.named_parameters()}

    def held(self, batch: TrainingBatch) -> tuple[int, int]:
        """Bytes of this rank's tensors before the step of an update and after it, without what was there before."""
        within = []

        class Watched(type(self.engine)):
            def step(self, *arguments):
                within.append(storages())
                super().step(*arguments)

        self.engine.__class__ = Watched
        for _ in range(2):  # the first step makes the moments
            self.update(batch)
        resting = storages()
        return tuple(sum(size for at, size in found.items() if at not in self.before) for found in (within[1], resting))


def storages() -> dict[int, int]:
    """Address -> bytes of every tensor's memory."""
    import torch

    gc.collect()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def make_batch(seed: int = 0) -> TrainingBatch:
    """Fifteen samples of very different lengths: policy with an advantage or one for each token, and SFT. Six of both
    have a teacher as well."""
    random = np.random.default_rng(seed)
    samples = []
    for index in range(15):
        prompt = random.integers(3, VOCABULARY, random.integers(1, 9)).astype(np.int32)
        completion = random.integers(3, VOCABULARY, random.integers(1, 40)).astype(np.int32)
        policy = index % 3 < 2
        ids = np.argsort(random.random((len(completion), VOCABULARY)))[:, :3].astype(np.int32)
        teacher = Likeliest(ids, np.log(random.dirichlet(np.ones(4), len(completion))[:, :3]).astype(np.float32))
        samples.append(
            TrainingSample(
                prompt_ids=prompt,
                completion_ids=completion,
                term="policy" if policy else "sft",
                weight=1.0 / (15 * len(completion)),
                advantage=float(random.normal()) if policy else 0.0,
                token_advantages=random.normal(size=len(completion)).astype(np.float32) if index % 3 == 1 else None,
                teacher=teacher if index % 3 == 0 or index == 2 else None,
                rollout_logprobs=random.normal(-3, 0.1, len(completion)).astype(np.float32) if policy else None,
            )
        )
    return TrainingBatch(step=0, samples=samples, beta=0.04)


@pytest.fixture
def config(tiny_models) -> Config:
    config = Config()
    config.model.path = str(tiny_models["tied"])
    config.learner.max_grad_norm = 0.0
    config.algo.importance_correction = "none"
    return config


@pytest.fixture(scope="module")
def start(local_ray, tmp_path_factory):
    """Starts a group of ranks, of one size at a time.

    `start(config, ranks)` returns a function of a batch, the tokens of a micro-batch and the layout of its rows. Its
    `norms()` are those that the ranks report of the last gradient.
    """
    groups: dict[int, list] = {}
    local_ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def of(config: Config, ranks: int):
        config = copy.deepcopy(config)
        config.learner.ranks = ranks
        if ranks not in groups:
            for handles in groups.values():
                for handle in handles:
                    local_ray.kill(handle)
            groups.clear()
            options = {"num_cpus": 1, "runtime_env": {"env_vars": environment("cpu", 1)}}
            log = str(tmp_path_factory.mktemp(f"ranks{ranks}"))
            actor = local_ray.remote(GradientRank).options(**options)
            handles = [actor.remote(config, rank, log) for rank in range(ranks)]
            address = local_ray.get(handles[0].address.remote(), timeout=300)
            local_ray.get([handle.start.remote(*address) for handle in handles], timeout=500)
            groups[ranks] = handles
        else:
            local_ray.get([handle.rebuild.remote(config) for handle in groups[ranks]], timeout=500)

        def gradient(batch: TrainingBatch, budget: int = 4096, batching: str = "padded") -> dict[str, np.ndarray]:
            return call("gradient", batch, budget, batching)

        gradient.norms = lambda: local_ray.get([h.norm.remote() for h in groups[ranks]], timeout=300)

        def call(method: str, *arguments):
            refs = [getattr(handle, method).remote(*arguments) for handle in groups[ranks]]
            return local_ray.get(refs, timeout=300)[0]

        gradient.call = call
        return gradient

    return of


def token_signals(sample: TrainingSample, log_softmax: Any) -> dict[str, Any]:
    """The fields of PolicyTokens that hold a sample's advantages and its teacher; `log_softmax` is [T, V]."""
    import torch

    advantages, teacher = sample.token_advantages, sample.teacher
    if advantages is None:
        advantages = np.full(len(sample.completion_ids), sample.advantage, np.float32)
    return {
        "advantage": torch.tensor(advantages),
        "teacher_logprobs": None if teacher is None else torch.tensor(teacher.logprobs),
        "likely_logprobs": None
        if teacher is None
        else log_softmax.gather(-1, torch.tensor(teacher.ids.astype(np.int64))),
    }


def reference_gradient(config: Config, batch: TrainingBatch) -> dict[str, np.ndarray]:
    """The gradient without DeepSpeed, micro-batches or padding: one sample at a time, plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    algorithm = make_algorithm(config)
    for sample in batch.samples:
        ids = torch.tensor(np.concatenate([sample.prompt_ids, sample.completion_ids])[None].astype(np.int64))
        log_softmax = lm(ids).logits[0, len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
        logprobs = log_softmax.gather(-1, ids[0, len(sample.prompt_ids) :, None])[:, 0]
        tokens = PolicyTokens(
            logprobs=logprobs,
            entropy=-(log_softmax.exp() * log_softmax).sum(-1).detach(),
            old_logprobs=logprobs.detach(),
            rollout_logprobs=torch.full_like(logprobs.detach(), float("nan"))
            if sample.rollout_logprobs is None
            else torch.tensor(sample.rollout_logprobs),
            reference_logprobs=torch.zeros_like(logprobs.detach()),
            sample_of_token=torch.zeros(len(logprobs), dtype=torch.int64),
            term=[sample.term],
            weight=torch.tensor([sample.weight]),
            **token_signals(sample, log_softmax),
            unit=torch.tensor([-1]),
            reference_sum=torch.tensor([float("nan")]),
        )
        algorithm.loss(tokens).loss.backward()
    return {name: p.grad.numpy() for name, p in lm.named_parameters()}


def relative_difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    difference = sum(float(((a[name] - b[name]).astype(np.float64) ** 2).sum()) for name in a)
    norm = sum(float((b[name].astype(np.float64) ** 2).sum()) for name in b)
    assert norm > 0
    return (difference / norm) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "stages"), [(1, (0, 1, 2, 3)), (2, (0, 1, 2, 3)), (3, (1, 2, 3))], ids=["1 rank", "2 ranks", "3 ranks"]
)
def test_gradient_does_not_depend_on_the_cut(start, config, ranks, stages):
    batch = make_batch()
    config.learner.max_grad_norm = 1e-3  # the norm is reported before it clips
    expected = reference_gradient(config, batch)
    norm = float(np.sqrt(sum(np.sum(values.astype(np.float64) ** 2) for values in expected.values())))
    shuffled = TrainingBatch(0, [batch.samples[i] for i in np.random.default_rng(1).permutation(15)], 0.04)
    for stage in stages:
        config.learner.zero_stage = stage
        gradient = start(config, ranks)
        for budget, batching in [
            (1, "padded"),
            (100, "padded"),
            (100_000, "padded"),
            (100, "packed"),
            (10**6, "packed"),
        ]:
            where = f"ZeRO-{stage}, {ranks} ranks, budget {budget}, {batching}"
            assert relative_difference(gradient(batch, budget, batching), expected) < BOUND, where
            if budget > 1:  # each sample alone, which takes longest: only the rank that gets it would change
                assert relative_difference(gradient(shuffled, budget, batching), expected) < BOUND, f"{where}, shuffled"
        assert gradient.norms() == pytest.approx([norm] * ranks, rel=BOUND), f"ZeRO-{stage}"


@pytest.mark.slow
def test_ranks_that_need_different_numbers_of_logit_chunks_stay_in_step(start, config):
    """At ZeRO-3 each chunk gathers the output layer; a rank with more chunks than the others would wait for ever."""
    batch = make_batch()
    expected = reference_gradient(config, batch)
    config.learner.zero_stage = 3
    for chunk in (7, 50):
        config.learner.logits_chunk_tokens = chunk
        gradient = start(config, 2)
        for budget, batching in [(60, "padded"), (10**6, "packed")]:
            where = f"chunks of {chunk}, budget {budget}, {batching}"
            assert relative_difference(gradient(batch, budget, batching), expected) < BOUND, where


@pytest.mark.slow
def test_fewer_samples_than_ranks(start, config):
    config.learner.zero_stage = 2
    batch = make_batch()
    batch = TrainingBatch(0, batch.samples[:1], 0.04)
    gradient = start(config, 3)
    assert relative_difference(gradient(batch), reference_gradient(config, batch)) < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_in_bfloat16_micro_batches_are_added_up_in_float32(start, config, stage):
    """Against each sample's own gradient, computed alone and added up here: a sum in bfloat16 is off by percents."""
    config.learner.dtype, config.learner.zero_stage = "bfloat16", stage
    batch = make_batch()
    gradient = start(config, 1)
    together = gradient(batch, budget=1)
    alone = [gradient(TrainingBatch(0, [sample], 0.04), budget=1) for sample in batch.samples]
    summed = {name: sum(part[name].astype(np.float64) for part in alone) for name in together}
    assert relative_difference(together, summed) < BOUND


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it compiles for a minute of CPU time
def test_an_offloaded_optimizer_counts_every_micro_batch_and_trains_the_same(start, config, tmp_path):
    """DeepSpeed's CPU Adam, which is compiled on first use, against torch's; DeepSpeed once dropped micro-batches."""
    batch, ranks = make_batch(), 2
    expected = reference_gradient(config, batch)
    config.learner.learning_rate = 1e-3
    for stage in (1, 2, 3):
        config.learner.zero_stage, config.learner.offload_optimizer = stage, False
        weights = start(config, ranks).call("trained", batch, 100)
        config.learner.offload_optimizer = True
        gradient = start(config, ranks)
        for budget in (1, 100, 10**6):
            assert relative_difference(gradient(batch, budget), expected) < BOUND, f"ZeRO-{stage}, budget {budget}"
        trained = start(config, ranks).call("trained", batch, 100, str(tmp_path / f"stage{stage}"))
        assert relative_difference(trained, weights) < BOUND, stage


@pytest.mark.slow
def test_moving_the_optimizer_away_between_updates_changes_nothing(start, config, tmp_path):
    batch = make_batch()
    config.learner.learning_rate = 1e-3
    for stage in (1, 2):
        config.learner.zero_stage, config.learner.offload_between_updates = stage, False
        weights = start(config, 2).call("trained", batch, 100)
        config.learner.offload_between_updates = True
        moved = start(config, 2).call("trained", batch, 100, str(tmp_path / f"stage{stage}"))
        assert relative_difference(moved, weights) == 0, stage


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plan_knows_what_deepspeed_holds(start, config, dtype):
    """Within 3 % of its buffers at rest. Before the step, no more than is planned, and nearly as much."""
    ranks = config.learner.ranks = 2
    config.learner.dtype = dtype
    shape = model_shape(config.model.path)
    offloaded = [(1, True), (2, True), (3, True)] if dtype == "bfloat16" else []
    for stage, offload in [(0, False), (1, False), (2, False), (3, False), *offloaded]:
        config.learner.zero_stage, config.learner.offload_optimizer = stage, offload
        within, resting = start(config, ranks).call("held", make_batch())
        planned = copy.deepcopy(config)
        planned.profile.device = "cuda"
        memory = learner_memory(planned, shape, 80.0)
        kept, on_host = resting_gib(planned, memory) - CONTEXT_GIB, memory.host.get("optimizer", 0.0)
        # The planned sizes of what this model makes next to nothing of, or what is there on a card only.
        small = ("context", "activations", "logits", *(["reduce buckets"] if stage < 3 else []))
        together = sum(value for name, value in memory.gpu.items() if name not in small) + on_host
        where = f"{dtype}, ZeRO-{stage}, offload {offload}: {within}, {resting} bytes; planned {together}, {kept} GiB"
        if not offload:
            assert resting / GIB == pytest.approx(kept, rel=0.03), where
        assert 0.7 * together < within / GIB < 1.05 * together, where
