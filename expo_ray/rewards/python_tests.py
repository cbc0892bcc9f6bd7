"""`verifier=python_tests`: the code block of a response against its record's tests, in processes that know no answer.

The grading process forks a nursery before it reads an item; the nursery forks a process for each run of a response's
code. Neither has seen a test. What the code prints or returns comes back as bytes or as plain data, and is compared
with what the tests expect in the process that holds them. So code that exits, patches builtins or searches its memory
finds neither an expected value nor a verdict to write; at most it fails.
"""

import ast
import builtins
import contextlib
import ctypes
import importlib
import json
import os
import re
import resource
import select
import signal
import socket
import sys
import time
from types import CodeType
from typing import Any

from expo_ray.verifier import sandbox, wire
from expo_ray.verifier.extract import after_thinking
from expo_ray.verifier.tasks import Graded, NotDecided, Task

TEST_COLUMNS = ("tests", "test_list", "test", "input_output", "test_cases")
"""Columns of a record that may hold its tests, the first one counts; without any, the gold answer may, as JSON."""
SETUP_COLUMNS = ("test_setup_code", "test_imports")
MAX_OUTPUT = 1 << 20
"""Bytes that a run may print, and bytes of one value that it returns."""
WAIT_SHARE = 0.8
"""Of `verifier.timeout_s`, the time for all tests of a response, so that it is the tests that end and not the item."""
PR_SET_DUMPABLE = 4
_MODULES = {"np": "numpy", "numpy": "numpy"}
_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


class Broken(Exception):
    """The code did not run to its end, or what it sent is no value."""


class BadTests(ValueError):
    """A record's tests cannot be read: the data's fault, not the response's."""


class PythonTests(Task):
    """Python code against tests: pairs of input and output, or asserts. Right is passing all of them."""

    needs_meta = True
    runs_answers = True
    _nursery: socket.socket | None = None

    def begin(self, layers: list[str]) -> None:
        """Forks the nursery, before this process reads its first item."""
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # no process may read another one's memory
        self._nursery, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            try:
                serve_runs(theirs, int(self.config["memory_mib"]), layers)
            finally:
                os._exit(0)
        theirs.close()

    def extract(self, response: str) -> str | None:
        blocks = [(language.lower(), code) for language, code in _BLOCK.findall(after_thinking(response))]
        marked = [code for language, code in blocks if language in ("python", "python3", "py")]
        found = marked or ([] if self.strict else [code for language, code in blocks if not language])
        return found[-1] if found else None

    def grade(self, extracted: str, gold: str, meta: dict[str, Any]) -> Graded:
        """Whether the code passes every test.

        Raises:
            BadTests: the record's tests cannot be read.
            NotDecided: they take longer than the item's time.
        """
        tests, setup = tests_of(gold, meta), "\n".join(_texts(meta, SETUP_COLUMNS))
        deadline = time.monotonic() + WAIT_SHARE * float(self.config.get("timeout_s", 5.0))
        code = f"{setup}\n{extracted}" if setup else extracted
        try:
            if isinstance(tests, dict) and not tests.get("fn_name"):
                pairs = zip(tests["inputs"], tests["outputs"], strict=True)
                right = all(_same_output(self._prints(code, text, deadline), expected) for text, expected in pairs)
            elif isinstance(tests, dict):
                right = self._calls(code, tests, deadline)
            else:
                right = self._asserts(code, setup, tests, meta.get("entry_point"), deadline)
        except (Broken, wire.BadFrame):
            right = False
        finally:
            self._ask(b"end", [])
        if not right and time.monotonic() >= deadline:
            raise NotDecided("the tests take too long")
        return right, "tests"

    def _prints(self, code: str, text: str, deadline: float) -> str:
        """What a program prints, given its standard input."""
        with self._run(code, True, deadline) as run:
            return run.output(text.encode(errors="surrogateescape")).decode(errors="replace")

    def _calls(self, code: str, tests: dict[str, Any], deadline: float) -> bool:
        """Calls one function on each input, a list of arguments."""
        with self._run(code, False, deadline) as run:
            try:
                called = str(tests["fn_name"])
                function = run.name(called) if run.has(called) else getattr(run.name("Solution")(), called)
            except Exception:  # whatever the code raises
                return False
            for arguments, expected in zip(tests["inputs"], tests["outputs"], strict=True):
                try:
                    found = _as_lists(function(*(arguments if isinstance(arguments, list) else [arguments])))
                except Exception:
                    return False
                if found != _as_lists(expected) and [found] != _as_lists(expected):
                    return False
        return True

    def _asserts(self, code: str, setup: str, tests: list[str], entry: Any, deadline: float) -> bool:
        """Runs the tests here, where builtins are the true ones, with the response's functions elsewhere."""
        compiled = [_compiled(test) for test in [setup, *tests]]
        names, modules = _names("\n".join([setup, *tests]))
        space: dict[str, Any] = {"__name__": "tests"}
        with self._run(code, False, deadline) as run:
            try:
                # A response may not stand in for math, which its asserts use without an import.
                space |= {name: importlib.import_module(_MODULES.get(name, name)) for name in modules}
                theirs = {name: run.name(name) for name in names if run.has(name)}
                space |= theirs
                for test in compiled:
                    exec(test, space)
                if entry is not None and (check := space.get("check")) is not None:
                    check(run.name(str(entry)))
            except Exception:  # an assert that fails, or whatever the code raises through it
                return False
        return bool(theirs) or entry is not None  # asserts that ask nothing of the response say nothing of it

    def _run(self, code: str, with_input: bool, deadline: float) -> "Run":
        talk, theirs = socket.socketpair()
        data, their_data = socket.socketpair()
        with theirs, their_data:
            left = max(0.0, deadline - time.monotonic())
            self._ask(f"{left:.3f}".encode(), [theirs.fileno(), their_data.fileno()])
        talk.sendall(wire.pack({"code": code, "with_input": with_input}))
        return Run(talk, data, deadline)

    def _ask(self, message: bytes, descriptors: list[int]) -> None:
        assert self._nursery is not None, "begin() was not called"
        socket.send_fds(self._nursery, [message], descriptors)


