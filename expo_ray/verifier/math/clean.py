# ruff: noqa: RUF001 - the table of look-alike characters is the point of this file
"""One spelling for what LaTeX and Unicode can write in several ways. No meaning is added or taken away."""

import re
import unicodedata

_UNICODE = {
    **dict.fromkeys("−–—‐‑﹣－", "-"), **dict.fromkeys("×⋅·∙", r"\cdot "), "÷": "/", "／": "/", "∕": "/", "⁄": "/",
    "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "±": r"\pm ", "∓": r"\mp ", "∅": r"\emptyset ",
    "∈": r"\in ", "ℝ": r"\mathbb{R}", "√": r"\sqrt ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}",
    "⟨": r"\langle ", "⟩": r"\rangle ", "，": ",", "：": ":", "（": "(", "）": ")", "。": ".", "′": "'", "’": "'",
    "‘": "'", "“": '"', "”": '"', "∨": r"\lor ", "∧": r"\land ", "¢": r"\text{ cents}", "％": "%", "＝": "=", "＋": "+",
    "~": " ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ",
}  # fmt: skip
_SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_FROM_SMALL = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻₀₁₂₃₄₅₆₇₈₉", "0123456789+-0123456789")

_COMMANDS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), r"\frac"),
    **dict.fromkeys(("leq", "leqslant", "le"), r"\le "),
    **dict.fromkeys(("geq", "geqslant", "ge"), r"\ge "),
    **dict.fromkeys(("neq", "ne"), r"\ne "),
    **dict.fromkeys(("times", "cdot", "ast"), r"\cdot "),
    **dict.fromkeys(("vee", "lor"), r"\lor "),
    **dict.fromkeys(("wedge", "land"), r"\land "),
    **dict.fromkeys(("varnothing", "emptyset"), r"\emptyset "),
    **dict.fromkeys(("quad", "qquad", "enspace", "thinspace", "enskip", "nobreakspace", "medspace"), " "),
    **dict.fromkeys(("displaystyle", "textstyle", "scriptstyle", "limits", "middle", "mathord"), " "),
    **dict.fromkeys(("left", "right", "big", "Big", "bigg", "Bigg"), ""),
    **dict.fromkeys(("bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "bigm", "mleft", "mright"), ""),
    **dict.fromkeys(("mid", "vert", "lvert", "rvert"), "|"),
    **dict.fromkeys(("textbf", "textrm", "textnormal", "textit", "textsf", "texttt", "mbox", "hbox"), r"\text"),
    **dict.fromkeys(("mathrm", "mathbf", "mathit", "mathsf", "mathtt", "boldsymbol", "emph"), r"\text"),
    **dict.fromkeys(("operatorname", "operatorname*"), r"\text"),
    "lt": "<", "gt": ">", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "to": r"\to ", "div": "/",
    "arcsin": r"\arcsin ", "colon": ":", "dots": r"\ldots ", "cdots": r"\ldots ", "degree": r"^\circ ",
    "infin": r"\infty ", "imath": "i", "varphi": r"\phi ", "varepsilon": r"\epsilon ", "dollar": r"\$",
}  # fmt: skip
_SPACES = {",": " ", ";": " ", ":": " ", ">": " ", " ": " ", "\n": " ", "\t": " ", "!": "\x01", "/": ""}
_TOKEN = re.compile(r"\\([A-Za-z]+)|\\(.)", re.DOTALL)
_FUNCTIONS = r"sin|cos|tan|sec|csc|cot|log|ln|arcsin|arccos|arctan|sinh|cosh|tanh|exp"
_NAMED = re.compile(rf"\\(?:text|mathop)\s*\{{\s*({_FUNCTIONS})\s*\}}")
_PLAIN_FUNCTION = re.compile(rf"(?<![A-Za-z\\])({_FUNCTIONS})(?=[\s(0-9\\]|[a-z](?![a-z]))")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def clean(text: str, join: bool = True) -> str:
    r"""The answer in one spelling: braces around every argument, one space only where it separates.

    join: whether `1,234` outside brackets is one number.

    >>> clean(r"\dfrac12\left(x + 1\right)^2.")
    '\\frac{1}{2}(x+1)^{2}'
    """
    text = _plain_characters(text).strip()
    text = _unwrap_math(text)
    text = _TOKEN.sub(_one_command, text)
    text = _NAMED.sub(r"\\\1 ", text)
    text = re.sub(r",\s*\x01\s*|\{,\}", "\x02", text).replace("\x01", "")
    text = text.replace("<=", r"\le ").replace(">=", r"\ge ").replace("!=", r"\ne ").replace("**", "^")
    text = re.sub(r"\{\s*([.:=<>+-])\s*\}", r"\1", text)
    text = re.sub(r"\\text\s*\{\s*(\\[$%])\s*\}", r"\1", text)
    text = _PLAIN_FUNCTION.sub(r"\\\1 ", text)
    text = re.sub(r"(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty ", text)
    text = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", text)
    text = re.sub(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\s*\*\s*", r"\\cdot ", text)
    text = re.sub(r"\{([^{}\\]{1,20})\\choose(?![A-Za-z])([^{}\\]{1,20})\}", r"\\binom{\1}{\2}", text)
    text = _braced(text)
    text = _percent_and_degree(text)
    text = _spaces(_thousands(text, join))
    return text.strip().rstrip(".,;\\").strip()


def _plain_characters(text: str) -> str:
    kept = "".join(_UNICODE.get(char, char) for char in text if unicodedata.category(char) != "Cf")
    kept = _SUPERSCRIPT.sub(lambda match: "^{" + match.group().translate(_FROM_SMALL) + "}", kept)
    kept = _SUBSCRIPT.sub(lambda match: "_{" + match.group().translate(_FROM_SMALL) + "}", kept)
    return "".join(" " if unicodedata.category(char) == "Zs" else char for char in kept)


def _unwrap_math(text: str) -> str:
    text = text.strip("*_ \n\t") if text.startswith("**") else text
    text = text.replace("\\(", " ").replace("\\)", " ")
    text = re.sub(r"^\s*\\\[(.*)\\\]\s*\.?\s*$", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"(?<!\\)\\\$", "\x03", text)
    # One lone dollar sign in front of a digit is money; a pair of them is math.
    if text.count("$") % 2 == 1:
        text = re.sub(r"\$(?=\s*[0-9.])", "\x03", text, count=1)
    return text.replace("$", " ").replace("\x03", r"\$")


def _one_command(match: re.Match[str]) -> str:
    name, symbol = match.group(1), match.group(2)
    if name is not None:
        return _COMMANDS.get(name, match.group())
    return _SPACES.get(symbol, match.group())


def _braced(text: str) -> str:
    r"""Write `\frac12` as `\frac{1}{2}`, `\sqrt2` as `\sqrt{2}`, `x^2` as `x^{2}`."""
    out: list[str] = []
    position = 0
    pattern = re.compile(r"\\frac(?![A-Za-z])|\\binom(?![A-Za-z])|\\sqrt(?![A-Za-z])|[\^_]")
    while (match := pattern.search(text, position)) is not None:
        out.append(text[position : match.start()])
        out.append(match.group())
        position = match.end()
        if match.group() == "\\sqrt":
            root = re.match(r"\s*(\[[^\[\]]*\])", text[position:])
            if root:
                out.append(root.group(1).replace(" ", ""))
                position += root.end()
        wanted = 2 if match.group() in ("\\frac", "\\binom") else 1
        for _ in range(wanted):
            argument = re.match(r"\s*(\\[A-Za-z]+|[^\s{}\\]|(?=\{))", text[position:])
            if argument is None:
                break
            position += argument.end()
            if argument.group(1):
                out.append("{" + argument.group(1) + "}")
            else:
                # What stands in the braces is handled by the same loop; its end comes when it comes.
                end = _closing(text, position)
                out.append("{" + _braced(text[position + 1 : end]) + "}")
                position = end + 1
    out.append(text[position:])
    return "".join(out)


def _closing(text: str, start: int) -> int:
    """Index of the brace that closes the one at `start`, or the end of the text."""
    depth = 0
    skip = False
    for index in range(start, len(text)):
        if skip:
            skip = False
        elif text[index] == "\\":
            skip = True
        elif text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
    return len(text)


def _percent_and_degree(text: str) -> str:
    text = re.sub(r"\\text\s*\{\s*(?:percent|%|\\%)\s*\}", r"\\%", text)
    text = re.sub(r"(?<=[0-9}\s])\s*\bpercent\b", r"\\%", text)
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    return re.sub(r"\s*\^\s*\{\s*\\circ\s*\}", r"\\degree ", text)


def _spaces(text: str) -> str:
    pieces: list[str] = []
    position = 0
    for match in _TEXT.finditer(text):
        pieces.append(_tight(text[position : match.start()]))
        inside = re.sub(r"\s+", " ", match.group(1))
        if inside.strip():
            pieces.append(r"\text{" + inside + "}")
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
    if join and not re.search(r"[(\[]|\\\{|\\begin", text):
        text = re.sub(
            r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])", lambda m: m.group().replace(",", ""), text
        )
    return re.sub(
        r"(?<![0-9.,])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9/])(?! [0-9])", lambda m: m.group().replace(" ", ""), text
    )
