"""The character tokenizer of the embedded world: one token a character, no merges."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = "0123456789+=;:.?>,AEHQ"
"""No text of the world has `>` or `,` now; the shipped base has rows for them."""
VOCABULARY = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *CHARACTERS])}
PAD_ID, EOS_ID = VOCABULARY[PAD], VOCABULARY[EOS]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The fast tokenizer. A completion ends with `<eos>` (the stop token), after the `.` that ends the answer."""
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
    """Writes tokenizer.json and its companions, as AutoTokenizer and vLLM load them."""
    build_tokenizer().save_pretrained(folder)


def encode(text: str) -> list[int]:
    """Ids of a text without special tokens; KeyError on a character outside the vocabulary."""
    return [VOCABULARY[character] for character in text]
