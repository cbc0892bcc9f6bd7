"""Finds phrases in an explanation that give away that its writer knew the answer beforehand.

A phrase leaks when a noun for the answer meets a sign of foreknowledge: an adjective ("the provided answer"), a verb of
telling or knowing ("we were told that the answer is 5"), a comparison ("matches the correct answer"), a proof of it
("to show that the correct answer is 24"), its use as a premise ("but the answer is 24") or as a goal ("to get the
desired answer of 24"). The vocabulary is in `_WORDS`, the ways to combine it in `_FAMILIES`. Values ("24", "$x^2$")
are replaced by `#` before the search, so a rule can ask for one.

Innocent wording is erased first (`_INNOCENT`) or excluded by a rule: "the answer choices", "we know that the answer
is positive", "find the correct answer", "so we know that the answer is 5".
"""

import re

PIECE, OVERLAP = 60_000, 2_000
"""Characters that are searched at a time, and those that two pieces share, so that a phrase at a seam is found."""

_PLAIN = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "*": " ", "_": " ", "#": " "})
_VALUE = re.compile(
    r"\\\((?:(?!\\\)).){1,100}\\\)|\\\[(?:(?!\\\]).){1,100}\\\]"  # \( \) and \[ \]
    r"|\$(?! )(?:(?! [a-z]{3,} )[^$]){1,120}(?<! )\$|\\boxed\{(?:[^{}]|\{[^{}]*\}){1,80}\}"
    r"|\(?(?:option|choice) \(?[a-e]\b\)?\)?|\([a-e]\)|(?<![\w'])[b-e](?![\w'])"
    r"|(?:(?<![\w'])[a-z] ?= ?)?[-+]?\\?\$?[-+]?(?<![\w.])\d(?:[\d,/:]*\d)?(?:\.\d+)?(?:\\?%)?"
    r"|\b(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred)\b"
    r"(?! (?:of|more|has|is|that|which|by|given|provided|stated|supplied)\b)"
)

