"""The phrases that count as a leak, by the way they say it. Texts are lower case with single spaces.

Each family is written to let the innocent neighbour pass: "we are told that the answer is an integer", "the given
answer choices", "the correct answer is (B)" as a conclusion, "as stated in the problem, the car is red".
"""

import re

MAX_CHARACTERS = 200_000
"""Longer texts are searched up to here: model output must not decide how long the search takes."""

_PLAIN = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "*": " ", "_": " "})


def mentions_given_answer(text: str) -> str | None:
    """The first phrase of `text` that mentions a given answer ("since the answer is given"), or None.

    Letter case, line breaks, typographic quotes and Markdown emphasis make no difference; the phrase is returned in
    lower case with single spaces. A text that merely states an answer, or what its problem gives, is innocent.
    """
    plain = re.sub(r"\s+", " ", text[:MAX_CHARACTERS].translate(_PLAIN)).lower()
    found = [match for match in (pattern.search(plain) for pattern in LEAKS) if match]
    return min(found, key=lambda match: match.start()).group().strip() if found else None


_SORT = r"(?:(?:final|correct|right|exact|true|actual) )*"
_ANSWER = rf"{_SORT}answer"
_THE_ANSWER = rf"(?:(?:the|our|this|its|that) )?{_ANSWER}"

# What may follow "the answer" when a text only speaks of the answer's form or bounds.
_FORM = (
    r"(?! ?(?:choice|option|sheet|form)s?\b)"
    r"(?! (?:can|could|may|might|will|would|has|cannot)\b)"
    r"(?! (?:must|should) (?!be \\?[$(]?-?\\?\d))"
    r"(?! to (?!be\b))"
    r"(?! in (?!advance|the (?:problem|question|prompt)))"
    r"(?! is (?:an?|at|of|in|to|not|even|odd|positive|negative|less|greater|more|between|always|only|unique|either|"
    r"one|required|asked|wanted|written|expressed|rounded|the)\b)"
)
_NUMBER = r"\\?[$(]?-?\\?(?:\d|frac|sqrt|boxed)"
_GIVEN = r"(?:given|provided|supplied|stated|told|specified|indicated|mentioned|revealed)"
_SAYS = r"(?:states?|stated|says?|said|tells? us|told us|tells? me|gives?|gave|mentions?|specifies|indicates|provides?)"
_SOURCE = r"(?:problem|question|prompt|task|hint|exercise|statement|instructions?|user)"

