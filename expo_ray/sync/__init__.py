"""Weight sync: sends the learners' weights to the rollout engines and proves that they arrived (docs/sync.md).

Every error is one sentence that names the worker and the phase.
"""

from typing import Any

PLAIN_MODELS = frozenset({"Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"})
"""Architectures whose `load_weights` in vLLM does nothing but stack the parts that `packed_modules_mapping` names, so
that every parameter of an engine can be traced to tensors of the checkpoint."""


class SyncError(RuntimeError):
    """A rollout worker, or the transfer to it, failed.

    Args:
        sentence: what happened.
        workers: names of the rollout workers at fault; empty if none of them is.
    """

    def __init__(self, sentence: str, workers: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.workers = workers

    # Pickle would call the class with the sentence only, and a learner's error travels to the driver.
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.workers)


class SyncTimeout(SyncError):
    """A rollout worker, or a learner rank, did not answer within the bound."""


class SyncProofFailed(SyncError):
    """An engine does not hold the learners' weights after a sync that reported success."""
