"""Checks that a model folder's weights and tokenizer are whole and belong together, by the files' headers.

A file is 8 bytes N (little endian), N bytes of JSON, then the tensors, whose offsets the JSON names
(huggingface.co/docs/safetensors, "Format").
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from expo_ray.config.errors import ConfigError
from expo_ray.config.model_path import WHOLE_MODEL, is_whole, read_settings
from expo_ray.preflight.model_folder import ModelShape, generation_ends, quantised_problem
from expo_ray.prompts.templates import settings_problem

SPECIAL = ("bos_token", "eos_token", "pad_token")
TEMPLATES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True)
class TokenizerFacts:
    """What the checks need to know of a tokenizer.json."""

    size: int
    """Number of tokens, added ones included."""
    largest_id: int
    largest_token: str
    special: dict[str, int | None]
    """Role of each special token that tokenizer_config.json names -> its id; None: not in the vocabulary."""
    names: dict[str, str]
    """The special tokens' texts."""


def tokenizer_problems(folder: Path, vocabulary: int | None) -> Iterator[str]:
    """Yields a sentence for each thing in which tokenizer and model disagree.

    Args:
        folder: a local model folder (model.path).
        vocabulary: config.json's vocab_size; None: not known, ids are not compared.
    """
    try:
        facts = _facts(folder)
        ends = generation_ends(str(folder))
    except ConfigError as error:
        yield str(error)
        return
    if facts is not None:
        yield from _vocabulary(folder, facts, vocabulary)
    known = None if facts is None else facts.largest_id + 1
    bound = min((size for size in (vocabulary, known) if size is not None), default=None)
    if bound is not None and (beyond := [end for end in ends if not 0 <= end < bound]):
        yield (
            f"model.path={folder}: generation_config.json ends completions with eos_token_id={beyond[0]}, but the "
            f"tokens are 0 to {bound - 1}: copy the generation_config.json that belongs to the model"
        )


def has_template(folder: Path) -> bool:
    """Whether the folder's tokenizer has a chat template.

    Raises:
        ConfigError: tokenizer_config.json is not JSON.
    """
    more = folder / "additional_chat_templates"
    files = any((folder / name).is_file() for name in TEMPLATES) or (more.is_dir() and any(more.glob("*.jinja")))
    return files or bool(read_settings(folder, "tokenizer_config.json").get("chat_template"))


