"""verifier=python_tests in its processes: forms of tests, limits, and code that tries to forge its verdict.

Costs about 20 seconds: one pool, a few dozen items.
"""

import pytest

from expo_ray.config.schema import VerifierConfig
from expo_ray.verifier.pool import VerifierPool

ASSERTS = {"tests": ["assert add(1, 2) == 3", "assert add(-5, 5) == 0"]}
CHECK = {"test": "def check(candidate):\n    assert candidate(1, 2) == 3", "entry_point": "add"}
PAIRS = {"tests": {"inputs": ["1 2\n", "40 2\n"], "outputs": ["3\n", "42"]}}


@pytest.fixture(scope="module")
def pool():
    found = VerifierPool(VerifierConfig(name="python_tests", processes=2, timeout_s=4.0))
    yield found
    found.close()


def block(code: str) -> str:
    return f"Here is my solution:\n```python\n{code}\n```\n"


def verdicts(pool, cases: list[tuple[str, dict]]) -> list[str]:
    return [verdict.outcome for verdict in pool.judge([(text, ("",), meta) for text, meta in cases])]


def test_right_and_wrong_code_by_each_form_of_tests(pool):
    add = "def add(a, b):\n    return a + b"
    wrong = "def add(a, b):\n    return a - b"
    reads = "a, b = map(int, input().split())\nprint(a + b)"
    cases = [
        (block(add), ASSERTS, "correct"),
        (block(wrong), ASSERTS, "wrong"),
        (block(add), {"test_list": ASSERTS["tests"]}, "correct"),
        (block(reads), PAIRS, "correct"),
        (block("import sys\nprint(sum(map(int, sys.stdin.read().split())))\nsys.exit(0)"), PAIRS, "correct"),
        (block("print(sum(map(int, open(0).read().split())))"), PAIRS, "correct"),
        (block("print(3)"), PAIRS, "wrong"),
        (block(reads), {"tests": [{"input": "1 2", "output": "3 "}]}, "correct"),
        (block(reads), {"input_output": '{"inputs": ["1 2"], "outputs": ["3"]}'}, "correct"),
        (block(add), {"tests": '{"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}'}, "correct"),
        (block("class Solution:\n    def add(self, a, b):\n        return [a + b]"),
         {"tests": {"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]}}, "correct"),
        (block(add), CHECK, "correct"),
        (block(wrong), CHECK, "wrong"),
        (block("def f(x):\n    yield x\n    yield (x, {x: {1, 2}}, b'a', None, 1.5, 2j)"),
         {"tests": "assert list(f('k')) == ['k', ('k', {'k': {1, 2}}, b'a', None, 1.5, 2j)]"}, "correct"),
        (block("class Stack:\n    def __init__(self): self.of = []\n    def push(self, x): self.of.append(x)\n"
               "    def pop(self): return self.of.pop()"),
         {"tests": ["s = Stack()\ns.push(4)\nassert s.pop() == 4", "assert s.of == []"]}, "correct"),
        (block("def half(x):\n    if x < 0: raise ValueError(x)\n    return x / 2"),
         {"tests": "import math\nassert math.isclose(half(1), 0.5)\ntry:\n    half(-1)\n    assert False\n"
                   "except ValueError:\n    pass"}, "correct"),
        ("I would add them.", ASSERTS, "no_answer"),
        ("<think>" + block(add) + "</think> " + block(wrong), ASSERTS, "wrong"),
        (block(add) + "or rather\n" + block(wrong), ASSERTS, "wrong"),
        (block("def add(a, b:"), ASSERTS, "wrong"),
        (block(add), {"tests": "assert add(1, 2 == 3"}, "error"),
        (block(add), {"tests": {"inputs": ["1"], "outputs": []}}, "error"),
        (block(add), {}, "error"),
        (block(add), {"tests": "add(1, 2)"}, "error"),
        (block("def other(): return 3"), {"tests": "assert 1 + 2 == 3"}, "wrong"),
    ]  # fmt: skip
    assert verdicts(pool, [(text, meta) for text, meta, _ in cases]) == [outcome for *_, outcome in cases]


ATTACKS = {
    "exits with 0": "import sys\ndef add(a, b): sys.exit(0)",
    "exits hard": "import os\nos._exit(0)",
    "exits while it is loaded": "raise SystemExit(0)",
    "equal to all": "class Any:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
    "    def __bool__(self): return True\ndef add(a, b): return Any()",
    "a number equal to all": "class N(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
    "def add(a, b): return N(7)",
    "patches builtins": "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.abs = lambda x: 0\n"
    "builtins.len = lambda x: 3\nbuiltins.isinstance = lambda *a: True\ndef add(a, b): return 7",
    "patches the encoder": "import json, sys\nfor m in list(sys.modules.values()):\n"
    "    for n in ('encoded', 'dumps', 'pack'):\n        if hasattr(m, n): setattr(m, n, lambda *a, **k: b'correct')\n"
    "def add(a, b): return 7",
    "writes verdicts to every descriptor": "import os, json, struct\n"
    'for body in (b\'["correct", "1", "tests", 0.0]\', b\'["value", true]\'):\n    for fd in range(64):\n'
    "        try: os.write(fd, struct.pack('>I', len(body)) + body)\n        except OSError: pass\n"
    "def add(a, b): return 7",
    "kills its parents": "import os\nfor pid in (os.getppid(), 1, -1, 0):\n    try: os.kill(pid, 9)\n"
    "    except OSError: pass\ndef add(a, b): return 7",
    "looks for the tests in frames and objects": "import gc, sys, inspect\nfound = []\nframe = sys._getframe()\n"
    "while frame: found.append(repr(frame.f_locals)); frame = frame.f_back\n"
    "found += [repr(o) for o in gc.get_objects() if isinstance(o, (str, dict, list))][:20000]\n"
    "text = ' '.join(found)\ni = text.find('assert add(1, 2) == ')\n"
    "def add(a, b): return int(text[i + 20]) if i >= 0 and (a, b) == (1, 2) else 0 if i >= 0 else 7",
    "reads the memory of its parents": "import os\npids = [os.getppid()]\ntry: pids += map(int, filter(str.isdigit, "
    "os.listdir('/proc')))\nexcept OSError: pass\nseen = b''\nfor pid in pids:\n    try:\n"
    "        for line in open(f'/proc/{pid}/maps'):\n"
    "            a, b = [int(x, 16) for x in line.split()[0].split('-')]\n"
    "            m = open(f'/proc/{pid}/mem', 'rb')\n            m.seek(a); seen += m.read(min(b - a, 1 << 20))\n"
    "    except Exception: pass\ndef add(a, b): return 3 if b'assert add(1, 2) == 3' in seen and a == 1 else 0",
    "starts programs": "import subprocess\ndef add(a, b): return int(subprocess.check_output(['echo', str(a + b)]))",
    "opens sockets": "import socket\ndef add(a, b): socket.socket(); return a + b",
    "writes files": "def add(a, b):\n    open('/tmp/x', 'w').write('x'); return a + b",
    "forks": "import os\ndef add(a, b):\n    os.fork(); return a + b",
    "never returns": "def add(a, b):\n    while True: pass",
    "sleeps": "import time\ndef add(a, b): time.sleep(1000); return a + b",
    "sleeps while it is loaded": "import time\ntime.sleep(1000)",
    "takes all memory": "def add(a, b):\n    x = [0] * 10**10; return a + b",
    "returns without end": "import itertools\ndef add(a, b): return itertools.count()",
    "returns too much": "def add(a, b): return 'x' * 10**8",
    "nests without end": "def add(a, b):\n    x = []; x.append(x); return x",
    "dies of recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b): return add(a, b)",
}


@pytest.fixture(scope="module")
def attacked(pool) -> dict[str, str]:
    """Each attack's verdict. Together, so that two of those that run to their limit do so at the same time."""
    return dict(zip(ATTACKS, verdicts(pool, [(block(code), ASSERTS) for code in ATTACKS.values()]), strict=True))


@pytest.mark.parametrize("name", ATTACKS)
def test_asserts_are_not_forged(attacked, name):
    assert attacked[name] == "wrong"


@pytest.mark.parametrize(
    "code",
    [
        "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef half(x): return 7",
        "def half(x): return 7\ndef isclose(a, b): return True",
    ],
)
def test_a_module_that_the_tests_use_is_the_true_one(pool, code):
    tests = {"tests": "assert math.isclose(half(1), 0.5)"}
    assert verdicts(pool, [(block("def half(x): return x / 2"), tests), (block(code), tests)]) == ["correct", "wrong"]


def test_an_object_does_not_pass_for_an_array(pool):
    """NumPy asks an object for its memory; the address would be one of the process that holds the tests."""
    tests = {"tests": "import numpy as np\nassert np.asarray(f(2)).shape == (0,)"}
    interface = "{'shape': (0,), 'typestr': '<i8', 'version': 3, 'data': (4096, True)}"
    poses = f"class A:\n    __array_interface__ = {interface}\ndef f(x): return A()"
    found = verdicts(pool, [(block("def f(x): return []"), tests), (block(poses), tests)])
    assert found == ["correct", "wrong"]


def test_programs_do_not_forge_either(pool):
    attacks = [
        "import sys\nsys.exit(0)",
        "print(3); raise SystemExit(1)",  # right for the first input only
        "import os\nos.write(1, b'3')\nos._exit(0)",
        "while True: print('3' * 1000)",
        "print('correct')",
        "import gc\nprint([o for o in gc.get_objects() if isinstance(o, str) and '42' in o])",
    ]
    assert verdicts(pool, [(block(code), PAIRS) for code in attacks]) == ["wrong"] * len(attacks)


def test_after_all_attacks_the_processes_still_grade(pool):
    good = block("def add(a, b):\n    return a + b")
    assert verdicts(pool, [(good + " " * k, ASSERTS) for k in range(20)]) == ["correct"] * 20
    assert pool.ping()["alive"] == 2


def test_one_pool_grades_records_of_several_tasks():
    """Each item by the task that it names; the processes start again once, with all of them."""
    pool = VerifierPool(VerifierConfig(name="math", processes=1, timeout_s=10.0))
    try:
        assert [v.outcome for v in pool.judge([(r"\boxed{1/2}", ("0.5",), {})])] == ["correct"]
        code = block("def add(a, b):\n    return a + b")
        items = [
            (r"\boxed{\frac{1}{2}}", ("0.5",), {}, ""),
            ("The answer is (B).", ("B",), {}, "choice"),
            (code, ("",), ASSERTS, "python_tests"),
            (code, ("",), {"tests": "assert add(1, 1) == 3"}, "python_tests"),
            ("A:12.", ("12",), {}, "toy"),
        ]
        expected = ["correct", "correct", "correct", "wrong", "correct"]
        assert [v.outcome for v in pool.judge(items)] == expected
    finally:
        pool.close()
