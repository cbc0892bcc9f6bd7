"""Finds phrases in an explanation that give away that its writer was given the answer.

The patterns are grouped by what the phrase says, and match lower-case text with single spaces. Each lets similar but
innocent phrases pass: "we are told that the answer is an integer", "the given answer choices", "the correct answer is
(B)" as a conclusion, "as stated in the problem, the car is red".
"""

import re

MAX_CHARACTERS = 200_000
"""Longer texts are searched only up to here, so that model output cannot make the search slow."""

_PLAIN = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "*": " ", "_": " "})


def mentions_given_answer(text: str) -> str | None:
    """Returns the first phrase of `text` that mentions a given answer ("since the answer is given"), or None.

    Letter case, line breaks, typographic quotes and Markdown emphasis are ignored; the phrase is returned in lower
    case with single spaces. Stating an answer, or what the problem gives, is not a leak.
    """
    plain = re.sub(r"\s+", " ", text[:MAX_CHARACTERS].translate(_PLAIN)).lower()
    found = [match for match in (pattern.search(plain) for pattern in LEAKS) if match]
    return min(found, key=lambda match: match.start()).group().strip() if found else None


_SORT = r"(?:(?:final|correct|right|exact|true|actual) )*"
_ANSWER = rf"{_SORT}answer"
_RESULT = rf"{_SORT}(?:answer|result|solution|outcome)"
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
_MUST_BE = r"(?:should|must|has to|needs to|ought to) be"
_IS = rf"(?:is|was|equals|to be|{_MUST_BE}|will be|turns out to be)"
_GIVEN = r"(?:given|provided|supplied|stated|told|specified|indicated|mentioned|revealed)"
_SAYS = (
    r"(?:states?|stated|says?|said|tells? (?:us|me)|told (?:us|me)|gives?(?: us| me)?|gave(?: us| me)?|mentions?|"
    r"specifies|indicates|provides?(?: us with)?|supplies|shows?|claims?|reveals?|lists?)"
)
_SOURCE = r"(?:problem|question|prompt|task|hint|exercise|statement|instructions?|user)"
_ARE = r"(?:'re|'ve been| are| was| were| have been| had been)"
_SHOW = r"(?:show|prov|verify|confirm|demonstrat|justify|establish|ensur|explain|check|se)(?:e|ing|eing)?"

