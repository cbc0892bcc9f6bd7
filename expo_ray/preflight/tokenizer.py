"""Do a model folder's tokenizer, config.json and generation_config.json agree? Imports no transformers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from expo_ray.config.errors import ConfigError

SPECIAL = ("bos_token", "eos_token", "pad_token")
TEMPLATES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True)
class TokenizerFacts:
    """What the checks need of a tokenizer.json."""

    size: int
    """Number of tokens, added ones included."""
    largest_id: int
    largest_token: str
    special: dict[str, int | None]
    """Each special token that tokenizer_config.json names, with its id; None: not in the vocabulary."""
    names: dict[str, str]
    """The special tokens' texts."""


def tokenizer_problems(folder: Path, vocabulary: int | None) -> Iterator[str]:
    """A sentence for each thing in which tokenizer and model disagree.

    Args:
        folder: a local model folder (model.path).
        vocabulary: config.json's vocab_size; None: not known, ids are not compared.
    """
    try:
        facts = _facts(folder)
        ends = generation_ends(folder)
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


def generation_ends(folder: Path) -> tuple[int, ...]:
    """The end-of-sequence ids of generation_config.json; empty where it is absent or names none.

    Raises:
        ConfigError: the file is not JSON, or the ids are no whole numbers.
    """
    listed = _json(folder, "generation_config.json").get("eos_token_id")
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if wrong := [end for end in ids if isinstance(end, bool) or not isinstance(end, int)]:
        raise ConfigError(
            f"model.path={folder}: generation_config.json has eos_token_id={wrong[0]!r:.40}, not a token's id: "
            "write a whole number or a list of them"
        )
    return tuple(sorted(set(ids)))


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
    """Read once for files written at these times: a command checks its configuration several times."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise ConfigError(
            f"model.path={folder}: tokenizer.json cannot be read as a tokenizer ({reason}): copy it again"
        ) from error
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    largest = max(tokens, key=tokens.__getitem__, default="")
    names = _special_names(folder)
    found = {role: tokens.get(name) for role, name in names.items()}
    # A name with an id of its own in added_tokens_decoder is added by transformers.
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


def _json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of the folder; empty where there is no such file."""
    file = folder / name
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ConfigError(f"model.path={folder}: {name} cannot be read as JSON ({reason}): copy it again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"model.path={folder}: {name} is not a JSON object: copy it again")
    return value
