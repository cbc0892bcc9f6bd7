# ruff: noqa: RUF001 - full-width characters are what is tested
"""Wrong answers that once counted, each a kind; and right ones that once did not."""

import time

import pytest

from expo_ray.verifier import extract
from expo_ray.verifier.math.words import NotDecided
from expo_ray.verifier.tasks import make_task
from expo_ray.verifier.worker import Grader

WRONG = [
    # exact numbers are not rounded
    (r"\boxed{2^{2008}}", "2^{2008}-2"),
    (r"\boxed{100!}", "100!-1"),
    (r"\boxed{2^{127}}", "2^{127}-1"),
    (r"\boxed{\sqrt{10^{90}+1}}", "10^{45}"),
    (r"\boxed{7+10^{-70}\pi}", "7"),
    # letters and words
    (r"\boxed{p q}", "p - q"),
    (r"\boxed{acb}", "abc"),
    (r"\boxed{x y}", "x-y"),
    (r"\boxed{a xyz}", "xyz"),
    # chains and lists, of which only the last was read
    (r"\boxed{x = -2 \quad x = 3}", "3"),
    (r"\boxed{x = 7 \text{ not } x = 8}", "8"),
    (r"\boxed{\text{Certainly not} = 8}", "8"),
    (r"\boxed{x = -2 \\ x = 3}", "3"),
    (r"\boxed{7 = 8}", "8"),
    (r"\boxed{7} or \boxed{8}", "8"),
    ("Either $7$ or $8$", "8"),
    # words behind a number are a unit only if they are one
    (r"\boxed{7\text{ eighths}}", "7"),
    (r"\boxed{5\text{ millionths}}", "5"),
    (r"\boxed{12\text{ modulo seven}}", "12"),
    (r"\boxed{7\text{ wrong}}", "7"),
    (r"\boxed{5\text{ micrometers}}", r"5\text{ meters}"),
    # plain text is no strict LaTeX
    (r"\boxed{x^12}", "2x"),
    (r"\boxed{√21}", r"\sqrt 2"),
    (r"\boxed{5^13}", "15"),
    (r"\boxed{2^10}", "0"),
    # words that decide
    (r"\boxed{\text{red or blue}}", r"\text{red and blue}"),
    (r"\boxed{e^{\log_2 10}}", "10"),
    # the question is no answer
    (r"\boxed{2x+3=17}", "x=7"),
    (r"\boxed{5x - 3 \ge 2x + 6}", r"x \ge 3"),
    # domains, gaps and groups
    (r"\boxed{\sqrt{x}^2}", "|x|"),
    (r"\boxed{{7}{8}}", "56"),
    (r"\boxed{5 \quad 120}", "5120"),
    (r"\boxed{\max(x,10)}", "10"),
    (r"\boxed{(A) 5 (B) 6}", "A"),
    (r"\boxed{C: 12 or D: 13}", "C"),
    (r"\boxed{7\text{ pairs of } 2}", "7"),
    ("My answer: 7? No, 8", "7"),
    ("The answer is either 7 or 8.", "8"),
    ("The answer is not 7.", "7"),
    (r"\boxed{\text{seven or eight}}", "7"),
    (r"\boxed{0\cdot\infty}", "0"),
    (r"\boxed{7 \text{ times } 2}", "7"),
    (r"\boxed{\textcolor{white}{8}7}", "7"),
    (r"\boxed{\lceil \frac{x}{10^{6}} \rceil}", "1"),
]
RIGHT = [
    (r"So $\boxed{-3}$ and $\boxed{7}$.", "7,-3"),
    (r"<think>It is \boxed{12}.</think> The final answer is 15.", "15"),
    ("<think>3+4=7</think>\n<answer>7</answer>", "7"),
    ("The answer is 64, which is a square.", "64"),
    ("Some steps.\n\n### Final Answer\n\n**57**", "57"),
    (r"\boxed{\mathbf v = \begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\boxed{x<-2 \text{ or } x>2}", r"(-\infty,-2)\cup(2,\infty)"),
    (r"\boxed{-1,250}", "-1, 250"),
    (r"\boxed{(-1)^{n-1}}", "(-1)^{n+1}"),
    (r"\boxed{\color{red}42}", "42"),
    (r"\boxed{\textcolor{blue}{42}}", "42"),
    (r"\boxed{\underline{42}}", "42"),
    (r"\boxed{\large 42}", "42"),
    (r"\boxed{=42}", "42"),
    (r"\boxed7", "7"),
    (r"\boxed{5 \over 8}", r"\frac58"),
    (r"\boxed{\dbinom{8}{6}}", "28"),
    (r"\boxed{C(5,2)}", "10"),
    (r"\boxed{0.\bar{3}}", r"\frac13"),
    (r"\boxed{\cos 60^\circ}", "0.5"),
    (r"\boxed{21\text{st}}", "21"),
    (r"\boxed{12 dollars and 50 cents}", r"\$12.50"),
    (r"\boxed{2\text{ hours and }30\text{ minutes}}", r"150\text{ minutes}"),
    (r"\boxed{⅚}", r"\frac56"),
    (r"\boxed{(１，２)}", "(1,2)"),
    ("所以答案是 42。", "42"),
    ("Die Antwort ist 42.", "42"),
    ("La réponse est 42.", "42"),
    (r"\boxed{wl}", "lw"),
    (r"\boxed{2^6 3^5}", r"2^{6}\cdot 3^{5}"),
    (r"\boxed{n(n-1)(n-2)}", r"\frac{n!}{(n-3)!}"),
    (r"\boxed{£5}", "5"),
    (r"\boxed{15:00}", r"3:00\text{ p.m.}"),
    (r"\boxed{x\in\mathbb R}", r"(-\infty,\infty)"),
    (r"\boxed{10^-3}", "0.001"),
    (r"\boxed{2^(n-1)}", "2^{n-1}"),
    (r"\boxed{log_2(8)}", "3"),
    (r"\boxed{2√15}", r"2\sqrt{15}"),
    (r"\boxed{sqrt(2+x)}", r"\sqrt{2+x}"),
]