_FAMILIES = {
    "an answer called given": [
        rf"\bthe (?:expected|intended|correct) {_NUMBER}",
        r"\b(?:given|provided|supplied|stated|known|claimed|listed|reference|gold|ground[- ]truth|official|expected|"
        rf"intended|target|hinted) {_SORT}answers?\b{_FORM}",
        r"\b(?:given|provided|supplied) (?:final |correct )*result (?:of|is)\b",
        r"\b(?:expected|intended) (?:final |correct )*(?:results?|outcome|solution|output)\b",
        r"\b(?:reach|get|obtain|match(?:es)?|arrive at) the required answer\b",
        r"\b(?:answer|solution) key\b|\b(?:reference|official) solution\b",
        r"\bsolution (?:that (?:was|is) |which (?:was|is) )?(?:provided|supplied)\b|\bresult (?:provided|supplied)\b",
        r"\b(?:match(?:es)?|agrees? with|equals?) the (?:(?:given|provided|supplied) one"
        r"|one (?:that (?:was|is) )?(?:given|provided|supplied))\b",
    ],
    "the answer was given": [
        r"\banswer to (?:the|this|our) (?:problem|question) (?:is|was) (?:already )?(?:known|given|provided|stated)\b",
        rf"\b{_ANSWER}(?: above)?,?(?: \(?(?:which|that))?(?:'s|,? as| is| was| has| had| being)?"
        rf"(?: already| also| just)?(?: been)? (?:{_GIVEN}|known)\b"
        rf"(?! (?:in (?!the (?:problem|question|prompt))|by|to (?!be\b|us|me|you)|as an?\b|options|choices))",
        rf"\b{_ANSWER}(?: of)?(?: [^ .;]{{1,16}})?,? (?:that|which) (?:is|was|has been|had been) (?:{_GIVEN}|known)\b"
        r"(?! (?:by|as)\b)",
        rf"\banswer(?: [^ .;]{{1,16}})?,? (?:(?:that|which) )?(?:we|i){_ARE} {_GIVEN}\b",
        rf"\b(?:result|solution)(?: is| was|,)? (?:given|provided|stated) (?:as|is|was|to be) {_NUMBER}",
        rf"\b(?:(?:given|provided|told|supplied)(?: to (?:us|me))? as|is known to be) the {_ANSWER}\b",
        rf"\b{_ANSWER} (?:is|was) (?:supposed|expected|meant|said|claimed|known|stated|required) to be\b",
        r"\banswer in the (?:question|prompt|problem)\b",
    ],
    "someone gave it": [
        r"\bas (?:we|i)(?:'ve been| were| was| have been| had been) (?:told|given|informed)\b",
        rf"\b(?:according to|by|from|using|given|with) the hint\b|\bhint (?:is|was|says|states|gives) {_NUMBER}",
        r"\byou (?:have )?(?:already )?(?:gave|told|said|stated|mentioned|provided|supplied)\b|\byou have given\b",
        r"\byou(?:'re| are| were) (?:absolutely |quite |completely )?(?:right|correct)(?=[.,;:!]| that\b| about\b|$)",
        r"\bapologi[sz]e\b[^?]{0,80}\banswer\b|\b(?:thank you|thanks) for (?:pointing|providing|giving|correcting)\b",
        rf"\b(?:we|i)(?:{_ARE}| have)(?: already| also)?"
        rf" (?:told|given|informed|handed|provided with|supplied with)(?: with)?(?: that)? {_THE_ANSWER}\b{_FORM}",
        rf"\b(?:we|i){_ARE}(?: already| also)? (?:told|given|informed)(?: that)? the {_RESULT} {_IS} {_NUMBER}",
        rf"\b(?:we|i){_ARE} informed that the solution is\b",
        rf"\b(?:we|i) (?:been )?(?:told|informed) that the {_RESULT} is {_NUMBER}",
        rf"\b{_SOURCE} (?:already |also )?{_SAYS}(?: that|,)? {_THE_ANSWER}\b{_FORM}",
        rf"\bit (?:is|was|has been)(?: already)? (?:{_GIVEN}|known|said)(?: that)? {_THE_ANSWER}\b{_FORM}",
        rf"\balready have {_THE_ANSWER}\b|\bhave {_THE_ANSWER} already\b",
        r"\bthe hint,? h:|\bh:\d",
    ],
    "knowing it": [
        rf"\bknow(?:ing)? (?:that )?(?:it|this|the result|the final \w+) {_MUST_BE} {_NUMBER}",
        r"\b(?:with|keeping|having|bearing) (?:the|this|that|our) (?:correct |final |known )*answer in mind\b",
        r"\b(?:aware (?:of|that)|now that we have) the (?:correct |final |known )*answer\b",
        rf"(?<!\bto )\b(?:know|knew|knowing|recall)(?: that| already)? {_THE_ANSWER}\b{_FORM}",
        rf"\b(?:know|knew|knowing|recall)(?: that| already)? (?:the|our) (?:{_RESULT}|final (?:value|number|total|sum))"
        rf" {_IS} {_NUMBER}",
        rf"\bwithout (?:using|seeing|assuming|mentioning|relying on|referring to|looking at) {_THE_ANSWER}\b",
        rf"\b(?:not|never|n't) (?:see|know|have seen|have known) {_THE_ANSWER}\b",
        r"\bpretend (?:that )?(?:i|we) (?:do not|don't|did not|didn't)\b|\brely on having seen\b",
    ],
    "it serves as a premise": [
        rf"\b(?:since|because|given(?: that)?|but|however,?) the (?:correct|right|true|actual)"
        rf" (?:result|solution|value|total) {_IS} {_NUMBER}",
        r"\b(?:since|because|given(?: that)?|why) (?:the )?(?:option|choice|answer) \(?[a-e]\)? is (?:the )?correct\b",
        rf"\b(?:since|because|given(?: that)?|if|assuming(?: that)?|but|however,?|as|suppose(?: that)?)"
        rf" the (?:final|correct|right) answer(?:,| is| was| of|:){_FORM}(?! (?:an?|at|of|in|to|not|even|odd|positive|"
        rf"negative|less|greater|required|asked)\b)",
        rf"\b(?:since|because|given|if|assum(?:e|ing)|suppos(?:e|ing))(?: that)? the {_ANSWER} (?:is|of|was) {_NUMBER}",
        rf"\b(?:but|however|since|because|as|yet|although),? the (?:final |correct |right )*(?:answer|result)"
        rf" {_MUST_BE} {_NUMBER}",
        rf"\b(?:correct|right|true|actual) answer {_MUST_BE} {_NUMBER}",
        r"\b(?:since|because|as) [^ ]{1,16} (?:is|was) the (?:correct|right|given|expected|known) answer\b",
        rf"\b(?:according to|based on|using|consistent with|contradicts?|verify|confirm|justify|matches)"
        rf" the (?:correct|right|known) answer\b{_FORM}",
        r"\b(?:agree(?:s|ing|ment)? with|(?:different|differs?) from) the (?:correct|right) answer\b",
        r"\b(?:correct|right) answer (?:does not|doesn't) match\b",
        r"\b(?:verify|check|compare|confirm)(?: (?:this|it|that|our \w+))? (?:with|against)"
        r" the (?:correct|right|known) answer\b",
        r"\b(?:match(?:es|ed|ing)?|coincides? with|aligns? with|in line with) the (?:(?:correct|right|known|provided|"
        r"supplied|stated|official) (?:final )?(?:answer|result|solution|outcome|value)\b"
        r"|answer\b(?! ?(?:choices?|options?|sheet|form|to|from|in|above|of|obtained|found|we|i)\b))",
        rf"\b(?:work(?:s|ing)? back(?:wards?)?|start(?:s|ing)?|reverse[- ]engineer(?:ing|ed)?) from the {_ANSWER}\b",
        r"\breverse[- ]engineer(?:ing|ed)?\b",
    ],
    "it is the goal": [
        rf"\bhow (?:do|did|can|could) (?:we|you|they|i) (?:get|obtain|reach|arrive at|end up with) {_NUMBER}",
        rf"\b(?:we|i) (?:need|want|should|must|have|are supposed|were supposed)(?: to)? (?:end up with|arrive at|match)"
        rf" {_NUMBER}",
        r"\banswer (?:that )?we (?:want|wanted|needed|expect|expected|are supposed to|were supposed to)\b",
        r"\b(?:result|value|number|total) (?:that )?we (?:expected|were (?:told|supposed|expecting)|are supposed)\b",
        r"\bas instructed\b|\bper (?:your|the) (?:request|instructions?)\b",
        rf"\bhow (?:the|this|that) {_ANSWER}(?: of)?(?: [^ .;]{{1,16}})? (?:is|was|can be|could be) "
        r"(?:obtained|reached|derived|found|explained)\b",
        r"\bhow (?:we|to|one|you|they)(?: can| could)? (?:get|got|arrived?|reach|obtain|come)(?: at| to)? "
        r"(?:the (?:correct|right|given)|this|that) answer\b",
        rf"\b(?:correct|right) answer,? (?:of )?{_NUMBER}[^ ]{{0,16}} (?:is|was|can be|comes|follows|makes|arises)\b",
        r"\b(?:correct|right) answer (?:comes from|can be (?:obtained|reached|derived|explained|seen)|makes sense)\b",
        rf"\bshould (?:have (?:been|got|gotten|obtained)|come out (?:to|as)) {_NUMBER}",
        rf"\bexpect(?:ed|ing)? (?:to (?:get|obtain)|the (?:answer|result|total)(?: to be)?) {_NUMBER}",
        r"\bindeed the (?:correct|right|given|expected|desired|stated) answer\b",
        r"\b(?:explanation|justification|reasoning|rationale|proof) (?:for|of|behind|why|that) the"
        rf" (?:correct |given |known |final )+(?:answer|result)\b|\bproof that the answer {_IS}",
        r"\b(?:arrives? at|reach|gets? to|leads? to|to get|to obtain) the (?:correct|right) answer(?: of|:|,? which)\b",
        rf"\b(?:get|obtain|reach|achieve|arrives? at|leads? (?:us )?to) the (?:correct|right) (?:final )?answer:?"
        rf" {_NUMBER}",
        rf"\b(?<!gives )the (?:correct|right) answer of {_NUMBER}|\bdesired answer of {_NUMBER}",
        r"\bachieve the (?:final |correct |desired )*answer\b",
        rf"\b(?:need|have|want|try|trying|how|way) (?:\w+ ){{0,2}}to (?:get|arrive|come|lead)(?: to| at)? the {_ANSWER}"
        rf"(?: of)? {_NUMBER}",
        rf"\b(?:(?:to|let us|let's|can|will|must|should|now|by) {_SHOW}|confirms|verifies)(?: that| why| how| whether)?"
        rf" the (?:correct|right|true|actual|known) (?:final )?(?:answer|result|value|solution) {_IS}\b",
        rf"\bto {_SHOW}(?: that| why| how)? the {_RESULT} {_IS}(?: indeed| in fact| actually)? {_NUMBER}",
        rf"\b(?:verify|confirm|justify|verifies|confirms|justifies)(?: that)? the {_ANSWER} (?:is|was) indeed\b",
        rf"\b(?:justify|justifies|justifying|explain) the {_ANSWER}(?: of)? {_NUMBER}",
        rf"\b(?:for|make|so that|such that|ensures? that) the {_ANSWER} (?:is|be|to be|equals|to equal) {_NUMBER}",
        rf"\b(?:supposed|meant) to (?:get|obtain|reach|find|arrive at|end up with|give) {_NUMBER}",
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
        rf"\banswer (?:is|to be|of|was|{_MUST_BE}) [^.;,]{{1,24}},?"
        rf" \(?(?:as {_GIVEN}|as required by|according to the (?:problem|prompt|question))\b",
    ],
}

LEAKS = tuple(re.compile(pattern) for patterns in _FAMILIES.values() for pattern in patterns)
"""Every pattern, compiled once."""
