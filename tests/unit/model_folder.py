"""Writes folders that look like small models to everything but the engines: real headers, a real tokenizer."""

import json
import struct
from pathlib import Path
from typing import Any

from expo_ray.preflight.model_files import LINEAR, NORMS
from expo_ray.preflight.model_folder import model_shape

TOKENS = ["<pad>", "<eos>", "<unk>", *"0123456789+=?.: "]
SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
}
EMBEDDING = "model.embed_tokens.weight"


def write_model(folder: Path, **shape: Any) -> Path:
    """config.json (SHAPE with what is given), tokenizer, generation settings and all weights."""
    folder.mkdir(parents=True, exist_ok=True)
    found = SHAPE | shape
    (folder / "config.json").write_text(json.dumps(found))
    write_tokenizer(folder)
    write_safetensors(folder / "model.safetensors", tensors(folder))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 0}))
    return folder


def tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each tensor of a Llama or Qwen2 model with the folder's config.json, but for biases."""
    shape = model_shape(str(folder))
    found: dict[str, tuple[int, ...]] = {
        EMBEDDING: (shape.vocabulary, shape.hidden),
        "model.norm.weight": (shape.hidden,),
    }
    for block in (f"model.layers.{layer}." for layer in range(shape.layers)):
        found |= {f"{block}{name}.weight": (shape.hidden,) for name in NORMS}
        found |= {f"{block}{n}.weight": size[::-1] for n, size in zip(LINEAR, shape.linear_shapes, strict=True)}
    return found | ({} if shape.tied else {"lm_head.weight": (shape.vocabulary, shape.hidden)})


def write_tokenizer(folder: Path, added: list[str] | None = None, **settings: Any) -> None:
    """A character tokenizer; `added` tokens get the next ids."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.add_tokens([AddedToken(token, special=True) for token in added or []])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<eos>", "pad_token": {"content": "<pad>"}} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def write_safetensors(file: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "F32") -> None:
    """Zeros of four bytes under the given names."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
