"""Throughput of a whole sync against a plain Gloo broadcast of the same tensors, in pairs.

    python -m bench.sync [--model PATH] [--rounds 5] [--bucket-mib 64]

Two processes, as in a run: a sending learner and a rollout engine. Each round times, one after the other,
(a) `broadcast` of every tensor, one by one, into allocated memory, and (b) a full sync: packing, transfer, loading
through vLLM's layerwise reload with its repacking for oneDNN, repairing tied heads, version.
Without --model: random weights in the shape of SmolLM2-135M (Llama, 30 layers, width 576, tied).
"""

import argparse
import os
import statistics
import tempfile
import time
from datetime import timedelta
from typing import Any

THREAD_ENV = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
}
WAIT_S = 600.0


def save_model(folder: str) -> str:
    """Saves a model of SmolLM2-135M's shape with random float32 weights, and returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class PlainBroadcast:
    """One end of a Gloo broadcast of a list of tensors."""

    def __init__(self, port: int, rank: int, shapes: list[tuple[tuple[int, ...], Any]]) -> None:
        import torch
        import torch.distributed as dist

        timeout = timedelta(seconds=WAIT_S)
        store = dist.TCPStore("127.0.0.1", port, 2, rank == 0, timeout=timeout)
        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._timeout = timeout
        options._devices = [gloo.create_device(hostname="127.0.0.1")]
        self.group = gloo(store, rank, 2, options)
        self.tensors = [torch.full(shape, float(rank), dtype=dtype) for shape, dtype in shapes]

    def run(self) -> float:
        """Returns the wall-clock seconds between two barriers."""
        self.group.barrier().wait()
        began = time.perf_counter()
        for tensor in self.tensors:
            self.group.broadcast(tensor, 0).wait()
        self.group.barrier().wait()
        return time.perf_counter() - began


def actors() -> tuple[Any, Any]:
    """Returns the two actor classes."""
    import ray

    from expo_ray.rollout.engine import EngineLoop
    from expo_ray.rollout.receiver import WeightReceiver

    @ray.remote(num_cpus=0)
    class Engine(WeightReceiver):
        def __init__(self, path: str) -> None:
            from vllm import LLM
            from vllm.config import WeightTransferConfig

            from expo_ray.sync.gloo.engine import register

            register()
            llm = LLM(
                path,
                dtype="float32",
                enforce_eager=True,
                distributed_executor_backend="uni",
                skip_tokenizer_init=True,
                max_model_len=256,
                max_num_seqs=8,
                weight_transfer_config=WeightTransferConfig(backend="gloo"),
            )
            self.engine = EngineLoop(llm, wait_s=600.0)

        def join(self, port: int, shapes: list[Any]) -> None:
            self.plain = PlainBroadcast(port, 1, shapes)

        def broadcast(self) -> float:
            return self.plain.run()

        def cpu(self) -> float:
            return time.process_time()

        def phases(self) -> Any:
            found = self.engine.llm.collective_rpc(lambda worker: worker.weight_transfer_engine.phases)
            return found[0]

    @ray.remote(num_cpus=0)
    class Learner:
        def __init__(self, path: str, bucket_bytes: int) -> None:
            import torch
            from transformers import AutoModelForCausalLM

            from expo_ray.sync.sender import WeightSender
            from expo_ray.sync.source import ZeroWeightSource

            torch.set_num_threads(1)
            self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            self.source = ZeroWeightSource(self.model, bucket_bytes=bucket_bytes)
            self.sender = WeightSender(self.source, rank=0, bucket_bytes=bucket_bytes, timeout_s=WAIT_S)

        def shapes(self) -> list[Any]:
            return [(meta.shape, meta.dtype) for meta in self.source.metadata()]

        def connect(self, engine: Any) -> None:
            self.sender.connect({"engine": engine}, backend="gloo")

        def join(self, port: int) -> None:
            self.plain = PlainBroadcast(port, 0, self.shapes())

        def broadcast(self) -> float:
            return self.plain.run()

        def cpu(self) -> float:
            return time.process_time()

        def send(self, version: int) -> Any:
            return self.sender.send(version)

        def probe(self, sequences: list[list[int]], version: int) -> Any:
            import torch

            from expo_ray.sync.proof import Probe

            found = []
            for ids in sequences:
                with torch.no_grad():
                    scores = torch.log_softmax(self.model(torch.tensor([ids])).logits[0, :-1], dim=-1)
                found.append(scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy())
            return Probe(version, found)

    return Engine, Learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Hugging Face folder; default: random weights of SmolLM2-135M's shape")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bucket-mib", type=int, default=64)
    arguments = parser.parse_args()
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": THREAD_ENV})
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments.model or save_model(folder), arguments.rounds, arguments.bucket_mib << 20)
    finally:
        ray.shutdown()


def measure(path: str, rounds: int, bucket_bytes: int) -> None:
    """Prints a line per round, then the median ratio."""
    import ray

    from expo_ray.sync.proof import prove_sync

    engine_class, learner_class = actors()
    engine, learner = engine_class.remote(path), learner_class.remote(path, bucket_bytes)
    shapes = ray.get(learner.shapes.remote(), timeout=WAIT_S)
    ray.get(learner.connect.remote(engine), timeout=WAIT_S)
    port = 29500 + os.getpid() % 1000
    ray.get([learner.join.remote(port), engine.join.remote(port, shapes)], timeout=WAIT_S)
    ray.get(learner.send.remote(0), timeout=WAIT_S)  # the first sync also grows the engine's heap
    ratios = []
    for version in range(1, rounds + 1):
        cpu = [_cpu(engine, learner)]
        plain = max(ray.get([learner.broadcast.remote(), engine.broadcast.remote()], timeout=WAIT_S))
        cpu.append(_cpu(engine, learner))
        report = ray.get(learner.send.remote(version), timeout=WAIT_S)
        cpu.append(_cpu(engine, learner))
        phases = ray.get(engine.phases.remote(), timeout=WAIT_S)
        ratios.append(plain / report.seconds)
        print(
            f"round {version}: broadcast {plain:.3f} s {report.bytes_sent / plain / 1e9:.2f} GB/s "
            f"(CPU {cpu[1] - cpu[0]:.2f} s) | sync {report.seconds:.3f} s "
            f"{report.bytes_sent / report.seconds / 1e9:.2f} GB/s (CPU {cpu[2] - cpu[1]:.2f} s; "
            f"start {report.phases['start']:.3f}, update {report.phases['update']:.3f} of which waiting "
            f"{phases.wait:.3f} and loading {phases.load:.3f}, finish {report.phases['finish']:.3f}) | "
            f"ratio {ratios[-1]:.2f} | load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    sequences = [list(range(3, 40)), list(range(900, 880, -1))]
    found = ray.get(engine.sync_probe.remote(sequences), timeout=WAIT_S)
    ours = ray.get(learner.probe.remote(sequences, rounds), timeout=WAIT_S)
    proof = prove_sync(
        sequences,
        ours,
        {"engine": found},
        weight_version=rounds,
        tolerance=1e-3,
        mean_tolerance=1e-3,
        bytes_sent=report.bytes_sent,
        seconds=report.seconds,
    )
    print(f"proved: largest difference {proof.max_difference:.2g} nats")
    quarter, half, three = statistics.quantiles(ratios, n=4)
    print(f"median ratio {half:.2f} (quartiles {quarter:.2f} to {three:.2f}, {len(ratios)} rounds), bar 0.50")


def _cpu(*actors: Any) -> float:
    """Returns the CPU seconds of the actors' processes so far, which other load on the machine hardly affects."""
    import ray

    return sum(ray.get([actor.cpu.remote() for actor in actors], timeout=WAIT_S))


if __name__ == "__main__":
    main()