def outcome(task: str, response: str, gold: str) -> str:
    return Grader(make_task(task, {})).verdict(response, [gold], {})[0]


@pytest.mark.parametrize(("response", "gold"), WRONG)
def test_a_wrong_answer_does_not_count(response: str, gold: str) -> None:
    assert outcome("math", response, gold) == "wrong"


@pytest.mark.parametrize(("response", "gold"), RIGHT)
def test_a_right_answer_counts(response: str, gold: str) -> None:
    assert outcome("math", response, gold) == "correct"


@pytest.mark.parametrize(
    ("response", "gold", "expected"),
    [
        (r"\boxed{A, B, C, D}", "A", "no_answer"),
        (r"\boxed{\text{not A}}", "A", "no_answer"),
        ("The answer is I don't know", "I", "no_answer"),
        ("It is neither (A) nor (B)", "B", "no_answer"),
        ("The answer is not A, but B.", "B", "correct"),
        (r"\boxed{C: \text{A triangle}}", "C", "correct"),
        ("答案：C", "C", "correct"),
        ("(A) (B) (C) (D)", "D", "no_answer"),
        ("I'd go with D.", "D", "correct"),
        ("The answer is A or C", "C", "no_answer"),
    ],
)
def test_a_choice_is_one_letter(response: str, gold: str, expected: str) -> None:
    assert outcome("choice", response, gold) == expected


@pytest.mark.parametrize(
    ("response", "gold"),
    [("#### 40%", "40"), ("#### Step 1: eggs\n16-7=9\nThe answer is 9.", "9"), ("####  45 (dollars)", "45")],
)
def test_gsm8k(response: str, gold: str) -> None:
    assert outcome("gsm8k", response, gold) == "correct"


@pytest.mark.parametrize("response", [r"\boxed{x^{2^{2^{20000}}}}", r"\boxed{(20000!)!}", r"\boxed{((((3!)!)!)!)!}"])
def test_what_is_too_large_to_evaluate_is_wrong(response: str) -> None:
    assert outcome("math", response, "5") == "wrong"


def test_powers_of_unknowns_are_compared_in_no_time() -> None:
    start = time.process_time()
    assert outcome("math", r"\boxed{a^{mn}}", "a^{m+n}") == "wrong"
    assert outcome("math", r"\boxed{(a^m)^n}", "a^{mn}") == "correct"
    assert time.process_time() - start < 5


PIECES = [
    "answer ",
    "answer is ",
    "\\boxed{",
    "\\boxed{5} and ",
    "{",
    "}",
    "\\",
    "$",
    "$a$ ",
    "\\(",
    "####",
    "#### a\n",
    " ",
    "\n",
    "**",
    "```",
    "<answer>",
    "A:",
    "(A) ",
    "is ",
    "= ",
    "0",
    "1,",
    "<<",
    "because ",
    "64, which ",
    "答案",
    "\\boxed ",
    "\\text{",
    "and ",
    "x = ",
    "\\quad ",
    "</think>",
    "%",
]


@pytest.mark.parametrize("piece", PIECES)
def test_extraction_is_linear(piece: str) -> None:
    finders = (
        *make_task("math", {}).finders,
        extract.last_number,
        extract.choice,
        extract.last_line_choice,
        extract.toy,
    )
    text = "answer " + piece * (200_000 // len(piece))
    start = time.process_time()
    for find in finders:
        find(text)
    # A second of the quadratic ones would be minutes.
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("response", "gold", "question", "expected"),
    [
        (r"\boxed{\frac{16+8}{4-2}}", "12", r"What is $\frac{16+8}{4-2}$?", "wrong"),
        (r"\boxed{12}", "12", r"What is $\frac{16+8}{4-2}$?", "correct"),
        (r"\boxed{x = 24/2}", "12", "", "correct"),
        (r"\boxed{\sum_{k=1}^{10} k}", "55", "", "wrong"),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", "Expand $(x+1)^2$.", "wrong"),
        (r"\boxed{1+2x+x^2}", "x^2+2x+1", "Expand $(x+1)^2$.", "correct"),
        (r"\boxed{x+1}", "x+1", "Divide $x^2+x$ by $x$ and add $x+1$ to nothing.", "correct"),
    ],
)
def test_a_copied_formula_is_no_simplified_answer(response: str, gold: str, question: str, expected: str) -> None:
    strict = Grader(make_task("math", {"answer_form": "simplified"}))
    assert strict.verdict(response, [gold], {"question": question})[0] == expected
    assert Grader(make_task("math", {})).verdict(response, [gold], {"question": question})[0] == "correct"


def test_too_deep_is_not_decided() -> None:
    from expo_ray.verifier.math.shape import read

    with pytest.raises(NotDecided):
        read("(" * 60 + "5" + ")" * 60)
