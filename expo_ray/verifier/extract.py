# ruff: noqa: RUF001 - full-width punctuation of Chinese answers
"""Finding the answer in a response. Every function is linear in the response's length."""

import re
import tomllib
from collections import deque
from pathlib import Path

_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*+\{|\\(?!\\boxed).|[{}]", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\b")
_BARE_BOX = re.compile(r"\\boxed\s*+(\\?[^\s{}$.,;\\]+(?:\{[^{}]{0,200}\}){0,2})")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$)(\]\[.,;&]|\\q?quad|\\[\[\]() ,;])*+(?:\\text\s*+\{\s*+)?(?:and|or|und|et|和|或|与|，|、)?\s*+\}?"
    r"(?:[\s$(\[]|\\q?quad|\\[\[( ,;])*+"
    r"(?:\\?[A-Za-z](?:_\{?\w\}?)?\s*+=\s*+)?"
)
_ROUGHLY = re.compile(r"[\s$]*+(?:\\approx|≈|\\sim)[\s$]*+")
_PERCENT = re.compile(r"\s*+\$?\s*+(?:\\?%|per ?cent\b|pct\b)")
_NEGATIVE = re.compile(r"(?:^|[\s$=(:])-\s?$")
_NOT_BEFORE = re.compile(r"\bnot[\s$]*$", re.IGNORECASE)
_NOT_BEHIND = re.compile(r"[\s$]*+(?:is|was) (?:not|wrong|incorrect)\b")
_MOST_BOXES = 12
# How an answer is announced, language by language, what may stand between that and the answer, and where it ends.
_STATEMENTS = {
    name: "|".join(parts)
    for name, parts in tomllib.loads(Path(__file__).with_name("statements.toml").read_text(encoding="utf-8")).items()
}
_STATED = re.compile(
    r"(?:{announced})[\s*#]*+(?:{verbs}|(?<=\n)|(?=\$|\\[(\[]))[\s*]*+(?:(?:{fillers})[\s,]*+)*+".format_map(
        _STATEMENTS
    ),
    re.IGNORECASE,
)
_END = re.compile(_STATEMENTS["ends"], re.IGNORECASE)
_MATH = re.compile(
    r"\$\$([^$]{1,2000})\$\$|\$([^$]{1,2000})\$|\\\(([^\n]{1,2000}?)\\\)|\\\[(.{1,2000}?)\\\]", re.DOTALL
)
_NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?|-?\$?\.\d+")
_CHOICES = r"\(?([A-J])\)?"
_ONE_CHOICE = re.compile(rf"\W*+(?:option|choice|answer)?\W*+{_CHOICES}(?:\s*[).:,]+(?:[^A-Za-z]|\s).*)?\W*", re.DOTALL)
_RIGHT_CHOICE = re.compile(
    rf"\b(?:correct|right|best)\s+(?:option|choice|answer|one)\s+(?:is|:)\W*{_CHOICES}(?![A-Za-z'])"
    rf"|\b(?:choose|pick|select|go with)\W{{1,4}}{_CHOICES}(?=\W*$)"
    rf"|(?<![A-Za-z]){_CHOICES}\W{{0,4}} is (?:the )?(?:correct|right|best)(?: (?:option|choice|answer))?\b"
)
_NOT_BUT = re.compile(rf"not\W+{_CHOICES}\W+but\W+{_CHOICES}\W*", re.IGNORECASE)
_BRACKETED_CHOICE = re.compile(r"\(([A-J])\)")
_WORD = re.compile(r"[A-Za-z]{2,}")
_COMMAND = re.compile(r"\\[A-Za-z]+|\\text\{[^{}]*\}")
_HEADING = re.compile(r"\W*[A-Za-z]{3,}(?!\()[^$\\=]*")
_CALCULATOR = re.compile(r"<<[^<>]{0,200}>>")
_CONCLUDED = re.compile(r"(?:\b(?:is|are|equals|be|get|have|obtain|so)\s|=)\s*+\**([^\s=*][^=*]{0,60})\**\W*$")
THOUGHT_BEGINS, THOUGHT_ENDS = "<think>", "</think>"
MAX_BARE = 120
"""Characters of a response that is taken as an answer as it stands."""