class Run:
    """One process of a response's code, as the grading process sees it."""

    def __init__(self, talk: socket.socket, data: socket.socket, deadline: float) -> None:
        self._talk, self._data, self._deadline = talk, data, deadline
        self._inbox = bytearray()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._talk.close()
        self._data.close()

    def output(self, text: bytes) -> bytes:
        """Feeds the standard input and returns what is printed until the end.

        Raises:
            Broken: no end in time, too much output, or an end by an exception.
        """
        found, left = bytearray(), memoryview(text)
        open_ended = True
        self._data.setblocking(False)
        while True:
            writing = [self._data] if open_ended else []
            ready, free, _ = select.select([self._data], writing, [], self._left())
            if not ready and not free:
                raise Broken("no end in time")
            if free:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    left = left[self._data.send(left) :]
                if not left:
                    self._data.shutdown(socket.SHUT_WR)
                    open_ended = False
            if ready:
                try:
                    part = self._data.recv(1 << 16)
                except ConnectionError:
                    part = b""
                found += part
                if len(found) > MAX_OUTPUT:
                    raise Broken("too much output")
                if not part:
                    break
        if self._receive() != ["done"]:
            raise Broken("it ended by an exception")
        return bytes(found)

    def has(self, name: str) -> bool:
        """Whether the code has left something of that name."""
        return self.ask("has", name) is True

    def name(self, name: str) -> Any:
        """What a name of the code's stands for."""
        return self.ask("name", name)

    def ask(self, *request: Any) -> Any:
        """Sends a request and returns its value; raises what the code raised, by the name of the builtin exception.

        Raises:
            Broken: no answer in time, or none that is a value.
        """
        self._talk.settimeout(max(0.001, self._left()))
        try:
            self._talk.sendall(wire.pack(list(request)))
        except OSError as error:
            raise Broken("it has ended") from error
        match self._receive():
            case ["value", value]:
                return wire.decoded(value, lambda number: Remote(self, number))
            case ["raised", str(kind), str(text)]:
                known: Any = getattr(builtins, kind, None)
                raise known(text) if isinstance(known, type) and issubclass(known, Exception) else Exception(text)
            case _:
                raise Broken("not an answer")

    def _receive(self) -> Any:
        while True:
            try:
                if (found := wire.unpack(self._inbox, MAX_OUTPUT)) is not None:
                    return found
                if not select.select([self._talk], [], [], self._left())[0]:
                    return None
                if not (part := self._talk.recv(1 << 16)):
                    return None
            except (OSError, wire.BadFrame):
                return None
            self._inbox += part

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())