_WORDS = r"""
the: (?:(?:the|our|this|its|that|your|an?|his|her) )?
sort: (?:(?:final|correct|right|true|actual|exact|numerical|proper|same|overall|total) ){0,4}
right: (?:final )?(?:correct|right|true|actual|proper)(?: final| numerical)?
answer: <sort>answer\b(?! ?(?:choices?|options?|sheets?|forms?|blanks?|box)\b)
result: <sort>(?:answer|result|solution|outcome|conclusion)\b
total: <sort>(?:answer|result|solution|outcome|conclusion|value|number|sum|amount|figure|output)\b
form: (?! ?(?:choice|option|sheet|form)s?\b)(?! (?:can|could|may|might|will|would|has|have|cannot|needs?
    |depends)\b)(?! (?:must|should) (?!be (?:exactly )?#))(?! to (?!be\b|us\b))(?! in (?!advance
    |the (?:problem|question|prompt)))(?! (?:is|are|was) (?:an?|at|of|in|to|not|even|odd|positive|negative|less
    |greater|more|between|always|only|unique|either|required|asked|wanted|written|expressed|rounded|the|simply
    |just|whether|independent)\b)
must: (?:(?:should|must|has to|needs to|ought to|had to) be|is supposed to be)
is: (?:is|was|equals|to be|<must>|will be|turns out to be|comes out (?:to|as|at))(?: indeed| really| in fact
    | actually)?
known: (?:given|provided|supplied|stated|known|claimed|listed|reference|gold(?:en)?|ground[- ]truth|official
    |expected|intended|target(?:ed)?|hinted|specified|mentioned|prescribed|predetermined|indicated
    |suggested|aforementioned|proposed|established|pre-?determined|anticipated)
told: (?:given|provided|supplied|stated|told|said|specified|indicated|mentioned|revealed|informed|shared
    |disclosed|handed|listed|hinted|presented with)
says: (?:states?|stated|says?|said|tells?|told|gives?|gave|mentions?|mentioned|specif(?:y|ies|ied)
    |indicate[sd]?|provide[sd]?|suppl(?:y|ies|ied)|shows?|showed|claim(?:s|ed)?|reveal(?:s|ed)?|lists?|suggest(?:s
    |ed)?|confirms?)
source: (?:problem|question|prompt|task|hint|exercise|statement|instructions?|user|teacher|textbook|book
    |assignment|answer key|(?:given|provided) information|problem setter|author)
are: (?:'re|'m|'ve been|'d been| are| am| was| were| have been| had been| have| had| being)
adverbs: (?: (?:already|also|just|only|now|previously|explicitly|clearly|initially|originally|then|both))*
show: (?:show|prov|verify|confirm|demonstrat|justify|establish|ensur|explain|check|se|understand)(?:e|ing|eing)?
match: (?:match(?:es|ed|ing)?|agree(?:s|d|ing|ment)?|(?:in)?consistent|coincid(?:es?|ed|ing)|align(?:s|ed|ing)?
    |in line|same as|identical to|equal(?:s|ing)?(?: to)?|differ(?:s|ent|ed|ing)?|contradict(?:s|ed|ing)?
    |correspond(?:s|ing)?|conflict(?:s|ing)?|compar(?:e|es|ed|ing)(?: (?:it|this|that|our \w+))?|in accordance
    |fits?|tall(?:y|ies)|(?:verify|check|confirm)(?: (?:it|this|that|our \w+))? (?:with|against)|according
    |contrary|close)(?: exactly| perfectly| precisely| up)?(?: (?:with|to|from|against))?
reach: (?:get(?:s|ting)?(?: to)?|got(?: to)?|reach(?:es|ed|ing)?|arriv(?:es?|ed|ing) at|obtain(?:s|ed|ing)?
    |lead(?:s|ing)?(?: us)? to|led(?: us)? to|achiev(?:es?|ed|ing)|com(?:es?|ing) (?:to|up with)|end(?:s
    |ed)? up with|deriv(?:es?|ed|ing)|yield(?:s|ed|ing)?|result(?:s|ed|ing)? in|produc(?:es?|ed|ing)|support(?:s|ed
    |ing)?)
because: (?:since|because|given(?: that)?|if|assum(?:e|ing)(?: that)?|suppos(?:e|ing)(?: that)?|but|however
    |although|though|while|whereas|knowing(?: that)?|yet|considering(?: that)?)
"""

_INNOCENT = r"""
\b(?:gave|given by|got|had|has|knew|marked|chose|guessed|picked|missed|scored) the (?:correct|right) answer\b
    (?! (?:provided|given|of #|in advance))
\b(?:each|every|per|any|no|one|only|an?|another|all|these) (?:correct|right) answers?\b(?! (?:provided|given))
\b(?:choos\w+|select\w*|guess\w*|pick\w*|mark\w*|identify|find\w*|determin\w+|calculat\w+|giv(?:e|es|ing)
    |comput\w+|write|wrote|chose|knows?) (?:out )?the (?:correct|right) answer\b(?!,? (?:of )?#| provided| given
    | (?:to be|as) #)
\b(?:conclude|means?|see|follows|deduce|implies|say|so|then|now|thus|therefore|hence),? (?:that )?(?:(?:we|i)(?: can
    | now)* (?:know|see|say|conclude)(?: that)? )?<the><answer> (?:is|was|must be|should be
    |will be)\b(?! [^.;]{0,16},? \(?as )
\b(?:so|then|now|thus|therefore|hence|finally),? (?:we|i)(?: can| now)* know\b
\bnot the (?:correct|right) answer\b|\b(?:our|this|the) answer is (?:correct|right|reasonable)\b
    |\banswer (?:choice|option|sheet|blank|box)s?\b
"""