def after_thinking(response: str) -> str:
    """What follows the last `</think>`, up to a thought that begins there and never ends: a thought is no answer."""
    return response.rpartition(THOUGHT_ENDS)[2].partition(THOUGHT_BEGINS)[0]


def boxed(response: str) -> str | None:
    r"""What stands in the last closed `\boxed{...}` (or `\fbox`); None without one.

    Boxes with no more than "and", "or", a comma or `x =` between them are one answer, a list. Of two with `\approx`
    between them the exact one counts. A minus before the box and a percent sign behind it belong to it.
    """
    boxes = _boxes(response)
    if not boxes:
        bare = _last(_BARE_BOX, response)
        return bare.group(1) if bare else None
    start, inside, end = boxes.pop()
    text = response[inside:end].strip()
    behind = _PERCENT.match(response, end + 1, end + 20)
    if behind and text[-1:].isdigit():
        text += "\\%"
    if text[:1].isdigit() and _NEGATIVE.search(response[max(0, start - 3) : start]):
        text = "-" + text
    found = [text]
    for earlier, inside, end in reversed(boxes[-_MOST_BOXES + 1 :]):
        between = response[end + 1 : start] if start - end < 62 else "too much"
        if _ROUGHLY.fullmatch(between):
            found.pop()
        elif not _BETWEEN_BOXES.fullmatch(between):
            break
        found.append(response[inside:end].strip())
        start = earlier
    return ", ".join(dict.fromkeys(reversed(found))) or None


def _boxes(response: str) -> list[tuple[int, int, int]]:
    """(start, start of the inside, end of the inside) of the closed boxes that hold no other box, in order.

    `not \\boxed{8}` and `\\boxed{8} is wrong` are left out.
    """
    opened: list[re.Match[str]] = []
    found: list[tuple[int, int, int]] = []
    first = _BOX.search(response)
    for match in _BOX_OR_BRACE.finditer(response, first.start()) if first else ():
        if match.group().endswith("{") and match.group() != "\\{":
            opened.append(match)
        elif match.group() == "}" and opened:
            box = opened.pop()
            if box.group() == "{" or (found and box.start() < found[-1][0]):
                continue
            before = response[max(0, box.start() - 8) : box.start()]
            if not _NOT_BEFORE.search(before) and not _NOT_BEHIND.match(response, match.end(), match.end() + 40):
                found.append((box.start(), box.end(), match.start()))
    return found


def stated(response: str) -> str | None:
    """What follows the last "answer is" or its like, to the end of its clause; None without one."""
    found = _last(_STATED, response)
    if found is None:
        return None
    rest = response[found.end() : found.end() + 4000].lstrip()
    if rest[:4].lower() == "not ":
        return rest.partition("\n")[0].strip(' *."`')
    parts, position = [], 0
    # "$5$ cm" keeps its unit, "$1$ and $2$" keeps both; "$7$ because ..." ends at the word.
    while (end := _END.search(rest, position)) is not None:
        math = _MATH.search(rest, position, end.start() + 2000)
        if math is None or math.start() >= end.start():
            break
        parts.append(rest[position : math.end()])
        position = math.end()
    parts.append(rest[position : end.start() if end is not None else len(rest)])
    text = "".join(parts).strip(' *_"`')
    # "Final Answer: The largest n is 34" announces a sentence.
    return (concluded(text) if _count_words(text) > 3 else None) or text or None


def hashed(response: str) -> str | None:
    """The rest of the line behind the last `####` that is no heading; None without one."""
    for part in reversed(response.rsplit("####", 20)[1:]):
        line, _newline, rest = part.strip().partition("\n")
        line = _CALCULATOR.sub("", line).strip()
        if line and not (rest.strip() and _HEADING.fullmatch(line)):
            return line
    return None


def tagged(response: str) -> str | None:
    """What stands in the last `<answer>...</answer>`; None without one."""
    before, closing, _after = response.rpartition("</answer>")
    _earlier, opening, inside = before.rpartition("<answer>")
    return inside.strip() or None if closing and opening else None