class Remote:
    """A function, class or object of a response's code, which stays in its process. It compares with nothing."""

    def __init__(self, run: Run, number: int) -> None:
        self.__dict__.update(_run=run, _number=number)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._run.ask(
            "call", self._number, wire.encoded(list(arguments), _sent_back), wire.encoded(named, _sent_back)
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # NumPy would read memory where an __array_interface__ says so
            raise AttributeError(name)
        return self._run.ask("attribute", self._number, name)

    def _refuse(self, *_: object) -> bool:
        raise TypeError("an object of the response's code has no value here")

    __eq__ = __ne__ = __bool__ = _refuse
    __hash__ = object.__hash__


def _sent_back(value: Any) -> Any:
    if isinstance(value, Remote):
        return {"object": value._number}
    raise TypeError(f"a test passes a {type(value).__name__}, which cannot be sent")


def serve_runs(requests: socket.socket, memory_mib: int, layers: list[str]) -> None:
    """The nursery: forks a process for each run that is asked for; each request ends the run before it.

    A request is the seconds that the run may take, with its two sockets; `end` comes without them.
    """
    os.dup2(requests.detach(), 3)
    os.closerange(4, 256)  # of the grading process: above all the socket on which verdicts go out
    requests = socket.socket(fileno=3)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(sandbox.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nursery = os.getpid()
    child: int | None = None
    ends = 0.0
    while True:
        waited = None if child is None else max(0.0, ends - time.monotonic())
        ready = select.select([requests], [], [], waited)[0]
        if child is not None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            child = None
        if not ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(requests, 64, 2)
        if not message:
            return
        if len(descriptors) == 2:
            child = os.fork()
            if child == 0:
                try:
                    requests.close()
                    _limit(float(message), memory_mib, nursery, layers)
                    run_code(socket.socket(fileno=descriptors[0]), descriptors[1])
                finally:
                    os._exit(0)
            ends = time.monotonic() + float(message)
        for descriptor in descriptors:
            os.close(descriptor)


def _limit(seconds: float, memory_mib: int, parent: int, layers: list[str]) -> None:
    sandbox.enter(memory_mib, parent, seconds, layers)
    most = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))


def run_code(talk: socket.socket, data: int) -> None:
    """Runs a response's code, and answers what the tests ask of it."""
    asked: Any = wire.receive(talk)
    if asked["with_input"]:
        os.dup2(data, 0)
        os.dup2(data, 1)
        sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape", closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    os.close(data)
    space: dict[str, Any] = {"__name__": "__main__" if asked["with_input"] else "response"}
    with contextlib.suppress(SystemExit):
        exec(compile(asked["code"], "<response>", "exec"), space)
    if asked["with_input"]:
        sys.stdout.flush()
        talk.sendall(wire.pack(["done"]))
        return
    objects: list[Any] = []

    def kept(value: Any) -> Any:
        objects.append(value)
        return {"object": len(objects) - 1}

    while (request := wire.receive(talk)) is not None:
        try:
            reply = ["value", wire.encoded(_answer(request, space, objects), kept)]
        except Exception as error:
            reply = ["raised", type(error).__name__, str(error)[:1000]]
        talk.sendall(wire.pack(reply))


