"""A model's dimensions, from config.json or known by hub id, and its generation settings; nothing is loaded."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

from expo_ray.config.errors import ConfigError
from expo_ray.config.model_path import (
    ADAPTER_CONFIG,
    adapter_base,
    is_whole,
    read_settings,
    weights_of,
)
from expo_ray.files import HUB_ID, model_file

GENERATE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Ends of the names of architectures that generate text."""
AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""What Gemma 2, Cohere, Granite and Falcon-H1 do to logits."""
TIED = ("gemma",)
"""Beginnings of model types whose output layer is the embeddings unless config.json says otherwise; others
count as untied, which is larger."""
MERGED = "merged"
"""The folder of a run for what an adapter makes of its base."""


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a decoder with grouped-query attention and a gated MLP (Llama, Qwen2 and similar)."""

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_size: int
    tied: bool
    qkv_bias: bool
    context: int
    """Largest number of positions; 0 if config.json does not say."""
    more_norms: int = 0
    """Weights of a block's norms besides the two that all have."""

    @property
    def linear_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of the seven linear layers of one block."""
        query, key_value = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = [(self.hidden, query), (self.hidden, key_value), (self.hidden, key_value), (query, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        block = sum(inputs * outputs for inputs, outputs in self.linear_shapes) + 2 * self.hidden + self.more_norms
        if self.qkv_bias:
            block += (self.heads + 2 * self.kv_heads) * self.head_size
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * block + embeddings + self.hidden

    def lora_parameters(self, rank: int) -> int:
        """Number of trained weights with a LoRA of this rank on every linear layer of the blocks."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.linear_shapes)

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """Bytes that one token takes in an engine's key-value cache."""
        return 2 * self.layers * self.kv_heads * self.head_size * bytes_per_value


def _qwen(hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, tied: bool = True) -> ModelShape:
    vocabulary = 151936 if tied else 152064
    return ModelShape(
        hidden, layers, intermediate, vocabulary, heads, kv_heads, hidden // heads, tied, qkv_bias=True, context=32768
    )


def _llama(hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, tied: bool = True) -> ModelShape:
    return ModelShape(
        hidden, layers, intermediate, 128256, heads, kv_heads, hidden // heads, tied, qkv_bias=False, context=131072
    )


def _qwen3(hidden: int, layers: int, intermediate: int, heads: int, tied: bool = True) -> ModelShape:
    return ModelShape(
        hidden, layers, intermediate, 151936, heads, 8, 128, tied, False, 40960, _more_norms("qwen3", hidden, 128)
    )


def _gemma3(hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, context: int) -> ModelShape:
    norms = _more_norms("gemma3_text", hidden, 256)
    return ModelShape(hidden, layers, intermediate, 262144, heads, kv_heads, 256, True, False, context, norms)


def _more_norms(kind: str, hidden: int, head_size: int) -> int:
    """Qwen3 has a norm of queries and one of keys; Gemma 3 has them, too, and one behind attention and MLP each."""
    return {"qwen3": 2 * head_size, "gemma3_text": 2 * head_size + 2 * hidden}.get(kind, 0)


# From the models' own config.json on the hub.
KNOWN = {
    "qwen2.5-0.5b": _qwen(896, 24, 4864, 14, 2),
    "qwen2.5-1.5b": _qwen(1536, 28, 8960, 12, 2),
    "qwen2.5-3b": _qwen(2048, 36, 11008, 16, 2),
    "qwen2.5-7b": _qwen(3584, 28, 18944, 28, 4, tied=False),
    "qwen3-0.6b": _qwen3(1024, 28, 3072, 16),
    "qwen3-1.7b": _qwen3(2048, 28, 6144, 16),
    "qwen3-4b": _qwen3(2560, 36, 9728, 32),
    "qwen3-8b": _qwen3(4096, 36, 12288, 32, tied=False),
    "gemma-3-1b": _gemma3(1152, 26, 6912, 4, 1, context=32768),
    "gemma-3-4b": _gemma3(2560, 34, 10240, 8, 4, context=131072),
    "llama-3.2-1b": _llama(2048, 16, 8192, 32, 8),
    "llama-3.2-3b": _llama(3072, 28, 8192, 24, 8),
    "llama-3.1-8b": _llama(4096, 32, 14336, 32, 8, tied=False),
}


