# ruff: noqa: RUF001 - the tables of look-alike characters are the point of this file
"""One spelling for what LaTeX, Unicode and plain text write in several ways. No meaning is added or taken away."""

import re
import tomllib
import unicodedata
from functools import lru_cache
from pathlib import Path

NOTATION = tomllib.loads((Path(__file__).parent / "notation.toml").read_text(encoding="utf-8"))
_CHARACTERS = {char: plain for plain, chars in NOTATION["characters"].items() for char in chars}
_MONEY = {sign: name for name, signs in NOTATION["money"].items() for sign in signs}
_COMMANDS = {name: plain for plain, names in NOTATION["commands"].items() for name in names.split()}
_SMALL = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻₀₁₂₃₄₅₆₇₈₉"
_FROM_SMALL = str.maketrans(_SMALL, "0123456789+-0123456789")
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_IDEOGRAPHS = re.compile("[一-鿿]+")

_SYMBOLS = {**dict.fromkeys(",;:> \t", " "), "\n": " ", "!": "\x01", "/": "", "\\": "\x07"}
_TOKEN = re.compile(r"\\not\s*=|\\([A-Za-z]+\*?)|\\(.)", re.DOTALL)
_UNPRINTED = re.compile(r"\\(?:color|phantom|hspace|vspace|label|tag)\*?\s*\{[^{}]*\}|\\textcolor\s*\{[^{}]*\}")
_UNWRAPPED = re.compile(r"\\(?:underline|boxed|fbox|ensuremath|mathop|displaylines)\s*(?=\{)")
_FUNCTIONS = "|".join(NOTATION["names"]["functions"].split())
_PLAIN_FUNCTION = re.compile(rf"(?<![A-Za-z\\])({_FUNCTIONS})(?=[\s(0-9\\_^]|[a-z](?![a-z]))")
_TEXT_PART = re.compile(r"\\text\s*\{([^{}]*)\}")
_BOLD_LETTER = re.compile(r"\\(?:mathbf|boldsymbol|vec|hat)\s*(?:\{\s*\\?([ijk])(?:math)?\s*\}|\s([ijk])(?![A-Za-z]))")
# The inside of a text is out of reach of the rules for formulas: its characters move to the private area and back.
_HIDDEN = {code: 0xE000 + code for code in range(33, 127)}
_SHOWN = {hidden: code for code, hidden in _HIDDEN.items()}
_LIST = re.compile(
    r"\\begin\{(cases|aligned|align\*?|gathered|split|array\}\{l)\}(.*?)\\end\{(?:\1|array)\}", re.DOTALL
)
_MATRIX = re.compile(
    r"\\begin\{[pbvBV]?(?:small)?matrix\}.*?\\end\{[a-zA-Z]*\}|\\begin\{array\}.*?\\end\{array\}", re.DOTALL
)
_CHOOSE = (
    (re.compile(r"\{([^{}\\]{1,20})\\choose(?![A-Za-z])([^{}\\]{1,20})\}"), r"\\binom{\1}{\2}"),
    (
        re.compile(r"(?:\{\})?[\^_]\{([0-9]+)\}\\?C_\{([0-9]+)\}|(?<![A-Za-z0-9])C\(([0-9]+),([0-9]+)\)"),
        r"\\binom{\1\3}{\2\4}",
    ),
)
_ORDINAL = re.compile(r"(?<=[0-9])()\s*\^\s*\{?\s*(?:\\text\s*\{)?\s*(st|nd|rd|th)\s*\}{0,2}(?![A-Za-z])")
_REMARK = re.compile(
    r"\\text\{ ?\(?(?:exactly|exact|in total|total|altogether|only)\)? ?\}|(?<=[0-9]) \(?(?:exactly|exact)\)?$"
)
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_STATEMENT = re.compile(
    r"^(?:\\text\{)?\s*(?:the\s+)?(?:final\s+)?answer\s*(?:\s+is\s*:?|:|=)\s*(\}?)(?=.)", re.IGNORECASE | re.DOTALL
)
# 0.333\ldots: three times one digit, or twice two and more.
_REPEATED = re.compile(r"(?<![0-9.])([0-9]*\.[0-9]*?)(?:([0-9])\2\2+|([0-9]{2,}?)\3+)\s*\\ldots(?![A-Za-z])")