def last_math(response: str) -> str | None:
    """The last formula of the last line that is not empty, or the list that it ends; None without one."""
    line = response.rstrip().rsplit("\n", 1)[-1][-4000:]
    found = list(_MATH.finditer(line))
    if not found or "\\boxed" in found[-1].group():
        return None
    listed = [found.pop()]
    # "$7$ or $8$" is no answer 8.
    while found and re.fullmatch(r"[\s,;]*(?:and|or)?[\s,]*", line[found[-1].end() : listed[-1].start()]):
        listed.append(found.pop())
    return ", ".join(next(part for part in match.groups() if part) for match in reversed(listed))


def concluded(response: str) -> str | None:
    """What the last line ends in behind "is" or "=", or in bold: "so the probability is 1/6."; None for more words."""
    line = response.rstrip().rsplit("\n", 1)[-1][-400:]
    if "\\boxed" in line:
        return None
    found = _CONCLUDED.search(line) or re.fullmatch(r"\*\*([^*]+)\*\*\W*", line)
    return found.group(1).strip() if found and len(_WORD.findall(found.group(1))) <= 2 else None


def last_number(response: str) -> str | None:
    """The last number of the response; None without one."""
    found = _last(_NUMBER, response[-4000:])
    return found.group() if found else None


def bare(response: str) -> str | None:
    """The whole response where it is one short line that is an answer, not a sentence; else None."""
    text = response.strip(" \n\t`")
    if not text or len(text) > MAX_BARE or "\n" in text or "\\boxed" in text:
        return None
    words = _count_words(text)
    return text if not words or (words <= 3 and not re.search(r"\$|\b(?:is|are|equals)\b", text)) else None


def choice(text: str) -> str | None:
    """The one choice letter A to J of an answer: `C`, `(C) 12`, `not A, but B`; None for none or for several."""
    text = re.sub(r"\\(?:text|textbf|textrm|mathrm|mathbf|boxed)\b|[{}$*\\]", " ", text[:4000]).strip()
    either = _NOT_BUT.fullmatch(text)
    if either and either.group(1) != either.group(2):
        return either.group(2).upper()
    found = _ONE_CHOICE.fullmatch(text) or re.fullmatch(r"\W*\(?([a-j])\)?\W*", text)
    # An article or a pronoun is no second choice: "C: A triangle".
    lone = set(re.findall(r"(?<![A-Za-z])(?![AI] [a-z]{2})[A-J](?![A-Za-z'])", text))
    return None if found is None or lone - {found.group(1)} else found.group(1).upper()


def has_choice(text: str) -> bool:
    """Whether a choice letter stands alone anywhere in an answer."""
    plain = re.sub(r"\\(?:text[a-z]*|math[a-z]+|boxed)\b", " ", text[:4000])
    return "\\" not in plain and re.search(r"(?<![A-Za-z])[A-Ja-j](?![A-Za-z'])", plain) is not None


def last_line_choice(response: str) -> str | None:
    """The one letter that the last line is, calls correct or has in brackets; "I like it" has none."""
    line = response.strip().rsplit("\n", 1)[-1][-4000:]
    called = _last(_RIGHT_CHOICE, line)
    if called is not None:
        return next(letter for letter in called.groups() if letter)
    if len(line) <= MAX_BARE and (alone := choice(line)) is not None:
        return alone
    found = _last(_BRACKETED_CHOICE, line)
    if found is None or re.search(r"\b(?:not|neither|nor)\b", line, re.IGNORECASE):
        return None
    # The last of a list is no choice: "(A) or (B)".
    return None if re.search(r"\([A-J]\)[\s,;/]*(?:and|or)?[\s,]*$", line[: found.start()]) else found.group(1)


def toy(response: str) -> str | None:
    """The toy task's form `...;A:79.`: what stands between the last `A:` and the next full stop."""
    _before, mark, rest = response.rpartition("A:")
    answer, stop, _after = rest.partition(".")
    return answer if mark and stop and answer else None


def _count_words(text: str) -> int:
    return len(_WORD.findall(_COMMAND.sub(" ", text)))


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)