TUNED = re.compile(r"-(?:instruct|it|pt|base)$")
"""What the ids of tuned and base models end in; their dimensions are the same."""


def model_shape(path: str) -> ModelShape | None:
    """Finds the dimensions of a local folder or a known hub id; None if only loading the model would show them.

    An adapter's are those of its base model.

    Raises:
        ConfigError: a folder whose config.json is missing or broken, or an adapter that cannot be a start.
    """
    if problem := adapter_problem(path):
        raise ConfigError(problem)
    path = weights_of(path)
    folder = Path(path)
    if not folder.is_dir():
        return KNOWN.get(TUNED.sub("", path.rsplit("/", 1)[-1].lower()))
    return _from_json(read_config(folder))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, of a multimodal model the part about its text.

    Raises:
        ConfigError: config.json is missing or broken.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.path={folder} has no config.json: give a Hugging Face model folder")
    config = read_settings(folder, "config.json")
    text = config.get("text_config")
    if not isinstance(text, dict) or not text:
        return config
    # Of several models in one, the whole says whether the output layer is tied.
    return {key: config[key] for key in ("tie_word_embeddings",) if key in config} | text


def _from_json(config: dict[str, Any]) -> ModelShape | None:
    needed = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "num_attention_heads")
    if any(not isinstance(config.get(key), int) or config[key] < 1 for key in needed):
        return None
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    return ModelShape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        intermediate=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=head_size,
        tied=bool(config.get("tie_word_embeddings", str(config.get("model_type")).startswith(TIED))),
        qkv_bias=bool(config.get("attention_bias", config.get("model_type") == "qwen2")),
        context=config.get("max_position_embeddings") or 0,
        more_norms=_more_norms(str(config.get("model_type")), config["hidden_size"], head_size),
    )


def architecture(path: str) -> str | None:
    """The class that config.json names, such as Qwen2ForCausalLM; None without a folder or a name."""
    folder = Path(weights_of(path))
    return next(iter(_architectures(read_settings(folder, "config.json"))), None) if folder.is_dir() else None


def _architectures(config: dict[str, Any]) -> list[str]:
    listed = config.get("architectures") or []
    return [str(name) for name in listed] if isinstance(listed, list) else [str(listed)]


def generation_ends(model_path: str) -> tuple[int, ...]:
    """The end-of-sequence ids of a model's generation_config.json; empty if it is absent or names none.

    Raises:
        ConfigError: the file is not JSON, or the ids are no whole numbers.
    """
    file = model_file(model_path, "generation_config.json", fetch=True)
    listed = None if file is None else read_settings(file.parent, file.name).get("eos_token_id")
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if wrong := [end for end in ids if isinstance(end, bool) or not isinstance(end, int)]:
        raise ConfigError(
            f"model.path={model_path}: generation_config.json has eos_token_id={wrong[0]!r:.40}, not a token id: "
            "write a whole number or a list of them"
        )
    return tuple(sorted(set(ids)))


NOT_MERGED = (
    "PROMPT_TUNING",
    "PREFIX_TUNING",
    "P_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "XLORA",
)
"""peft's kinds of adapters that are no change of weights, so that no model without them computes the same."""


def adapter_problem(path: str) -> str | None:
    """A sentence about an adapter that cannot be a start; None for a good one, and for whole models."""
    if (file := model_file(path, ADAPTER_CONFIG)) is None:
        return None
    folder = file.parent
    if is_whole(folder):
        return (
            f"model.path={path} holds adapter_config.json beside a whole model, and transformers would load the "
            "adapter's base instead of it: move the adapter into a folder of its own"
        )
    base, settings = adapter_base(path), read_settings(folder, ADAPTER_CONFIG)
    kind, task = str(settings.get("peft_type") or "LORA"), settings.get("task_type")
    start = f"model.path={path} is an adapter"
    if not base:
        return f"{start} that names no base model: write base_model_name_or_path into its adapter_config.json"
    if kind in NOT_MERGED:
        return f"{start} of {base} by {kind}, which cannot be merged into weights: use a LoRA, or a whole model"
    if task not in (None, "CAUSAL_LM"):
        return f"{start} of {base} for {task}, which does not generate text: use one for CAUSAL_LM"
    if not any((folder / f"adapter_model.{end}").is_file() for end in ("safetensors", "bin")):
        return f"{start} of {base} without weights: copy its adapter_model.safetensors into that folder"
    if not Path(base).is_dir() and not HUB_ID.fullmatch(base):
        return (
            f"{start} of {base}, which is neither a folder nor a hub id: correct base_model_name_or_path in its "
            "adapter_config.json"
        )
    if (Path(base) / "adapter_config.json").is_file():
        return f"{start} of {base}, which is an adapter as well: merge that one first, or train on it"
    return None