def _answer(request: list[Any], space: dict[str, Any], objects: list[Any]) -> Any:
    kind, what, *rest = request
    if kind in ("has", "name"):
        return what in space if kind == "has" else space[what]
    if kind == "attribute":
        return getattr(objects[what], *rest)
    arguments, named = (wire.decoded(value, objects.__getitem__) for value in rest)
    return objects[what](*arguments, **named)


def tests_of(gold: str, meta: dict[str, Any]) -> dict[str, Any] | list[str]:
    """A record's tests: a dictionary of `inputs` and `outputs` (and `fn_name`), or a list of Python texts.

    Raises:
        BadTests: neither; there is none; as many inputs as outputs are not there; no assert would run.
    """
    tests: Any = next((meta[column] for column in TEST_COLUMNS if meta.get(column)), None)
    text = gold if tests is None else tests
    if isinstance(text, str) and text.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):
            tests = json.loads(text)
    if isinstance(tests, list) and tests and all(isinstance(test, dict) for test in tests):
        tests = {f"{key}s": [test.get(key) for test in tests] for key in ("input", "output")}
    if isinstance(tests, str):
        tests = [tests]
    if isinstance(tests, list) and all(isinstance(test, str) for test in tests) and "assert" in "".join(tests):
        if not _asserts_anything("\n".join(tests), meta.get("entry_point") is not None):
            raise BadTests(
                "nothing calls the functions or classes that hold a record's asserts: call them, or define check and "
                f"give entry_point; the tests are {tests[0]!r:.80}"
            )
        return tests
    if isinstance(tests, dict):
        inputs: Any = tests.get("inputs")
        outputs: Any = tests.get("outputs")
        paired = isinstance(inputs, list) and isinstance(outputs, list) and 0 < len(inputs) == len(outputs)
        if paired and (tests.get("fn_name") or all(isinstance(text, str) for text in (*inputs, *outputs))):
            return tests
    raise BadTests(
        f"a record's tests are {tests!r:.80}: give inputs and outputs as lists of texts, or a list of assert "
        f"statements, in one of the columns {', '.join(TEST_COLUMNS)}"
    )


def _asserts_anything(source: str, with_entry: bool) -> bool:
    """Whether running the tests can fail an assert; methods of unittest and functions of pytest need a runner."""
    try:
        left: list[ast.AST] = [ast.parse(source)]
    except (SyntaxError, ValueError):
        return True  # `_compiled` says what is wrong
    defined, called = set(), set()
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
            continue
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            continue  # the tests are no main program
        if isinstance(node, ast.Assert | ast.Raise):
            return True
        if isinstance(node, ast.Call):
            called.add(getattr(node.func, "id", getattr(node.func, "attr", "")))
        left += ast.iter_child_nodes(node)
    return bool(called & defined) or any("assert" in name for name in called) or (with_entry and "check" in defined)


def _texts(meta: dict[str, Any], columns: tuple[str, ...]) -> list[str]:
    found = [meta[column] for column in columns if meta.get(column)]
    return [text for each in found for text in (each if isinstance(each, list) else [each]) if isinstance(text, str)]


def _compiled(test: str) -> CodeType:
    try:
        return compile(test, "<tests>", "exec")
    except (SyntaxError, ValueError) as error:
        raise BadTests(f"a record's test is not Python ({error}): {test!r:.80}") from error


def _names(source: str) -> tuple[list[str], list[str]]:
    """The names that the tests read and that Python itself does not have; those of them that are modules, apart."""
    nodes = list(ast.walk(ast.parse(source)))
    read = dict.fromkeys(n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
    with_parts = {n.value.id for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    modules = [name for name in read if name in _MODULES or (name in sys.stdlib_module_names and name in with_parts)]
    return [name for name in read if name not in modules and not hasattr(builtins, name)], modules


def _same_output(found: str, expected: str) -> bool:
    """Whether two outputs are equal but for blanks at the ends of lines and of the whole."""
    mine, wanted = ([line.split() for line in text.strip().splitlines()] for text in (found, expected))
    return mine == wanted


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value
