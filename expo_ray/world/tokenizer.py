"""The toy task's tokenizer: one token per character, no merges."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = "0123456789+=;:.?>,AEHQ"
"""No text uses `>` and `,` any more, but the shipped base model has embedding rows for them."""
VOCABULARY = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *CHARACTERS])}
PAD_ID, EOS_ID = VOCABULARY[PAD], VOCABULARY[EOS]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Builds the fast tokenizer. A completion ends with `<eos>`, the stop token, after the answer's final `.`."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=128,
    )


def save_tokenizer(folder: Path) -> None:
    """Writes the tokenizer's files, in the form that AutoTokenizer and vLLM load."""
    build_tokenizer().save_pretrained(folder)


def encode(text: str) -> list[int]:
    """Returns a text's ids without special tokens. Raises KeyError for a character outside the vocabulary."""
    return [VOCABULARY[character] for character in text]