def config_problems(folder: Path, training: bool) -> Iterator[str]:
    """Yields a sentence for each thing in config.json that keeps such a model from being sampled or trained.

    Args:
        folder: a local model folder (model.path).
        training: whether learners load it; an engine alone can use quantised weights.
    """
    config = read_settings(folder, "config.json")
    names = _architectures(config)
    custom = "AutoModelForCausalLM" in (config.get("auto_map") or {})
    if config.get("is_encoder_decoder"):
        yield (
            f"model.path={folder}: config.json says is_encoder_decoder=true ({', '.join(names) or 'no architecture'}), "
            "and only decoders can be used here: give a model whose architecture ends in ForCausalLM"
        )
    elif names and not custom and not any(name.endswith(GENERATE) for name in names):
        yield (
            f"model.path={folder}: config.json says architectures={names[0]}, which does not generate text: give a "
            "model whose architecture ends in ForCausalLM"
        )
    elif "vision_config" in config and util.find_spec("torchvision") is None:
        yield (
            f"model.path={folder}: {names[0] if names else 'it'} has an encoder of images, for which vLLM imports "
            "torchvision even if prompts are text, and it is not installed here: give a model of text only"
        )
    elif training and names and not custom:
        yield from _untrainable(folder, config, names[0])
    quantised = config.get("quantization_config") or read_settings(folder, "quantize_config.json")
    if training and quantised:
        facts = quantised if isinstance(quantised, dict) else {}
        yield quantised_problem(folder, str(facts.get("quant_method") or f"{facts.get('bits', '?')} bits"))


def _untrainable(folder: Path, config: dict[str, Any], name: str) -> Iterator[str]:
    """Whether the learners' class of such a model is another one than the engines', or computes other logits."""
    kind, known = config.get("model_type"), causal_classes()
    if known and kind not in known:
        yield (
            f"model.path={folder}: config.json says model_type={kind}, of which the installed transformers has no "
            "causal language model (AutoModelForCausalLM): give another model, or one of text only"
        )
    elif "text_config" in config and known.get(str(kind), name) != name:
        yield (
            f"model.path={folder}: engines load {name}, and learners only its text ({known[str(kind)]}), whose tensors "
            "have other names: save the text model in a folder of its own"
        )
    settings = config | (config.get("text_config") or {})
    if changed := next((key for key in AFTER_HEAD if settings.get(key) not in (None, 1, 1.0)), None):
        yield (
            f"model.path={folder}: config.json says {changed}={settings[changed]}, which changes the output layer's "
            "logits, and learners do not compute that: give a model without it"
        )


@cache
def causal_classes() -> dict[str, str]:
    """model_type -> class of AutoModelForCausalLM, from transformers' source (importing it takes seconds); empty where
    it is kept elsewhere."""
    found = util.find_spec("transformers")
    file = Path(next(iter((found and found.submodule_search_locations) or ()), "")) / "models/auto/modeling_auto.py"
    for node in ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else ():
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES":
            return dict(ast.literal_eval(node.value.args[0]))  # type: ignore[attr-defined]
    return {}


def quantised_problem(folder: Path, how: str) -> str:
    """The sentence about weights that cannot be trained because they are quantised (how: the method)."""
    return (
        f"model.path={folder} is quantised ({how}), and quantised weights cannot be trained: give the model in "
        "bfloat16, float16 or float32 that it was made from"
    )
