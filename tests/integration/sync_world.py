"""Actors of the weight sync tests: a rollout engine and a learner rank, with tiny random models."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import ray

from expo_ray.rollout.engine import EngineLoop
from expo_ray.rollout.receiver import WeightReceiver

VOCABULARY = 131
ACTOR_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])]),
}


def save_tiny_qwen2(folder: Path, tied: bool, seed: int = 0) -> str:
    """A random Qwen2 model: 2 layers, width 64, heads of 32; weights large enough that logits differ clearly."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        eos_token_id=0,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def probes(seed: int = 0) -> list[list[int]]:
    """Three sequences of different lengths over the tiny vocabulary."""
    draw = np.random.default_rng(seed)
    return [draw.integers(1, VOCABULARY, size=length).tolist() for length in (24, 9, 33)]


def log_probabilities(model: Any, sequences: list[list[int]]) -> list[np.ndarray]:
    """Of each token given those before it, with transformers and torch alone."""
    import torch

    found = []
    with torch.no_grad():
        for ids in sequences:
            row = torch.tensor([ids])
            scores = torch.log_softmax(model(row).logits[0, :-1].float(), dim=-1)
            found.append(scores.gather(1, row[0, 1:, None])[:, 0].numpy())
    return found


def use_plain_kernels() -> None:
    """Before an engine is built: vLLM's CPU layers multiply with the parameter itself."""
    from torch.nn.functional import linear
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    for method in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod):
        method.process_weights_after_loading = lambda self, layer: setattr(layer, "cpu_linear", linear)


def compare_live_with_reload(worker: Any, model_path: str) -> dict[str, Any]:
    """Runs in the engine's worker."""
    from types import SimpleNamespace
    from unittest.mock import patch

    import torch
    from safetensors.torch import load_file
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    from expo_ray.sync.gloo.loading import LiveParameters

    class Receiver(LiveParameters):
        """vLLM's IPC receiver, as far as it matters, with the sender's memory on the CPU."""

        packed, device = True, torch.device("cpu", 0)
        _packed_importer = SimpleNamespace(rebuild=lambda handle: memory, close=lambda: None)

    model, tensors = worker.model_runner.get_model(), load_file(Path(model_path) / "model.safetensors")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    at = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    receiver = Receiver()
    receiver.model = model
    with set_current_vllm_config(worker.vllm_config):
        receiver.start_weight_update()
        names = sorted(tensors)
        halves = (names[::2], names[1::2])
        for part in halves:  # two requests, which share one piece of memory
            memory = torch.cat([tensors[name].view(-1).view(torch.uint8) for name in part])
            info = SimpleNamespace(
                names=part,
                dtype_names=["float32"] * len(part),
                shapes=[list(tensors[name].shape) for name in part],
                tensor_sizes=[tensors[name].nbytes for name in part],
                ipc_handles={"card": [None] * 8},
            )
            with patch.object(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="card")):
                receiver.receive_weights(info)
            memory.zero_()  # the sender uses it again
        receiver.finish_weight_update()
        live = {name: parameter.clone() for name, parameter in model.named_parameters()}
        moved = [name for name, parameter in model.named_parameters() if parameter.data_ptr() != at[name]]
        receiver.start_weight_update()
        try:
            receiver.finish_weight_update()
            incomplete = ""
        except RuntimeError as error:
            incomplete = str(error)
        initialize_layerwise_reload(model)
        model.load_weights(iter(tensors.items()))
        finalize_layerwise_reload(model, worker.model_config)
    reloaded = dict(model.named_parameters())
    return {
        "parameters": len(live),
        "differ": [name for name in live if not torch.equal(live[name], reloaded[name])],
        "moved": moved,
        "kept": [name for name in live if torch.equal(live[name], before[name])],
        "incomplete": incomplete,
    }


@ray.remote(num_cpus=0.4, runtime_env={"env_vars": ACTOR_ENV})
class Engine(WeightReceiver):
    """A rollout worker with nothing but an engine."""

    def __init__(self, model_path: str, packs: bool = True) -> None:
        """`packs`: vLLM's CPU kernels pack weights; without it parameters are used as they are loaded, as on a GPU."""
        if not packs:
            use_plain_kernels()
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        from expo_ray.sync.gloo.engine import register

        register()
        llm = LLM(
            model_path,
            dtype="float32",
            enforce_eager=True,
            distributed_executor_backend="uni",
            skip_tokenizer_init=True,
            max_model_len=128,
            max_num_seqs=8,
            logprobs_mode="processed_logprobs",
            weight_transfer_config=WeightTransferConfig(backend="gloo"),
        )
        self.engine = EngineLoop(llm, wait_s=60.0)

    def pid(self) -> int:
        return os.getpid()

    def load_through(self, reload: bool, mended: bool = True) -> None:
        """Load as models that are not plain are loaded: by vLLM's reload, with or without mending tied heads."""
        from expo_ray.sync.gloo import loading as direct
        from expo_ray.sync.gloo import loading as module

        if not hasattr(self, "usual"):
            self.usual = (direct.PLAIN_MODELS, module.repair_tied_heads)
        direct.PLAIN_MODELS = frozenset() if reload else self.usual[0]
        module.repair_tied_heads = self.usual[1] if mended else lambda model: 0

    def flip_bit(self, name: str) -> None:
        """Changes the lowest bit of one value of a tensor, in what this engine computes with."""
        import torch

        from expo_ray.sync.gloo.loading import direct_loader

        def change(model: Any) -> None:
            loader = direct_loader(model)
            tensors = [(found, tensor.clone()) for found, tensor in loader.held() if found in loader.names]
            dict(tensors)[name].view(-1)[3:4].view(torch.int32).bitwise_xor_(1)
            loader.load(tensors)
            loader.finish()

        self.engine.llm.apply_model(change)

    def live_and_reloaded(self, model_path: str) -> dict[str, Any]:
        """Loads other weights straight into the parameters, as from a sender's memory, and then by vLLM's reload.

        Returns names of the parameters that differ, that moved, and that the first way left as they were; the second
        model's weights are those of `model_path`.
        """
        return self.engine.llm.collective_rpc(compare_live_with_reload, args=(model_path,))[0]

    def loaded_directly(self) -> bool:
        """How the last round was loaded."""
        return self.engine.llm.collective_rpc(lambda worker: worker.weight_transfer_engine._direct is not None)[0]

    def probe_and_sample(self, sequences: list[list[int]], probe_between: bool) -> tuple[list[int], list[int]]:
        """Two samples from one seed, with or without a probe between them."""
        import torch
        from vllm import SamplingParams

        params = SamplingParams(temperature=1.0, max_tokens=12, detokenize=False, ignore_eos=True)
        torch.manual_seed(5)
        drawn = []
        for _ in range(2):
            output = self.engine.llm.generate([{"prompt_token_ids": sequences[0]}], params, use_tqdm=False)[0]
            drawn.append(list(output.outputs[0].token_ids))
            if probe_between:
                self.sync_probe(sequences)
        return drawn[0], drawn[1]


