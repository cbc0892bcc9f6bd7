"""The module that DeepSpeed wraps: token ids in, log-probability and entropy of each scored token out."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from expo_ray.learner.layout import Layout


class TokenScorer(nn.Module):
    """A causal language model reduced to what a policy-gradient learner needs.

    The vocabulary-sized logits exist for `chunk_tokens` scored tokens at a time and are computed again in
    the backward pass, so memory does not grow with (tokens x vocabulary).
    """

    def __init__(self, lm: Any, chunk_tokens: int) -> None:
        super().__init__()
        self.lm = lm
        self.chunk_tokens = chunk_tokens

    def forward(
        self, layout: Layout, temperature: float, entropy_gradient: bool, most_scored: int
    ) -> tuple[Tensor, Tensor]:
        """Scores a micro-batch.

        Args:
            layout: the micro-batch, N scored tokens.
            temperature: the logits are divided by it, as the engine did when it sampled.
            entropy_gradient: whether the entropy must carry a gradient (entropy bonus).
            most_scored: the largest N of any rank in this round. Every rank makes as many chunks as that one needs:
                at ZeRO-3 each use of the output layer is a collective call.

        Returns:
            [N] log-probabilities and [N] entropies, both float32 nats.
        """
        decoder = self.lm.base_model
        hidden = decoder(input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=False)
        picked = hidden.last_hidden_state[layout.rows, layout.columns]
        count = max(1, -(-max(most_scored, len(picked)) // self.chunk_tokens))
        chunks = list(zip(picked.tensor_split(count), layout.targets.tensor_split(count), strict=True))
        again = len(chunks) > 1 and torch.is_grad_enabled()
        scored = [
            checkpoint(self._score, h, t, temperature, entropy_gradient, use_reentrant=False)
            if again
            else self._score(h, t, temperature, entropy_gradient)
            for h, t in chunks
        ]
        return torch.cat([s[0] for s in scored]), torch.cat([s[1] for s in scored])

    def _score(
        self, hidden: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        logits = self.lm.get_output_embeddings()(hidden).float() / temperature
        log_softmax = logits.log_softmax(-1)
        logprobs = log_softmax.gather(-1, targets[:, None])[:, 0]
        source = log_softmax if entropy_gradient else log_softmax.detach()
        return logprobs, -(source.exp() * source).sum(-1)
