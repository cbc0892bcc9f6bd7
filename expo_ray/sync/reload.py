"""What vLLM's layerwise reload leaves undone: a broken round is not forgotten, a tied head on CPU not packed."""

from typing import Any

import torch


def forget_half_loaded(model: torch.nn.Module) -> None:
    """Forget what a broken round had loaded: vLLM keeps it, and would count those tensors twice in the next round."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.load_numel = 0
        info.loaded_weights.clear()


def finish_reload(model: torch.nn.Module, model_config: Any) -> None:
    """Close the reload and mend the tied head."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    finalize_layerwise_reload(model, model_config)
    mend_tied_heads(model)


def mend_tied_heads(model: torch.nn.Module) -> int:
    """Give every tied lm_head on CPU the packed weights that its embedding got; returns how many.

    vLLM's CPU layers compute with a packed copy of the weight. A reload loads the embedding, packs it,
    and leaves the tied head (which no checkpoint tensor names) with the copy of the old weights.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        UnquantizedEmbeddingMethod,
        VocabParallelEmbedding,
    )

    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    embeddings = {
        layer.weight.data_ptr(): layer
        for layer in layers
        if not isinstance(layer, ParallelLMHead) and layer.weight.device.type == "cpu"
    }
    mended = 0
    for head in layers:
        embedding = embeddings.get(head.weight.data_ptr()) if isinstance(head, ParallelLMHead) else None
        if embedding is None:
            continue
        plain = type(head.quant_method) is type(embedding.quant_method) is UnquantizedEmbeddingMethod
        if plain and hasattr(embedding, "cpu_linear"):
            head.cpu_linear = embedding.cpu_linear  # the same weights, packed a moment ago
        else:
            quant_method: Any = head.quant_method
            quant_method.process_weights_after_loading(head)
        mended += 1
    return mended