@ray.remote(num_cpus=0.4, runtime_env={"env_vars": ACTOR_ENV})
class Learner:
    """One DeepSpeed rank. One process serves many tests, because its imports take longer than they do."""

    def __init__(self, rank: int, ranks: int, rendezvous: str) -> None:
        import deepspeed
        import torch

        from expo_ray.learner.policy import skip_inference_op

        skip_inference_op()
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
        deepspeed.init_distributed(
            dist_backend="gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=ranks,
            auto_mpi_discovery=False,
        )
        self.rank = rank

    def load(self, model_path: str, stage: int) -> None:
        """A fresh engine at this ZeRO stage; at stage 3 every parameter is partitioned."""
        import deepspeed
        import torch
        from transformers import AutoModelForCausalLM

        # DeepSpeed would else keep a small model whole after a forward, which hides what a sync gathers.
        whole = {
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
        }
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "optimizer": {"type": "AdamW", "params": {"lr": 0.02, "torch_adam": True}},
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": stage, **whole},
        }
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        self.engine, *_ = deepspeed.initialize(model=model, config=config)

    def connect(self, workers: dict[str, Any], timeout_s: float = 120.0, bucket_bytes: int = 40_000) -> None:
        from expo_ray.sync.sender import WeightSender
        from expo_ray.sync.source import ZeroWeightSource

        self.source = ZeroWeightSource(self.engine.module, bucket_bytes=bucket_bytes)
        self.sender = WeightSender(self.source, rank=self.rank, bucket_bytes=bucket_bytes, timeout_s=timeout_s)
        self.sender.connect(workers, backend="gloo")

    def train(self, seed: int) -> None:
        """One real update towards random tokens."""
        import torch

        ids = torch.randint(1, VOCABULARY, (2, 32), generator=torch.Generator().manual_seed(seed))
        loss = self.engine(input_ids=ids, labels=ids).loss
        self.engine.backward(loss)
        self.engine.step()

    def digests(self) -> dict[str, tuple[int, int]]:
        from expo_ray.sync.proof import digests_of

        return digests_of(self.source)

    def send(self, version: int) -> Any:
        return self.sender.send(version)

    def has_imported(self, module: str) -> bool:
        import sys

        return module in sys.modules

    def rename(self, name: str, to: str) -> None:
        """From now on the source hands out one tensor under a name that the engine does not have."""
        from dataclasses import replace

        self.source._entries = [replace(e, name=to) if e.name == name else e for e in self.source._entries]

    def corrupt(self, name: str, amount: float) -> None:
        """From now on the source hands out one tensor with one row changed."""
        iterate = type(self.source).__iter__

        class Corrupted(type(self.source)):  # type: ignore[misc]
            def __iter__(self):  # type: ignore[no-untyped-def]
                for found, tensor in iterate(self):
                    tensor = tensor.clone()
                    if found == name:
                        tensor[0] += amount
                    yield found, tensor

        self.source.__class__ = Corrupted

    def probe(self, sequences: list[list[int]], version: int) -> Any:
        from expo_ray.sync.proof import Probe

        return Probe(version, log_probabilities(self.engine.module, sequences))

    def gathered_at_once(self) -> tuple[int, int]:
        """Bytes of whole parameters present at the worst moment of an iteration, and bytes of the model."""
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        parameters = list(self.engine.module.parameters())
        worst = 0
        original = type(self.source)._full_tensor

        def counting(source: Any, entry: Any, copy: bool) -> Any:
            nonlocal worst
            present = [p for p in parameters if p.ds_status == ZeroParamStatus.AVAILABLE]
            worst = max(worst, sum(p.numel() * p.element_size() for p in present))
            return original(source, entry, copy)

        type(self.source)._full_tensor = counting
        for _ in self.source:
            pass
        type(self.source)._full_tensor = original
        return worst, sum(p.ds_numel * p.element_size() for p in parameters)