_RULES = r"""
# an answer called given
\b<known> <answer>(?! (?:formats?|in (?:terms|simplest)))
\b(?:expected|intended|supplied|official|reference|stated|target|claimed|anticipated|predetermined|prescribed
    |hinted) <sort>(?:results?|outcome|solution|output|conclusion)\b
\b(?:given|provided|known) <sort>(?:result|solution|outcome|conclusion)(?= (?:of|is|was)(?: indeed)? (?:#|correct
    |right|wrong|incorrect|valid)|[,.;:!)]| (?:and|so)\b)|\b(?:given|provided|known) (?:final|correct
    |right) (?:result|solution|outcome|conclusion)\b
\b(?:given|provided|known|expected|stated|intended|target|correct) final (?:value|number|total|sum|amount|count)\b
\bthe (?:expected|intended|correct) #
\b(?:<match>|from|by|in|per|using|check(?:ing)?) the (?:answer|solution) key\b|\b(?:answer|solution) key (?:is
    |has|gives|says|lists)\b|\b(?:correct|right) answer provided\b|\bmodel answer\b
\b<match> the (?:(?:given|provided|supplied|expected) one|one (?:that )?(?:(?:was|is|we were|you) )?(?:given
    |provided|supplied|gave))\b
\b<match> what (?:(?:is|was|were|has been|had been|we|i|you|the <source>)<are>?<adverbs> )?(?:told|stated|said
    |provided|supplied|gave|expected)\b|\bwhat (?:was|we were) (?:told|provided|stated|expected)(?=[.,;!])
# the answer was given
\banswer to (?:the|this|our) (?:problem|question) (?:is|was) (?:already )?(?:known|given|provided|stated)\b
\b<answer>(?: above)?(?:,? (?:of |is |was |which is |being |\()?#\)?)?,? \(?(?:(?:which|that|as)(?: it)? )?(?:(?:'s
    |is|was|has|had|being|having) )?(?:already |also |just |indeed |not )?(?:been )?(?:<told>
    |known)\b(?! (?:in (?!the (?:problem|question|prompt)|advance)|by (?!the (?:problem|question|prompt|user|task)
    |you)|to (?!be\b|us|me|you)|as an?\b|as (?:<the>)(?:ratio|sum|product|fraction)|options|choices|that\b|when|if
    |only))
\b<total>(?: of)?(?: #)?,? (?:(?:that|which|as) )?(?:we|i|you)(?:<are><adverbs> (?:<told>|expecting
    |looking for #)|<adverbs> (?:gave|said|mentioned|provided|supplied|told|stated))\b|\banswer (?:that )?you(?:'re
    | are)? (?:looking for|want|expect)(?:ed)?\b
\b(?:result|solution|value|total)(?: is| was|,)? (?:given|provided|stated|said|claimed|known) (?:as|is|was|to be) #
\b(?:(?:given|provided|told|supplied|stated)(?: to (?:us|me))? as|is known to be) the <answer>\b
\b<answer> (?:is|was) (?:supposed|expected|meant|said|claimed|known|stated|required|given|believed
    |intended) (?:to be\b|as #)
\banswer (?:that (?:is|was) )?(?:in|from) the (?:question|prompt|problem|hint|book|textbook)\b
# someone tells or knows it
(?<!\bto )(?<!(?:not|n't) )\b(?:know|knew|known|knowing|aware(?: of)?|recall|given|told|informed|said|stated
    |provided with|supplied with|mentioned|specified|handed|hinted|revealed|shared|granted
    |remember(?:ing)?)(?: (?:to )?(?:us|me|you))?(?: (?:already|beforehand|in advance|above|earlier|here
    |from the \w+(?: statement)?))?,?(?: (?:that|what|as|by|from))* (?:(?:the|our|this|its|your|that) )?<answer><form>
(?<!\bto )\b(?:know|knew|known|knowing|aware|recall|told|informed|said|given|stated|remember)(?: (?:us
    |me))?(?: already)?(?: that)? (?:the|our|this|it)(?: <total>| total \w+)? (?:<must>|ends? up (?:as|being)) #
\b(?:know|knew|knowing|told|informed|given|aware|said|stated)(?: already)?(?: that)? (?:the|our) <result>(?: we want
    | here)? <is> #
\b(?:know|knew|knowing|told|informed|given|said|stated)(?: already)?(?: that)? (?:the|our) (?:final|correct
    |right) (?:value|number|total|sum|amount|count|figure)(?: of \w+)? <is> #
\b<source>(?: itself| statement| already| also| above| clearly| explicitly)* <says>(?: (?:to )?(?:us
    |me)(?: with)?)?(?: that|,|:)? <the><answer><form>
\b<source>(?: itself| statement| already| also)* <says>(?: that)? # (?:as|is|to be) (?:the|our|its) <answer>\b
\b(?:according to|as per) the (?:problem|prompt|question|task|instructions?)
    (?: statement)?,? (?:that )?the <answer> is #
\b(?:given|told|said|provided|stated|take|taking|accept|accepting|suppose|known)(?: that)? # (?:as|is|was
    |to be) the <answer>\b
\b(?:statement|claim|fact|assertion|premise|information|assumption|accept|trust|established(?: \w+)?|proven
    |believe) that the <answer> <is>
\b<source>(?: statement)?<adverbs> (?:has|comes with|includes|contains|had|carries) (?:the|its|our) <answer>\b<form>
    |\b<source>'s <known>? ?<answer>\b
\bground[- ]truth\b|(?:^|[.,;:] )hint:|\b(?:based on|given|from) the <answer> being #
\banswer (?:that (?:is|was) )?(?:shown|printed|displayed|at the top|written (?:in|at|on) the (?:prompt|problem
    |question|top))\b
\byour <answer>(?: of| is| was|,)? (?:#|correct|right|wrong|incorrect)
\b<source>(?: itself| statement| already| also| above| clearly| explicitly)* <says>(?: (?:us|me))?(?: that)? (?:the
    |our) (?:final |correct |right )+(?:result|solution|value|total|outcome)\b
\b(?:already|now that we) (?:have|know) <the><answer>\b|\bhave <the><answer> already\b
\bas (?:we|i)(?:'ve been| were| was| have been| had been)<adverbs> (?:told|given|informed)\b
\b(?:according to|by|from|using|given|with|per) the hint\b|\bhint (?:is|was|says|states|gives|tells) (?:us )?#
\byou(?:'ve| have| had)?<adverbs> (?:gave|given|told|said|stated|mentioned|provided|supplied|suggested|indicated)\b
\byou(?:'re| are| were) (?:absolutely |quite |completely )?(?:right|correct)(?=[.,;:!]| that\b| about\b|$)
\bapologi[sz]e\b[^?]{0,80}\b(?:answer|confusion|mistake|error)\b|\b(?:thank you|thanks) for (?:pointing
    |providing|giving|correcting)\b
\b(?:with|keeping|having|bearing) (?:the|this|that|our) <sort>(?:known )?answer in mind\b
\bwithout (?:\w+ )?(?:using|seeing|assuming|mentioning|relying on|referring to|looking at|revealing|stating
    |knowing) (?:that )?<the>(?:given )?<answer>\b
\b(?:not|never|n't|avoid) (?:to )?(?:see|seen|know|known|have seen|mention|mentioning|reveal|refer to|use|write
    |say|state) (?:that )?(?:the|an|this|our) <sort>answer\b(?! yet)
\b(?:not|never|n't) (?:given|told|shown|provided with) (?:the|an) <answer>\b
\bwithout (?:saying|mentioning|revealing|stating) (?:that )?(?:it|this|an? answer|the <answer>) (?:is|was
    |has been) (?:<told>|known)\b
\bpretend (?:that )?(?:i|we) (?:do not|don't|did not|didn't)\b|\brely on having seen\b|\bthe hint,? h:|\bh:#
# it is compared with the answer
\b<match> (?:the|your|this|that|our) (?:(?:<right>|known|expected|stated|official|required|desired) <total>
    |(?:original|above|given|provided|supplied) <result>)
\b<match> the (?:above |final )?answer(?= ?[.,;:!)]| ?$| #| (?:of|that|which|is|was|and|but|so) )(?! (?:that
    |which) (?:we|i) (?:found|got|obtained))(?! of (?:the|part))
\b(?:confirm|verif|justif|contradict|support|prov)(?:y|ies|ied|ying|es?|s|ed|ing) (?:the|your|this) (?:<right>
    |known|given|provided) <result>\b<form>
\b(?:based on|using|from|with|by|per|via|against|for|behind|towards?) the (?:<right>|known) answer\b<form>(?! by\b)
\b(?:correct|right) answer (?:does not|doesn't|did not|didn't) (?:match|agree)\b|\b(?:answer|result|calculation
    |value|total) (?:does not|doesn't) match(?=[.,;!])|\b(?:result|solution) (?:given|provided|supplied
    |stated)(?= (?:in the (?:prompt|hint)|by (?:the (?:problem|prompt|user)|you)|above|here|to us)\b)
    |\b<match> the solution(?=[.,;!)])|\b<match> the solution (?:given|provided)
\bindeed (?:equal to )?the (?:correct|right|given|expected|desired|stated|known|provided)(?: final)? (?:answer
    |result|solution|value)\b
\b(?:not|instead of|rather than)(?: equal to)? #,? (?:which is )?the <right> answer\b|\b(?:as
    |is not) #, the <right> answer\b
\bdiscrepancy\b[^.?!]{0,60}\banswer\b
# it is a premise
\b<because>,? (?:the|our) <right> (?:answer|result|solution|value|total)(?: here| to (?:this|the) \w+)? <is>:? #
\b<because>,? (?:the|our) <answer>(?:,| is| was| of|:| to be)* #
\b(?:since|because|given(?: that)?|why|but|however,?) (?:the )?(?:answer )?# (?:is
    |was)(?: indeed)?(?: the)? (?:correct|(?:correct|right|given|expected|known|final|stated) answer)\b
\b(?:but|however|since|because|as|yet|although|though),? (?:the|our|it|this)(?: <result>)? (?:<must>) (?:exactly )?#
\b<right> answer <must> #|\bthe (?:actual|true|real) answer is #
\bcorrect answer is #,? (?:but|so (?:i|we|let)|yet|whereas|not #)
(?<!find )(?<!found )(?<!get )(?<!got )\bthe <answer> to be #
\b(?:work|reason|go|count|trac|start|begin|solv|mov|comput|calculat)(?:s|e|es|ed|ing|ning)?(?: back| backwards?
    | in reverse| out)*,? (?:from|with) (?:the|our|this|that) (?:known |given |desired |required )?<answer>\b
\b(?:work|reason|count)(?:s|ed|ing)? (?:back|backwards?|in reverse),? from the (?:result|solution)
\breverse[- ]engineer(?:ing|ed)?\b
# it is the goal
\b(?<!gives )(?<!giving )the <right> answer,? (?:of |\(|which is )?#|\b(?:correct|right) (?:total|value|number
    |amount|sum|figure|result|solution)(?: of|,) #|\b(?:desired|required|wanted) (?:final )?(?:answer|result) of #
\bhow (?:do|did|can|could|does) (?:we|you|they|i|one|it) (?:get|obtain|reach|arrive at|end up with|come to) (?:#
    |(?:that|this|the <right>) answer)
\bhow (?:we|to|one|you|they|i|it)(?: can| could| might| should)? <reach>(?: at| to)? (?:(?:the|that
    |this) (?:<right> |given |final |known )?answer\b|#(?= |[.,;:]))
\bhow (?:the|this|that) <answer>(?:,? (?:of )?#,?)? (?:is|was|can be|could be|comes) (?:obtained|reached|derived
    |found|explained|arrived|calculated|about)\b
\b(?:we|i) (?:need|want|should|must|have|are supposed|were supposed)(?: to)? (?:end up with|arrive at|match) #
    |\b(?:we|i) (?:expected|aim to (?:derive|get|reach|show)) #
\banswer (?:that )?we (?:want|wanted|needed|expect|expected|are supposed to|were supposed to|should (?:get|have))\b
\b(?:result|value|number|total) (?:that )?we (?:expected|were (?:told|supposed|expecting|given)|are supposed
    |should (?:get|have))\b
\bas instructed\b|\bper (?:your|the) (?:request|instructions?)\b
\b<right> answer (?:comes from|follows from|arises|makes sense|can be (?:obtained|reached|derived|explained|seen
    |found))\b
\bshould (?:have (?:been|got|gotten|obtained)|come out (?:to|as)) #
\bexpect(?:ed|ing)? (?:to (?:get|obtain)|the (?:answer|result|total)(?: to be)?) #
\b(?:value|number|total|result|answer|sum) (?:that )?(?:we|i)<are> (?:asked|supposed|required|told|meant
    |instructed) to (?:reach|get|obtain|arrive at|match|justify|explain|confirm|verify|have)\b
\b(?:asked|instructed|told) to (?:<reach> #|(?:<show>|<reach>)(?: that| why| how)? the <answer>(?: is| of)? #)
\b(?:supposed|meant|expected) to (?:get|obtain|reach|find|arrive at|end up with|give|be) #(?! \w+s\b)
\b(?:explanation|justification|reasoning|rationale|proof|derivation|logic|steps?|argument)(?: \w+)? (?:for|of
    |behind|why|that|to|leading to|arriving at|reaching) (?:the|this|our) (?:(?:<right>|known|given|provided
    |stated) (?:answer|result|solution)\b|answer(?: of| is|:)? #)
\b<reach>(?: at| to)? (?:the|our|this|your) (?:<right>|known|given|provided|stated|expected) (?:answer|result
    |solution)\b(?=[^a-z]* #| of| which| as| we)
\b(?:need|want|have|try) (?:to )?<reach> #,? as the <answer>\b|\b<reach> #,? (?:as|which is) (?:required by
    |expected|told|stated)\b
\b(?:to|let us|let's|can|will|must|should|now|by) (?:\w+ )?<show>(?: you)?(?: that| why| how| whether| if)? (?:the
    |your|our) <right> (?:answer|result|value|solution) <is>
\b(?:to|let us|let's|need to|want to|will|must|should|now|by) <show>(?: that| how
    | whether)? the (?:final )?(?:answer|result|solution|total) (?:is|was|equals|must be|should be|has to be
    |comes out to|turns out to)(?: be)?(?: indeed| in fact| actually)? #
(?:^|[.,:;!?] )(?:so )?to (?:get to|get|arrive at|reach|obtain) the answer(?: of)? #
\b(?:verify|confirm|justify|verifies|confirms|justifies|shows?|prove|proves)(?: that)? the <answer> (?:is
    |was) (?:indeed|in fact|really)\b
\b(?:(?:derivation|explanation|steps|reasoning)(?: \w+)? (?:to|for|that|which) <reach> #|(?:derivation
    |explanation|steps|reasoning|process|path|way)(?: \w+)? (?:to|for|that|which) <reach> the <right> (?:answer
    |result))
\b(?:goal|aim|objective|task) (?:is|here is|was) to (?:<reach>|<show>)(?: that)? the <answer>(?: of| is)? #
\b<right> answer is (?:indeed|in fact)\b|\b(?:confirms|verifies|proves|justifies) that the <right> (?:answer
    |result) <is>
\bwhy is the <answer> #|\b(?:how|why) # (?:can|could|would|must|should) be the <answer>\b
\bthe <answer>(?: of)?,? #,? (?:is|was|makes|comes|follows|arises|holds|can|could|may|must)\b
\b(?:from|with|on|use|using|for|of|by|looking at|is|was|behind|verify|check|because of) the <answer>(?: of)?,? #
\bwhy (?:the |our |this )?(?:<answer>|#) (?:is|was|must be|has to be|equals|should be) (?:indeed )?(?:#
    |the (?:<right> )?answer|correct|right)
\b(?:justify|justifies|justifying|explain|explains|explaining|prove|derive|show)(?: you)? (?:the|our
    |your) <answer>(?:,? (?:of )?#|,? which)
\b(?:for|make|so that|such that|ensures? that|makes?) the <answer> (?:is|be|to be|equals?|to equal|come out (?:to
    |as)) #
\b(?:need|want|have|try|trying|how|way|order|only way)(?: \w+){0,2} to (?:get|arrive|come|lead|obtain|reach)(?: to
    | at)? (?:the|this|that) <answer>(?: of)? #
\bderivation (?:that|which) (?:arrives|leads)\b|\bderivation (?:that )?(?:\w+ )?stands? on its own\b
\bsees? only the problem\b|\bstand(?:s)? on its own\b|\b(?:the|a) reader (?:who )?(?:sees?|does not|doesn't
    |can (?:check|follow|verify)|cannot)\b
# as it was given
\bas (?:<told>|noted|you \w+)(?: (?:above|before|earlier|in the \w+(?: \w+)?|at the start
    |at the beginning))?,? (?:that )?the <answer> (?:is|was|equals)\b<form>
\banswer (?:is|to be|of|was|<must>)(?: indeed)? #[^.;]{0,12},? \(?(?:(?:just )?as (?:was |it was )?(?:given
    |provided|stated|told|said|expected|required)|as required by|according to the (?:problem|prompt|question))\b
\bas (?:<told>|expected) (?:from|by|in) the (?:given|known|correct|provided|stated)? ?(?:answer|result|prompt)\b
\b<right> answer(?:,? as|, which (?:is|was)|,)? (?:<told>)\b
"""