@lru_cache(maxsize=4096)
def clean(text: str, join: bool = True) -> str:
    r"""The answer in one spelling: braces around every argument, one space only where it separates.

    join: whether `1,234` outside brackets is one number.

    >>> clean(r"\dfrac12\left(x + 1\right)^2.")
    '\\frac{1}{2}(x+1)^{2}'
    """
    text = _unwrap_math(_characters(text).strip()).strip()
    text = _UNWRAPPED.sub("", _UNPRINTED.sub("", text))
    text = re.sub(r"\\right\s*\.|\\left\s*\.", "", text)
    text = _BOLD_LETTER.sub(lambda match: rf"\vec{{{match.group(1) or match.group(2)}}}", text)
    text = _MATRIX.sub(lambda match: match.group().replace("\\\\", "\x08"), text.replace("\n", "\x04"))
    text = _LIST.sub(lambda match: match.group(2).replace("&", ""), text)
    text = re.sub(r"\\math(?:rm|it)\s*\{\s*([ei])\s*\}", r"\1", text)
    text = _ORDINAL.sub(r"\1\\text{\2}", _TOKEN.sub(_command, text))
    text = _STATEMENT.sub(
        lambda match: "" if match.group(1) else r"\text{" if text.startswith("\\text") else "", text, count=1
    )
    text = re.sub(r"\\text\s+([A-Za-z])(?![A-Za-z])", r"\1", text)
    text = re.sub(r",\s*\x01\s*|\{,\}", "\x02", text).replace("\x01", "")
    text = _TEXT_PART.sub(_text, _REMARK.sub("", text))
    text = re.sub(r"(?<=[0-9])\.\.\.", r"\\ldots ", re.sub(r"(?<=[0-9]\.)\{([0-9]+)\}", r"\1", text))
    text = _REPEATED.sub(lambda match: rf"{match.group(1)}\overline{{{match.group(2) or match.group(3)}}}", text)
    text = (
        text.replace("<=", r"\le ")
        .replace(">=", r"\ge ")
        .replace("!=", r"\ne ")
        .replace("**", "^")
        .replace("+/-", r"\pm ")
    )
    text = re.sub(r"^\+-(?=[0-9])", r"\\pm ", text)
    text = re.sub(r"\{\s*([.:=<>+-])\s*\}", r"\1", text)
    text = _PLAIN_FUNCTION.sub(r"\\\1 ", text)
    text = re.sub(r"(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty ", text)
    text = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", text)
    text = re.sub(r"(?<![A-Za-z\\])sqrt(?![A-Za-z])", r"\\sqrt ", text)
    text = re.sub(r"\s*\*\s*|(?<=[0-9]) [xX] (?=10\s*\^)", r"\\cdot ", text)
    text = re.sub(
        r"(?<=[0-9.])\(([0-9]+)\)(?![0-9])", lambda m: rf"\overline{{{m.group(1)}}}" if _decimal(m) else m.group(), text
    )
    text = _over(_braced(text))
    for pattern, binomial in _CHOOSE:
        text = pattern.sub(binomial, text)
    text = re.sub(r"(?<!\\)%|(?<=[0-9}\s])\s*\bper ?cent|pct\b", r"\\%", text)
    text = re.sub(r"\s*\^\s*\{\s*\\circ\s*\}", r"\\degree ", text)
    text = _spaces(_thousands(_separators(text), join)).translate(_SHOWN)
    return text.strip().lstrip("=").strip().rstrip(".,;\\").replace("\x08", "\\\\").strip()


