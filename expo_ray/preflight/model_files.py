"""Checks that a model folder's weights and tokenizer are whole and belong together, by the files' headers.

A file is 8 bytes N (little endian), N bytes of JSON, then the tensors, whose offsets the JSON names
(huggingface.co/docs/safetensors, "Format").
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from expo_ray.config.errors import ConfigError
from expo_ray.preflight.model_folder import _json, generation_ends

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
    return files or bool(_json(folder, "tokenizer_config.json").get("chat_template"))


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
    settings = _json(folder, "special_tokens_map.json") | _json(folder, "tokenizer_config.json")
    return {role: text for role in SPECIAL if (text := _text(settings.get(role)))}


def _added(folder: Path) -> dict[str, Any]:
    added = _json(folder, "tokenizer_config.json").get("added_tokens_decoder")
    return added if isinstance(added, dict) else {}


def _text(token: Any) -> str:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else ""


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.is_file() else 0


WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BINARY = ("pytorch_model.bin", "pytorch_model.bin.index.json")
LFS = b"version https://git-lfs"
LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
Header = dict[str, Any]


class BrokenFile(Exception):
    """A weight file cannot be loaded; the text names the file and says why."""


def weight_problems(folder: Path, vocabulary: int | None) -> Iterator[str]:
    """Yields a sentence for each thing that would keep the weights of `folder` from loading.

    Args:
        folder: a local model folder (model.path).
        vocabulary: config.json's vocab_size, the rows that the embedding must have; None: not compared.
    """
    if not _has_model(folder):
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
    yield from _rows(folder, headers, vocabulary)


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


def _has_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (WHOLE, INDEX, *BINARY))


def _without_model(folder: Path) -> str:
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    if (folder / "adapter_config.json").is_file():
        return (
            f"model.path={folder} is an adapter, not a whole model: merge it into its base model and give that folder"
        )
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


def _rows(folder: Path, headers: dict[str, Header], vocabulary: int | None) -> Iterator[str]:
    for name, header in headers.items():
        for tensor, value in header.items():
            shape = value.get("shape") or [None]
            if vocabulary is not None and tensor.endswith(EMBEDDINGS) and shape[0] != vocabulary:
                yield (
                    f"model.path={folder}: config.json says vocab_size={vocabulary}, but {tensor} in {name} has "
                    f"{shape[0]} rows: copy config.json and weights from one source"
                )
                return
