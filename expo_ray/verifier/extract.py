"""Finding the answer in a response. Every function is linear in the response's length."""

import re

_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s+(\\?[^\s{}$.,;]+)")
_ANSWER_IS = re.compile(r"\banswer\s*(?:\*\*)?\s*(?:is|:|=)\s*(?:\*\*)?\s*:?\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$)|\n")
_MATH = re.compile(
    r"\$\$([^$]{1,2000})\$\$|\$([^$]{1,2000})\$|\\\(([^\n]{1,2000}?)\\\)|\\\[(.{1,2000}?)\\\]", re.DOTALL
)
_NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?|-?\$?\.\d+")
_CHOICE = re.compile(r"(?<![A-Za-z])\(?([A-J])\)?(?![A-Za-z'])")
_BRACKETED_CHOICE = re.compile(r"\(([A-J])\)")
_TAGGED = re.compile(r"<answer>(.{0,4000}?)</answer>", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]{2,}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
MAX_BARE = 120
"""Characters of a response that is taken as an answer as it stands."""


def boxed(response: str) -> str | None:
    r"""What stands in the last closed `\boxed{...}` (or `\fbox`); None without one."""
    opened: list[int | None] = []
    best: tuple[int, int] | None = None
    for match in _BOX_OR_BRACE.finditer(response):
        token = match.group()
        if token.startswith(("\\boxed", "\\fbox")) and token.endswith("{"):
            opened.append(match.end())
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened:
            start = opened.pop()
            if start is not None and (best is None or start > best[0]):
                best = (start, match.start())
    if best is not None:
        return response[best[0] : best[1]].strip() or None
    bare = _last(_BARE_BOX, response)
    return bare.group(1) if bare else None


def stated(response: str) -> str | None:
    """What follows the last "answer is" or "answer:", to the end of its sentence; None without one."""
    found = _last(_ANSWER_IS, response)
    if found is None:
        return None
    rest = response[found.end() : found.end() + 4000].lstrip()
    math = _MATH.match(rest)
    if math is not None:
        after = _SENTENCE_END.split(rest[math.end() :], maxsplit=1)[0]
        # "$5$ cm" keeps its unit; "$1$ and $2$" keeps both.
        return (rest[: math.end()] + after).strip(" *") or None
    return _SENTENCE_END.split(rest, maxsplit=1)[0].strip(" *") or None


def hashed(response: str) -> str | None:
    """The rest of the line behind the last `####`; None without one."""
    _before, mark, rest = response.rpartition("####")
    return (rest.strip().split("\n", 1)[0].strip() or None) if mark else None


def tagged(response: str) -> str | None:
    """What stands in the last `<answer>...</answer>`; None without one."""
    found = _last(_TAGGED, response)
    return found.group(1).strip() or None if found else None


def last_math(response: str) -> str | None:
    """The last formula of the last line that is not empty; None without one."""
    lines = response.rstrip().rsplit("\n", 1)
    found = _last(_MATH, lines[-1][-4000:])
    if found is None or "\\boxed" in found.group():
        return None
    return next((part for part in found.groups() if part), None)


def last_number(response: str) -> str | None:
    """The last number of the response; None without one."""
    found = _last(_NUMBER, response[-4000:])
    return found.group() if found else None


def bare(response: str) -> str | None:
    """The whole response where it is one short line that is an answer, not a sentence; else None."""
    text = response.strip()
    if not text or len(text) > MAX_BARE or "\n" in text or "\\boxed" in text:
        return None
    words = _WORD.findall(_COMMAND.sub(" ", text))
    return text if len(words) <= 3 else None


def choice(text: str) -> str | None:
    """The first choice letter A to J that stands alone in an answer; None without one."""
    found = _CHOICE.search(re.sub(r"\\(?:text|textbf|mathrm|mathbf|boxed)\b", " ", text[:4000]))
    return found.group(1) if found else None


def last_line_choice(response: str) -> str | None:
    """The letter where the last line is one, or the last one in brackets on it; "I like it" has none."""
    line = response.strip().rsplit("\n", 1)[-1][-4000:]
    alone = re.fullmatch(r"\W*([A-J])\W*", line)
    found = alone or _last(_BRACKETED_CHOICE, line)
    return found.group(1) if found else None


def toy(response: str) -> str | None:
    """The embedded world's form `...;A:79.`: what stands between the last `A:` and the next full stop."""
    _before, mark, rest = response.rpartition("A:")
    answer, stop, _after = rest.partition(".")
    return answer if mark and stop and answer else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for match in pattern.finditer(text):
        found = match
    return found
