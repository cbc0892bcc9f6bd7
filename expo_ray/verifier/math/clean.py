# ruff: noqa: RUF001 - the tables of look-alike characters are the point of this file
"""One spelling for what LaTeX, Unicode and plain text write in several ways. No meaning is added or taken away."""

import re
import unicodedata
from functools import lru_cache

from expo_ray.verifier.math.words import NOTATION, rewritten

_CHARACTERS = {char: plain for plain, chars in NOTATION["characters"].items() for char in chars}
_COMMANDS = {name: plain for plain, names in NOTATION["commands"].items() for name in names.split()}
_SMALL = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻₀₁₂₃₄₅₆₇₈₉"
_FROM_SMALL = str.maketrans(_SMALL, "0123456789+-0123456789")
_RAISED_OR_LOWERED = re.compile("(?:[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+|[₀₁₂₃₄₅₆₇₈₉]+)(?P<root>\\\\sqrt )?")
_SYMBOLS = {**dict.fromkeys(",;:> \t", " "), "\n": " ", "!": "\x01", "/": "", "\\": "\x07"}
_TOKEN = re.compile(r"\\not\s*=|\\([A-Za-z]+\*?)|\\(.)", re.DOTALL)
_FUNCTIONS = "|".join(NOTATION["names"]["functions"].split())
_PLAIN_FUNCTION = re.compile(rf"(?<![A-Za-z\\])({_FUNCTIONS})(?=[\s(0-9\\_^]|[a-z](?![a-z]))")
_TEXT_PART = re.compile(r"\\text\s*\{([^{}]*)\}")
# The inside of a text is out of reach of the rules for formulas: its characters move to the private area and back.
_HIDDEN = {code: 0xE000 + code for code in range(33, 127)}
_SHOWN = {hidden: code for code, hidden in _HIDDEN.items()}
_LIST = re.compile(
    r"\\begin\{(cases|aligned|align\*?|gathered|split|array\}\{l)\}(.*?)\\end\{(?:\1|array)\}", re.DOTALL
)
_MATRIX = re.compile(
    r"\\begin\{[pbvBV]?(?:small)?matrix\}.*?\\end\{[a-zA-Z]*\}|\\begin\{array\}.*?\\end\{array\}", re.DOTALL
)
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_SPACED = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9/])(?! [0-9])")
_ARGUMENTS = re.compile(r"\\(?:frac|binom|sqrt|pmod|overline|mathbb)(?![A-Za-z])|[\^_]")


@lru_cache(maxsize=4096)
def clean(text: str, join: bool = True) -> str:
    r"""The answer in one spelling: braces around every argument, one space only where it separates.

    join: whether `1,234` outside brackets is one number.

    >>> clean(r"\dfrac12\left(x + 1\right)^2.")
    '\\frac{1}{2}(x+1)^{2}'
    """
    text = rewritten("layout", _unwrap_math(rewritten("money", _characters(text)).strip()).strip())
    text = _MATRIX.sub(lambda match: match.group().replace("\\\\", "\x08"), text.replace("\n", "\x04"))
    text = _TOKEN.sub(_command, _LIST.sub(lambda match: match.group(2).replace("&", ""), text))
    text = rewritten("words", text)
    text = _TEXT_PART.sub(_text, rewritten("texts", text)) if "\\text" in text else text
    text = rewritten("plain", _PLAIN_FUNCTION.sub(r"\\\1 ", rewritten("signs", text)))
    text = rewritten("braced", _braced(text))
    text = _spaces(_thousands(_separators(text), join)).translate(_SHOWN)
    return text.strip().lstrip("=").strip().rstrip(".,;\\").replace("\x08", "\\\\").strip()


def _characters(text: str) -> str:
    kept = []
    for char in text:
        if char in _CHARACTERS:
            kept.append(_CHARACTERS[char])
        elif ord(char) < 128 or char in _SMALL:
            kept.append(char)
        elif (name := unicodedata.name(char, "")).startswith("GREEK SMALL LETTER ") and " WITH " not in name:
            kept.append("\\" + name[19:].lower().replace("lamda", "lambda").replace("final ", "") + " ")
        elif unicodedata.category(char) != "Cf":
            plain = str(unicodedata.decimal(char, "")) or unicodedata.normalize("NFKC", char)
            top, slash, bottom = plain.partition("⁄")
            kept.append(rf"\frac{{{top}}}{{{bottom}}}" if slash and bottom else plain)
    text = "".join(" " if unicodedata.category(char) == "Zs" else char for char in "".join(kept))
    return _RAISED_OR_LOWERED.sub(_small, text)


def _small(match: re.Match[str]) -> str:
    digits = match.group().removesuffix("\\sqrt ").translate(_FROM_SMALL)
    if match.group("root"):
        return rf"\sqrt[{digits}] "
    return ("_{" if match.group()[0] in "₀₁₂₃₄₅₆₇₈₉" else "^{") + digits + "}"


def _unwrap_math(text: str) -> str:
    text = text.strip("*_ \n\t") if text.startswith("**") else text.strip("`")
    text = text.replace("\\(", " ").replace("\\)", " ")
    text = re.sub(r"^\s*\\\[(.*)\\\]\s*\.?\s*$", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"(?<!\\)\\\$", "\x03", text)
    # One lone dollar sign in front of a digit is money; a pair of them is math.
    if text.count("$") % 2 == 1:
        text = re.sub(r"\$(?=\s*[0-9.])", "\x03", text, count=1)
    return text.replace("$", " ").replace("\x03", r"\$")


