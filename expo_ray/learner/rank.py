"""The learner actor: one DeepSpeed rank of the group that holds the policy."""

import gc
import os
import random
import socket
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from expo_ray.config.schema import Config
from expo_ray.messages import TrainingBatch
from expo_ray.runtime.process import ActorProcess, Place, begin, while_importing
from expo_ray.runtime.spans import span

TAG = "learner"
"""DeepSpeed's name for the folder with its files inside a checkpoint."""
ADAPTER = "adapter"
"""The folder, inside the exported policy, of the adapters alone."""


class LearnerRank(ActorProcess):
    """One rank of the group. Methods that use the process group are collective: LearnerGroup calls all ranks at once.

    Args:
        config: the run's configuration.
        rank: this rank, in [0, learner.ranks).
        log_folder: where this actor's log goes.
    """

    def __init__(self, config: Config, rank: int, log_folder: str) -> None:
        begin(f"learner-{rank}", log_folder)
        self.config, self.rank, self.ranks = config, rank, config.learner.ranks
        self.updates = 0
        self.engine: Any = None

    def address(self) -> tuple[str, int]:
        """Finds a host and a free port on this rank's machine, for the group's rendezvous."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return _host_address(), probe.getsockname()[1]

    def start(self, host: str, port: int) -> Place:
        """Joins the process group and loads the policy, and the reference policy if a term needs it.

        Returns:
            Where this process runs.
        """
        on_gpu = self.config.profile.device == "cuda"
        # LOCAL_RANK is 0 on every rank: Ray shows each actor its own card only.
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.ranks),
            LOCAL_RANK="0",
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        with while_importing():
            import torch

            from expo_ray.learner.policy import join_group

        if not on_gpu:
            torch.set_num_threads(self.config.profile.threads_per_actor)
        elif self.config.profile.deterministic:
            torch.use_deterministic_algorithms(True)
        join_group(on_gpu, timedelta(seconds=self.config.trainer.wait_s))
        self.build()
        return self.ready()

    def build(self) -> None:
        """Loads policy and reference policy, and makes the updater and the weight sender."""
        import torch

        from expo_ray.algorithms import make_algorithm
        from expo_ray.learner.policy import DTYPES, load_policy, load_reference
        from expo_ray.learner.saving import BackgroundWriter
        from expo_ray.learner.update import Updater
        from expo_ray.sync.sender import WeightSender
        from expo_ray.sync.source import ZeroWeightSource

        config = self.config
        random.seed(config.seed)
        np.random.seed(config.seed)
        torch.manual_seed(config.seed)
        algorithm = make_algorithm(config)
        self.engine, self.lm = load_policy(config)
        self.writer = BackgroundWriter.install(self.engine)
        load = partial(load_reference, config, self.engine, self.lm)
        reference = load() if algorithm.loads_reference else None
        self.updater = Updater(config, algorithm, self.engine, reference, self.rank, self.ranks, load)
        bucket = config.sync.bucket_mib << 20
        entries = None
        if config.model.lora.rank:
            from expo_ray.learner.lora import merged_entries

            entries = merged_entries(self.lm)
        dtype = DTYPES[config.rollout.dtype]
        self.source = ZeroWeightSource(self.lm, dtype=dtype, bucket_bytes=bucket, entries=entries)
        self.sender = WeightSender(self.source, rank=self.rank, bucket_bytes=bucket, timeout_s=config.sync.timeout_s)
        self._yield_card()

    def rebuild(self, config: Config) -> None:
        """Drops the policy and starts from the base model again, for another run in the same group."""
        if self.engine is not None:
            self.sender.close()
            self.engine.destroy()
            # DeepSpeed's hooks and the engine refer to each other: without collecting, two policies would be in memory.
            del self.engine, self.lm, self.updater, self.source, self.sender, self.writer
            gc.collect()
        self.config, self.updates = config, 0
        self.build()

    def update(self, batch: TrainingBatch) -> dict[str, tuple[float, float]]:
        """Updates the policy on a batch.

        Returns:
            This rank's metric sums and counts, to be merged over ranks (algorithms.tokens.merge_metrics).
        """
        from expo_ray.learner.update import rate_of_update

        rate = rate_of_update(self.config, self.updates)
        self._take_card()
        with span("update", step=batch.step):
            sums = self.updater.update(batch, rate) if batch.samples else {}
        # Also without samples, so that the number of updates remains that of steps, and the learning rate with it.
        self.updates += 1
        self._yield_card()
        return sums | {"update/learning_rate": (rate, 1.0)}

    def score(
        self,
        sequences: list[tuple[np.ndarray, np.ndarray]],
        temperature: float = 1.0,
        reference: bool = False,
        likeliest: int = 0,
    ) -> dict[int, Any]:
        """Log-probabilities of this rank's share of `(context ids, scored ids)` pairs (Updater.score)."""
        with span("score", sequences=len(sequences)):
            found = self.updater.score(sequences, temperature, reference, likeliest)
        self._yield_card()
        return found

    def connect(self, workers: dict[str, Any]) -> None:
        """Opens the weight transfer to these rollout actors, in place of an earlier one."""
        from expo_ray.sync.sender import resolve_backend

        self.sender.connect(workers, resolve_backend(self.config), self.config.rollout.tensor_parallel)
        if self.config.profile.device == "cuda" and not self.config.profile.deterministic:
            import torch

            # vLLM's weight transfer was imported, and vllm.platforms.cuda turns it off for the whole process.
            torch.backends.cuda.enable_cudnn_sdp(True)

    def send(self, weight_version: int) -> tuple[int, float]:
        """Sends the policy's weights to the connected workers.

        Returns:
            Bytes sent and seconds.
        """
        with span("send weights", version=weight_version):
            report = self.sender.send(weight_version)
        self._yield_card()
        return report.bytes_sent, report.seconds

    def digests(self) -> dict[str, tuple[int, int]]:
        """Digests what `send` sends (expo_ray.sync.proof), on rank 0; the others only take part in gathering."""
        from expo_ray.sync.proof import digests_of

        with span("digest"):
            found = digests_of(self.source if self.rank == 0 else (pair for pair in self.source if False))
        self._yield_card()
        return found

    def save(self, folder: str, background: bool) -> list[str]:
        """Writes this rank's shards of weights and optimizer, its random state and, on rank 0, the policy.

        Args:
            folder: the checkpoint's folder; on several nodes it must be shared.
            background: return once everything is copied to host memory, and write during training;
                `written` reports the end.

        Returns:
            What could not be written; empty if nothing failed, or not yet.
        """
        from expo_ray.learner.saving import export, random_state

        self.writer.background = background
        # No `latest` file: which checkpoint is the newest is decided by its manifest, which is written last.
        self.engine.save_checkpoint(folder, tag=TAG, client_state={"updates": self.updates}, save_latest=False)
        self.writer.save(random_state(), str(Path(folder) / TAG / f"random_state_{self.rank}.pt"))
        policy, writes = Path(folder) / "policy", self.rank == 0
        exports = [export(self.lm, self.source, self.config, policy, writes)]
        if self.config.model.lora.rank:
            from expo_ray.learner.lora import export_adapter

            exports.append(export_adapter(self.lm, self.config.model.path, policy / ADAPTER, writes))
        for write in filter(None, exports):
            self.writer.submit(write)
        return [] if background else self.written(wait=True) or []

    def written(self, wait: bool = False) -> list[str] | None:
        """Reports what `save` could not write; None while it is still writing (never with `wait`)."""
        return self.writer.problems(wait)

    def load(self, folder: str) -> int:
        """Loads what `save` wrote.

        Returns:
            Number of updates that the policy has had.
        """
        import torch

        from expo_ray.learner.saving import set_random_state

        self._take_card()
        path, state = self.engine.load_checkpoint(folder, tag=TAG)
        if path is None:
            raise FileNotFoundError(f"{folder} has no learner state that DeepSpeed can load")
        self.updates = int(state["updates"])
        set_random_state(torch.load(Path(folder) / TAG / f"random_state_{self.rank}.pt", weights_only=False))
        self._yield_card()
        return self.updates

    def _take_card(self) -> None:
        """Brings back what `_yield_card` moved away; the engine of the card sleeps."""
        if self.config.learner.offload_between_updates:
            from expo_ray.learner.policy import move_optimizer

            with span("optimizer to the card"):
                move_optimizer(self.engine, to_host=False)

    def _yield_card(self) -> None:
        """Frees what an engine on the same card needs when it wakes: what torch caches, and the optimizer if asked."""
        if self.config.learner.offload_between_updates:
            from expo_ray.learner.policy import move_optimizer

            with span("optimizer to the host"):
                move_optimizer(self.engine, to_host=True)
        if self.config.cluster.placement == "colocated":
            import torch

            torch.cuda.empty_cache()


def _host_address() -> str:
    import ray

    return ray.util.get_node_ip_address()