def _characters(text: str) -> str:
    kept = []
    for char in text:
        if char in _CHARACTERS:
            kept.append(_CHARACTERS[char])
        elif ord(char) < 128 or char in _SMALL:
            kept.append(char)
        elif unicodedata.name(char, "").startswith("GREEK SMALL LETTER ") and " WITH " not in unicodedata.name(char):
            kept.append(
                "\\" + unicodedata.name(char)[19:].lower().replace("lamda", "lambda").replace("final ", "") + " "
            )
        elif unicodedata.category(char) != "Cf":
            plain = str(unicodedata.decimal(char, "")) or unicodedata.normalize("NFKC", char)
            top, slash, bottom = plain.partition("⁄")
            kept.append(rf"\frac{{{top}}}{{{bottom}}}" if slash and bottom else plain)
    text = "".join(" " if unicodedata.category(char) == "Zs" else char for char in kept for char in char)
    text = re.sub(r"([⁰¹²³⁴⁵⁶⁷⁸⁹]+)\\sqrt ", lambda match: f"\\sqrt[{match.group(1).translate(_FROM_SMALL)}] ", text)
    text = _RAISED.sub(lambda match: "^{" + match.group().translate(_FROM_SMALL) + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + match.group().translate(_FROM_SMALL) + "}", text)
    text = re.sub(r"(?:USD|US\$|US\\\$) ?(?=[0-9])", r"\\$", text)
    for sign, name in _MONEY.items():
        text = re.sub(rf"{sign}\s*([0-9][0-9.,]*)", rf"\1\\text{{ {name}}}", text).replace(sign, rf"\text{{ {name}}}")
    return _IDEOGRAPHS.sub(
        lambda match: rf"\text{{ {match.group()}}}", re.sub(r"\\text\s*\{\s*([一-鿿]+)\s*\}", r"\1", text)
    )


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


def _decimal(match: re.Match[str]) -> bool:
    """Whether what stands before `(6)` is a decimal as in 0.(6), whose digits repeat."""
    before = match.string[: match.start()]
    return re.search(r"(?<![0-9.])[0-9]*\.[0-9]*$", before) is not None


def _inside(match: re.Match[str]) -> bool:
    """Whether a match stands in brackets that may be those of a pair, an interval or a set."""
    before = re.sub(r"\\left|\\right", "", match.string[: match.start()])
    return len(re.findall(r"[(\[]|\\\{|\\begin", before)) > len(re.findall(r"[)\]]|\\\}|\\end", before))


def _braced(text: str) -> str:
    r"""Write `\frac12` as `\frac{1}{2}`, `\sqrt2` as `\sqrt{2}`, `x^10` as `x^{10}`, `2^(n-1)` as `2^{n-1}`."""
    out: list[str] = []
    position = 0
    pattern = re.compile(r"\\frac(?![A-Za-z])|\\binom(?![A-Za-z])|\\(?:sqrt|pmod|overline|mathbb)(?![A-Za-z])|[\^_]")
    while (match := pattern.search(text, position)) is not None:
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


def _over(text: str) -> str:
    r"""`{5 \over 8}` and `5 \over 8` as `\frac{5}{8}`."""
    text = re.sub(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}", text)
    top, over, bottom = text.partition("\\over")
    return rf"\frac{{{top.strip()}}}{{{bottom.strip()}}}" if over and not bottom[:1].isalpha() else text


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
    pieces: list[str] = []
    position = 0
    for match in _TEXT_PART.finditer(text):
        pieces.append(_tight(text[position : match.start()]))
        pieces.append(r"\text{" + match.group(1) + "}" if match.group(1).strip() else " ")
        position = match.end()
    pieces.append(_tight(text[position:]))
    return "".join(pieces)


def _tight(text: str) -> str:
    """Keep a space only between letters and digits, and between a command and a letter."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])", "", text)
    return re.sub(r"(\\[A-Za-z]+) (?![A-Za-z])", r"\1", text)


def _thousands(text: str, join: bool) -> str:
    r"""Join `1{,}234`, `1,\!234` anywhere; `1,234` and `1 234` outside brackets, where no pair is meant."""
    text = re.sub(r"(?<=[0-9])\x02(?=[0-9]{3}(?![0-9]))", "", text).replace("\x02", ",")
    if join:
        text = _THOUSANDS.sub(lambda m: m.group() if _inside(m) else m.group().replace(",", ""), text)
    return re.sub(
        r"(?<![0-9.,])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9/])(?! [0-9])", lambda m: m.group().replace(" ", ""), text
    )
