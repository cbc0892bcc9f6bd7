"""The rollout worker's end of a sync: a mixin for a class that holds a vLLM engine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from expo_ray.messages import FloatArray
from expo_ray.rollout.engine import EngineLoop
from expo_ray.runtime.spans import span
from expo_ray.sync.gloo.loading import forget_half_loaded, held_digests
from expo_ray.sync.proof import NO_VERSION, Digest, Probe


class WeightReceiver:
    """Weight sync methods for an actor whose engine is a `vllm.LLM` with a weight transfer config.

    A round may begin while completions are being sampled: they pause, and continue with the new weights.

    With trainer.async_steps each call may come in another thread of the actor, and a thread starts on a CUDA stream of
    its own. Whatever touches the weights is put on the engine's stream, so that it runs after the step before it and
    before the step after it.
    """

    engine: EngineLoop
    _round_open = False
    _round_broke = False

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None:
        """Connects to the learner, in place of an earlier connection, and abandons a round that broke."""
        self.engine.take_stream()
        if self._round_open:
            self._abandon_round()
        self.engine.llm.shutdown_weight_transfer_engine()
        self.engine.llm.init_weight_transfer_engine(request)

    def start_weight_update(self) -> None:
        """Opens a round. Until it is finished the engine has no weight version and does not sample."""
        self.engine.pause()  # `sync_probe` resumes
        self.engine.take_stream()
        # A step may still be computing when its call has returned, and NCCL's receiver loads on streams of its own.
        self.engine.finish_computing()
        if self._round_open:
            self._abandon_round()
        self.engine.llm.update_weight_version(str(NO_VERSION))
        self.engine.llm.start_weight_update()
        self._round_open = True
        if self._round_broke:
            self.engine.llm.apply_model(forget_half_loaded)
            self._round_broke = False

    def update_weights(self, request: dict[str, Any]) -> None:
        """Receives weights; blocks until they are loaded."""
        self.engine.take_stream()
        with span("receive weights"):
            self.engine.llm.update_weights(request)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Closes the round, drops the KV cache of the old weights, and sets the version if one is given.

        Keys and values of unfinished completions are recomputed with the new weights. Sampling continues after the
        probe (`sync_probe`).
        """
        self.engine.take_stream()
        self.engine.llm.finish_weight_update()
        self._round_open = False
        self.engine.llm.reset_prefix_cache(reset_running_requests=True)
        if weight_version is not None:
            self.engine.llm.update_weight_version(weight_version)

    def update_weight_version(self, new_version: str | int) -> None:
        """Sets the version of the weights that the engine has."""
        self.engine.llm.update_weight_version(str(new_version))

    def get_weight_version(self) -> int:
        """The engine's weight version; -1 during a sync and before the first one."""
        version = self.engine.llm.get_weight_version()
        return int(version) if version.removeprefix("-").isdigit() else NO_VERSION

    def shutdown_weight_transfer_engine(self) -> None:
        """Drops the connection to the learner; the engine can still sample."""
        self.engine.take_stream()
        if self._round_open:
            self._abandon_round()
        self.engine.llm.shutdown_weight_transfer_engine()

    def sync_digests(self) -> dict[str, Digest]:
        """Digests what the engine computes with, by the checkpoint's names (expo_ray.sync.proof).

        Raises:
            NotImplementedError: the model is not one whose parameters can be traced to those names.
        """
        self.engine.take_stream()
        with span("digest"):
            return dict(self.engine.llm.apply_model(held_digests)[0])

    def sync_probe(self, sequences: Sequence[Sequence[int]]) -> Probe:
        """Computes this engine's side of a sync proof, then lets sampling continue."""
        with span("probe"):
            found = Probe(self.get_weight_version(), engine_probe(self.engine, sequences))
        self.engine.resume()
        return found

    def _abandon_round(self) -> None:
        # vLLM closes an open round in two ways only: finishing it, which would load half a model, or a failed update.
        self._round_open, self._round_broke = False, True
        try:
            self.engine.llm.update_weights({"update_info": {"abandon": True}})
        except (RuntimeError, ValueError):
            return
        raise RuntimeError("the engine accepted an invalid weight update, so its broken round is still open")


def engine_probe(engine: EngineLoop, sequences: Sequence[Sequence[int]]) -> list[FloatArray]:
    """Computes the log-probability of each token given those before it: [T - 1] nats for a sequence of T.

    Prompt log-probabilities are plain log-softmax at temperature 1, whatever the engine's logprobs_mode (vLLM's
    _get_prompt_logprobs_dict), and such requests do not read cached prefixes. If nothing else is being sampled,
    torch's random generators are left as they were, so that a probe does not change later samples.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    prompts = [{"prompt_token_ids": [int(token) for token in ids]} for ids in sequences]
    devices = list(range(torch.cuda.device_count()))
    # With unfinished samples the generator must not be restored: it is theirs, and moves on meanwhile.
    with engine.turn(in_pause=True):
        alone = not engine.busy
    with torch.random.fork_rng(devices=devices, enabled=alone):
        with engine.turn(in_pause=True):
            begun = engine.submit(prompts, [params] * len(prompts), first=True)
        outputs = engine.results(begun, in_pause=True)
    return [
        np.array(
            [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)], np.float32
        )
        for output, ids in zip(outputs, sequences, strict=True)
    ]