_FAMILIES = {
    "an answer called given": [
        r"\b(?:given|provided|supplied|stated|known|reference|gold|ground[- ]truth|official|expected|intended|target"
        rf"|hinted) {_SORT}answers?\b{_FORM}",
        r"\b(?:given|provided|supplied) (?:final |correct )*result (?:of|is)\b",
        r"\b(?:reach|get|obtain|match(?:es)?|arrive at) the required answer\b",
        r"\b(?:answer|solution) key\b|\b(?:reference|official) solution\b",
        r"\bsolution (?:that (?:was|is) |which (?:was|is) )?(?:provided|supplied)\b",
        r"\bexpected result is\b",
    ],
    "the answer was given": [
        rf"\b{_ANSWER}(?: above)?,?(?: \(?(?:which|that))?(?:'s|,? as| is| was| has| had| being)?"
        rf"(?: already| also| just)?(?: been)? (?:{_GIVEN}|known)\b"
        rf"(?! (?:in (?!the (?:problem|question|prompt))|by|to (?!be\b|us|me|you)|as an?\b|options|choices))",
        rf"\banswer(?: [^ .;]{{1,16}})?,? (?:(?:that|which) )?(?:we|i)"
        rf" (?:are|were|was|have been|had been|'ve been) {_GIVEN}\b",
        rf"\b(?:given|provided|told|supplied)(?: to (?:us|me))? as the {_ANSWER}\b",
        rf"\b{_ANSWER} (?:is|was) (?:supposed|expected|meant|said|claimed|known|stated|required) to be\b",
        r"\banswer in the (?:question|prompt|problem)\b",
    ],
    "someone gave it": [
        r"\byou (?:have )?(?:already )?(?:gave|told|said|stated|mentioned|provided|supplied)\b|\byou have given\b",
        rf"\b(?:we|i)(?:'re|'ve been| are| was| were| have been| had been| have)(?: already| also)?"
        rf" (?:told|given|informed|handed|provided with|supplied with)(?: with)?(?: that)? {_THE_ANSWER}\b{_FORM}",
        r"\b(?:we|i)(?:'re| are| were) informed that the solution is\b",
        rf"\b(?:we|i)(?:'ve| have)? (?:been )?(?:told|informed) that the {_SORT}(?:result|answer) is {_NUMBER}",
        rf"\b{_SOURCE} (?:already |also )?{_SAYS}(?: that|,)? {_THE_ANSWER}\b{_FORM}",
        rf"\bit (?:is|was|has been)(?: already)? (?:{_GIVEN}|known|said)(?: that)? {_THE_ANSWER}\b{_FORM}",
        rf"\balready have {_THE_ANSWER}\b|\bhave {_THE_ANSWER} already\b",
        r"\bthe hint,? h:|\bh:\d",
    ],
    "knowing it": [
        rf"(?<!\bto )\b(?:know|knew|knowing|recall)(?: that| already)? {_THE_ANSWER}\b{_FORM}",
        rf"\bwithout (?:using|seeing|assuming|mentioning|relying on|referring to|looking at) {_THE_ANSWER}\b",
        rf"\b(?:not|never|n't) (?:see|know|have seen|have known) {_THE_ANSWER}\b",
        r"\bpretend (?:that )?(?:i|we) (?:do not|don't|did not|didn't)\b|\brely on having seen\b",
    ],
    "it serves as a premise": [
        rf"\b(?:since|because|given(?: that)?|if|assuming(?: that)?|but|however,?|as|suppose(?: that)?)"
        rf" the (?:final|correct|right) answer(?:,| is| was| of|:){_FORM}(?! (?:an?|at|of|in|to|not|even|odd|positive|"
        rf"negative|less|greater|required|asked)\b)",
        rf"\b(?:since|because|given(?: that)?|assuming(?: that)?) the answer (?:is|of|was) {_NUMBER}",
        rf"\b(?:according to|based on|using|consistent with|contradicts?|verify|confirm|justify|matches)"
        rf" the (?:correct|right|known) answer\b{_FORM}",
        r"\bagree(?:s|ing|ment)? with the (?:correct|right) answer\b",
        rf"\b(?:work(?:s|ing)? back(?:wards?)?|start(?:s|ing)?|reverse[- ]engineer(?:ing|ed)?) from the {_ANSWER}\b",
        r"\breverse[- ]engineer(?:ing|ed)?\b",
    ],
    "it is the goal": [
        r"\b(?:arrives? at|reach|gets? to|leads? to|to get|to obtain) the (?:correct|right) answer(?: of|,? which)\b",
        rf"\b(?:need|needs|have|want|must|try|going) (?:to )?(?:show|prove|derive|justify|explain)(?: that| why)?"
        rf" {_THE_ANSWER}(?: is {_NUMBER}|,? which| of\b)",
        rf"\bwhy {_THE_ANSWER} is {_NUMBER}",
        rf"\b(?:let us|let's|to|will) derive {_THE_ANSWER} {_NUMBER}",
        r"\bderivation (?:of|for) the (?:correct |final )*answer\b|\bderivation (?:that|which) (?:arrives|leads)\b",
        r"\bderivation (?:that )?(?:\w+ )?stands? on its own\b|\bsees? only the problem\b",
        rf"\b(?:need|want|have) (?:to )?(?:get|obtain|reach|have) \S+ as the {_ANSWER}\b",
    ],
    "as it was given": [
        rf"\bas (?:{_GIVEN}|noted|you \w+)(?: above| before| earlier| in the \w+| at the start)?,?"
        rf" (?:that )?the {_ANSWER} (?:is|was|equals)\b{_FORM}",
        rf"\banswer (?:is|to be|of|was|should be) [^.;,]{{1,24}},?"
        rf" (?:as {_GIVEN}|as required by|according to the (?:problem|prompt|question))\b",
    ],
}

LEAKS = tuple(re.compile(pattern) for patterns in _FAMILIES.values() for pattern in patterns)
"""Every pattern, compiled once."""