def _command(match: re.Match[str]) -> str:
    name, symbol = match.group(1), match.group(2)
    if symbol is not None:
        return _SYMBOLS.get(symbol, match.group())
    if name is None:
        return r"\ne "
    return _COMMANDS.get(name, _COMMANDS.get(name.rstrip("*"), match.group()))


def _text(match: re.Match[str]) -> str:
    """A text that is a number, a letter or a function's name is mathematics; the rest is kept from it."""
    inside = match.group(1)
    if re.fullmatch(r"\s*(?:[+-]?[0-9][0-9.,]*|\\\$)?\s*(?:\\?%|per ?cent|pct)?\s*", inside):
        return re.sub("per ?cent|pct|\\\\?%", r"\\%", inside)
    if counted := re.fullmatch(r"\s*([+-]?[0-9][0-9.,]*)( +[A-Za-z].*)", inside):
        return counted.group(1) + r"\text{" + counted.group(2).translate(_HIDDEN) + "}"
    if re.fullmatch(rf"(?!max|min)(?:{_FUNCTIONS})", inside.strip()):
        return rf"\{inside.strip()} "
    return r"\text{" + re.sub(r"\s+", " ", inside).translate(_HIDDEN) + "}"


def _inside(match: re.Match[str]) -> bool:
    """Whether a match stands in brackets that may be those of a pair, an interval or a set."""
    before = re.sub(r"\\left|\\right", "", match.string[: match.start()])
    return len(re.findall(r"[(\[]|\\\{|\\begin", before)) > len(re.findall(r"[)\]]|\\\}|\\end", before))


def _braced(text: str) -> str:
    r"""Write `\frac12` as `\frac{1}{2}`, `\sqrt2` as `\sqrt{2}`, `x^10` as `x^{10}`, `2^(n-1)` as `2^{n-1}`."""
    out: list[str] = []
    position = 0
    while (match := _ARGUMENTS.search(text, position)) is not None:
        out += (text[position : match.start()], match.group())
        position = match.end()
        if match.group() == "\\sqrt" and (root := re.match(r"\s*(\[[^\[\]]*\])", text[position:])):
            out.append(root.group(1).replace(" ", ""))
            position += root.end()
        pair = match.group() in ("\\frac", "\\binom")
        # Plain text writes x^10, 10^-3 and √21 where LaTeX wants braces; in \frac12 the digits are apart.
        digits = "[0-9]" if pair else "[+-]?[0-9]+" if match.group() == "^" else "[0-9]+"
        for _ in range(2 if pair else 1):
            argument = re.match(rf"\s*({digits}|[+-]?\\[A-Za-z]+|[+-][A-Za-z]|[^\s{{}}\\(]|(?=[{{(]))", text[position:])
            if argument is None:
                break
            position += argument.end()
            if argument.group(1):
                out.append("{" + argument.group(1) + "}")
            elif text[position] == "(" and match.group() in ("\\frac", "\\binom", "\\pmod", "\\overline"):
                break
            else:
                # The argument's own commands are handled by the same loop.
                end = _closing(text, position)
                out.append("{" + _braced(text[position + 1 : end]) + "}")
                position = end + 1
    out.append(text[position:])
    return "".join(out)


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`, or the end of the text."""
    opening, closing = ("{", "}") if text[start] == "{" else ("(", ")")
    depth = 0
    for match in re.compile(r"\\.|[{}()]", re.DOTALL).finditer(text, start):
        depth += (match.group() == opening) - (match.group() == closing)
        if depth == 0:
            return match.start()
    return len(text)


def _separators(text: str) -> str:
    r"""`\\` separates; a wide space or a new line does where relations stand on all its sides."""
    parts = [
        part.strip().strip(",")
        for part in text.replace("\x07", "\x04\x07\x04").split("\x04")
        if part.strip() and part != "\x07"
    ]
    relations = all(re.search(r"[=<>]|\\(?:le|ge|ne|in)(?![a-z])", part) for part in parts)
    return ",".join(parts) if relations or "\x07" in text.strip("\x07\x04 ") else r"\text{ }".join(parts)


def _spaces(text: str) -> str:
    """Keep a space only between letters and digits, between a command and a letter, and in texts."""
    pieces = _TEXT_PART.split(text)
    for at, piece in enumerate(pieces):
        if at % 2:
            pieces[at] = rf"\text{{{piece}}}" if piece.strip() else " "
        else:
            pieces[at] = re.sub(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])", "", re.sub(r"\s+", " ", piece))
            pieces[at] = re.sub(r"(\\[A-Za-z]+) (?![A-Za-z])", r"\1", pieces[at])
    return "".join(pieces)


def _thousands(text: str, join: bool) -> str:
    r"""Join `1{,}234`, `1,\!234` anywhere; `1,234` and `1 234` outside brackets, where no pair is meant."""
    text = re.sub(r"(?<=[0-9])\x02(?=[0-9]{3}(?![0-9]))", "", text).replace("\x02", ",")
    if join:
        text = _THOUSANDS.sub(lambda m: m.group() if _inside(m) else m.group().replace(",", ""), text)
    return _SPACED.sub(lambda m: m.group().replace(" ", ""), text)