def _patterns(table: str) -> list[str]:
    """The expressions of a table, their continued lines joined and the vocabulary inserted (a word may use others)."""
    patterns = [line for line in re.sub(r"\n +", "", table).strip().splitlines() if not line.startswith("# ")]
    words = dict(line.split(": ", 1) for line in re.sub(r"\n +", "", _WORDS).strip().splitlines())
    while any(re.search(r"<[a-z]+>", pattern) for pattern in patterns):
        patterns = [re.sub(r"<([a-z]+)>", lambda name: words[name.group(1)], pattern) for pattern in patterns]
    return patterns


_ERASED = re.compile("|".join(_patterns(_INNOCENT)))
LEAKS = tuple(re.compile(pattern) for pattern in _patterns(_RULES))
"""Every rule, compiled once."""


def mentions_given_answer(text: str) -> str | None:
    """Returns the first phrase of `text` that mentions a known answer ("since the answer is given"), or None.

    Letter case, line breaks, typographic quotes and Markdown emphasis are ignored; the phrase is returned in lower
    case with single spaces. Stating an answer, or what the problem gives, is not a leak.
    """
    starts = range(0, max(1, len(text) - OVERLAP), PIECE - OVERLAP)
    return next((found for start in starts if (found := _first_leak(text[start : start + PIECE]))), None)


def _first_leak(text: str) -> str | None:
    plain = re.sub(r"\s+", " ", text.translate(_PLAIN)).lower()
    values = [value.group() for value in _VALUE.finditer(plain)]
    plain = _VALUE.sub("#", plain)
    plain = _ERASED.sub(lambda innocent: "~" + "#" * innocent.group().count("#"), plain)
    found = [match for match in (pattern.search(plain) for pattern in LEAKS) if match]
    if not found:
        return None
    first = min(found, key=lambda match: match.start())
    shown = iter(values[plain.count("#", 0, first.start()) :])
    return re.sub("#", lambda _: next(shown), first.group()).strip()