def template_problems(folder: Path, values: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence if a folder's chat template does not read one of model.chat_template_kwargs."""
    if not values:
        return
    if not has_template(folder):
        yield f"model.chat_template_kwargs needs a chat template, which model.path={folder} does not have: leave it out"
    elif (template := _template(folder)) and (problem := settings_problem(template, values)):
        yield f"model.path={folder}: {problem}"


def _template(folder: Path) -> str | None:
    """The folder's default chat template, where it has the usual form."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    found = (read_settings(folder, "chat_template.json") or read_settings(folder, "tokenizer_config.json")).get(
        "chat_template"
    )
    if isinstance(found, list):
        found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def adapter_problems(folder: Path, shape: ModelShape | None) -> Iterator[str]:
    """Yields a sentence if an adapter's weights cannot be loaded, or cannot be merged into those of its base."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return
    try:
        names = read_header(file)
    except BrokenFile as broken:
        yield f"model.path={folder}: {broken}"
        return
    shared = next((name for name in names if "lm_head" in name or "embed_tokens" in name), None)
    if shared is not None and shape is not None and shape.tied:
        yield (
            f"model.path={folder} changes {shared}, and its base ties the output layer to the embeddings, so that "
            "there is no weight to merge it into: use an adapter of other layers"
        )


def _vocabulary(folder: Path, facts: TokenizerFacts, vocabulary: int | None) -> Iterator[str]:
    if vocabulary is not None and facts.largest_id >= vocabulary:
        yield (
            f"model.path={folder}: its tokenizer has {facts.size} tokens with ids up to {facts.largest_id} "
            f"({facts.largest_token!r}), but the model's vocab_size is {vocabulary}: copy the tokenizer that belongs "
            "to the model, or resize its embeddings"
        )
    for role, found in facts.special.items():
        if found is None:
            yield (
                f"model.path={folder}: tokenizer_config.json names {role} {facts.names[role]!r}, which tokenizer.json "
                "does not have: copy both files from one source"
            )


def _facts(folder: Path) -> TokenizerFacts | None:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    written = tuple(
        _written(folder / name) for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    )
    return _read_facts(folder, written)


@lru_cache(maxsize=4)
def _read_facts(folder: Path, written: tuple[int, ...]) -> TokenizerFacts:
    """Reads the tokenizer once for files written at these times: each job of a sweep checks the same folder."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises a bare Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise ConfigError(
            f"model.path={folder}: tokenizer.json cannot be read as a tokenizer ({reason}): copy it again"
        ) from error
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    largest = max(tokens, key=tokens.__getitem__, default="")
    names = _special_names(folder)
    found = {role: tokens.get(name) for role, name in names.items()}
    # transformers adds the tokens of added_tokens_decoder, which tokenizer.json need not have.
    added = {_text(value): int(key) for key, value in _added(folder).items() if key.isdigit()}
    special = {role: added.get(names[role]) if value is None else value for role, value in found.items()}
    return TokenizerFacts(len(tokens), tokens.get(largest, -1), largest, special, names)


def _special_names(folder: Path) -> dict[str, str]:
    settings = read_settings(folder, "special_tokens_map.json") | read_settings(folder, "tokenizer_config.json")
    return {role: text for role in SPECIAL if (text := _text(settings.get(role)))}


def _added(folder: Path) -> dict[str, Any]:
    added = read_settings(folder, "tokenizer_config.json").get("added_tokens_decoder")
    return added if isinstance(added, dict) else {}


def _text(token: Any) -> str:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else ""


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.is_file() else 0


WHOLE, INDEX = WHOLE_MODEL[:2]
LFS = b"version https://git-lfs"
LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
OUTPUTS = ("lm_head.weight", "embed_out.weight", "output.weight")
OTHER_OUTPUT = re.compile(r"^\D*(head|out)\D*\.weight$")
"""A name outside the numbered layers."""
PLAIN = ("llama", "qwen2", "qwen3", "mistral")
"""Model types whose tensors are known exactly; their output layer is untied unless config.json ties it."""
LINEAR = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
"""In the order of ModelShape.linear_shapes."""
NORMS = ("input_layernorm", "post_attention_layernorm")
FLOATS = ("F64", "F32", "F16", "BF16")
Header = dict[str, Any]


class BrokenFile(Exception):
    """A weight file cannot be loaded; the text names the file and says why."""


def weight_problems(folder: Path, shape: ModelShape | None, training: bool = True) -> Iterator[str]:
    """Yields a sentence for each thing that would keep the weights of `folder` from loading as config.json says.

    Args:
        folder: a local model folder (model.path).
        shape: what config.json says of the tensors; None: not known, names and sizes are not compared.
        training: whether learners load them; an engine alone can use quantised weights.
    """
    if not is_whole(folder):
        yield _without_model(folder)
        return
    try:
        shards = _shards(folder)
        headers = {name: read_header(folder / name) for name in shards}
    except BrokenFile as broken:
        yield f"model.path={folder}: {broken}"
        return
    for name, tensors in shards.items():
        if missing := sorted(tensors - set(headers[name])):
            yield (
                f"model.path={folder}: {name} lacks {missing[0]} ({len(missing)} of the tensors that {INDEX} places "
                "there): copy both again from one source"
            )
            return
    weights = {tensor: value for header in headers.values() for tensor, value in header.items()}
    odd = [name for name, value in weights.items() if name.endswith("weight") and value.get("dtype") not in FLOATS]
    if odd and training:
        yield quantised_problem(folder, f"{odd[0]} is {weights[odd[0]].get('dtype')}")
    elif weights and not odd:
        yield from (
            f"model.path={folder}: {problem}"
            for problem in _misfits(read_settings(folder, "config.json"), shape, weights)
        )


def read_header(file: Path) -> Header:
    """Reads tensor names with dtype, shape and offsets from a safetensors header.

    Raises:
        BrokenFile: the file is missing, a Git LFS pointer, cut short or not safetensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(len(LFS))
            if start == LFS:
                raise BrokenFile(f"{file.name} is a Git LFS pointer, not the weights: run git lfs pull there")
            length = struct.unpack("<Q", start[:8])[0] if size >= 8 else LONGEST_HEADER
            if size >= 8 and not 2 <= length <= LONGEST_HEADER:
                raise BrokenFile(f"{file.name} is not a safetensors file: copy it again")
            if size < 8 + length:
                raise BrokenFile(f"{file.name} is cut short ({size} bytes, less than its header): copy it again")
            opened.seek(8)
            header = json.loads(opened.read(length))
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        wanted = 8 + length + max((int(value["data_offsets"][1]) for value in tensors.values()), default=0)
    except OSError as error:
        raise BrokenFile(
            f"{file.name} cannot be read ({error.strerror}): copy it again, or make it readable"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise BrokenFile(f"{file.name} has a broken header ({type(error).__name__}): copy it again") from error
    if size != wanted:
        word = "cut short" if size < wanted else "too long"
        raise BrokenFile(f"{file.name} is {word} ({size} bytes, its header says {wanted}): copy it again")
    return tensors


def _without_model(folder: Path) -> str:
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    if not found:
        return f"model.path={folder} has no weights ({WHOLE}, or shards with {INDEX}): copy them into that folder"
    return (
        f"model.path={folder} has {found[0]} but neither {WHOLE} nor {INDEX}, which says what is in which file: "
        "copy the index into that folder"
    )


def _shards(folder: Path) -> dict[str, set[str]]:
    """File name -> the tensors that the index places in it (none for a single file)."""
    if (folder / WHOLE).is_file():
        return {WHOLE: set()}
    file = folder / INDEX
    if not file.is_file():
        return {}
    try:
        places = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, set[str]] = {}
        for tensor, name in places.items():
            shards.setdefault(str(Path(name)), set()).add(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenFile(f"{INDEX} cannot be read ({type(error).__name__}): copy it again") from error
    if missing := sorted(name for name in shards if not (folder / name).is_file()):
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise BrokenFile(
            f"{INDEX} names {len(shards)} files, and {len(missing)} of them cannot be found ({names}): copy what is "
            "missing into that folder"
        )
    return shards


def _misfits(config: dict[str, Any], shape: ModelShape | None, tensors: Header) -> Iterator[str]:
    """Compares tensor names and shapes with config.json; what does not fit would be drawn at random, or dropped."""
    kind, several = config.get("model_type"), "text_config" in config  # several models in one
    plain = kind in PLAIN and not several
    roots = sorted(name.removesuffix("embed_tokens.weight") for name in tensors if name.endswith("embed_tokens.weight"))
    root = roots[0] if roots else ""
    if plain and (not roots or root not in ("", "model.")):
        found, wanted = min(tensors), "model.embed_tokens.weight"
        yield (
            f"its weights have names such as {root + 'embed_tokens.weight' if roots else found}, where {kind} needs "
            f"{wanted}: save the model itself, not what was wrapped around it (save_pretrained), or rename the tensors"
        )
        return
    layers, said = _layers(tensors), config.get("num_hidden_layers")
    more = several or config.get("num_nextn_predict_layers")  # layers that the configuration counts elsewhere
    if isinstance(said, int) and layers and not more and layers != said:
        yield (
            f"config.json says num_hidden_layers={said}, but the weights have {layers} layers: copy config.json and "
            "weights from one source"
        )
        return
    tied = config.get("tie_word_embeddings", not plain)
    # Other types have other names for it: output_layer.weight (ChatGLM), head.weight (RWKV), ff_out.weight (OLMo).
    other = not plain and any(OTHER_OUTPUT.search(name) for name in tensors)
    if not (tied or other or any(name.endswith(OUTPUTS) for name in tensors)):
        yield (
            "config.json does not tie the output layer to the embeddings (tie_word_embeddings), but the weights have "
            "no lm_head.weight, so it would be drawn at random: copy the missing file, or set tie_word_embeddings to "
            "true if the model was trained so"
        )
    yield from _sizes(root, shape, tensors, plain)


def _layers(tensors: Header) -> int:
    """How many layers the names count; 0 if they do not."""
    found = (re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", name) for name in tensors)
    return len({int(match.group(1)) for match in found if match})


def _sizes(root: str, shape: ModelShape | None, tensors: Header, plain: bool) -> Iterator[str]:
    if shape is None:
        return
    expected = {name: [shape.vocabulary] for name in tensors if name.endswith(EMBEDDINGS)}
    if plain:
        expected |= {
            f"{root}embed_tokens.weight": [shape.vocabulary, shape.hidden],
            f"{root}norm.weight": [shape.hidden],
        }
        for layer in range(shape.layers):
            block = f"{root}layers.{layer}."
            expected |= {f"{block}{name}.weight": [shape.hidden] for name in NORMS}
            expected |= {
                f"{block}{name}.weight": [outputs, inputs]
                for name, (inputs, outputs) in zip(LINEAR, shape.linear_shapes, strict=True)
            }
    if lacking := [name for name in expected if name not in tensors]:
        yield (
            f"the weights lack {lacking[0]} ({len(lacking)} of the tensors that config.json asks for), which would be "
            "drawn at random: copy config.json and weights from one source"
        )
        return
    for name, wanted in expected.items():
        size = tensors[name].get("shape") or [None]
        if size[: len(wanted)] != wanted:
            rows = name.endswith(EMBEDDINGS) and size[0] != shape.vocabulary
            what = f"vocab_size={shape.vocabulary}" if rows else f"a shape of {wanted}"
            yield (
                f"config.json says {what} for {name}, but it has {_words(size)} in the weights: copy config.json and "
                "weights from one source"
            )
            return


def _words(size: list[int]) -> str:
    return f"{size[0]} rows ({'x'.join(map(str, size))})"
