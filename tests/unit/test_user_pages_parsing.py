"""Tests the parser for the pages of docs/start, and the limits that these pages keep."""

import pytest

from tests.user_pages import PAGES, BadPage, Command, WrittenFile, expected_code, not_shown, parse

NAMES = sorted(path.stem for path in PAGES.glob("*.md"))
PAGE = """\
# A page

```python own/reward.py
x = "\\\\n"

y = 1
```

Text with `$ no command`.

```console
$ python -m one \\
    two
first  line
...
$ false
$ echo $?
1
```

```text
$ not run
```

```sh
# a comment, not typed
make demo

echo a | \\
cat
```
"""


def test_files_and_commands_come_in_their_order():
    assert parse(PAGE) == [
        WrittenFile("own/reward.py", 'x = "\\\\n"\n\ny = 1\n'),
        Command("python -m one \\\n    two", ("first  line", "...")),
        Command("false"),
        Command("echo $?", ("1",)),
        Command("make demo"),
        Command("echo a | \\\ncat"),
    ]


def test_a_command_fails_where_the_page_says_so():
    steps = parse(PAGE)
    assert [expected_code(steps, index) for index in (1, 2, 3, 4)] == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("```sh\nmake demo\n", "not closed"),
        ("```python /etc/own.py\n```\n", "outside"),
        ("```python ../own.py\n```\n", "outside"),
        ("```console\nmake demo\n```\n", "before any command"),
    ],
)
def test_a_page_that_cannot_be_followed_is_refused(page, reason):
    with pytest.raises(BadPage, match=reason):
        parse(page)


OUTPUT = "a start\nsteps   4 of 4,  12.5 s\n/tmp/x/runs/mine\n"


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        (("steps 4 of 4, ... s", ".../runs/mine"), None),
        (("a start", "...", ".../runs/mine"), None),
        (("a start", "", "...runs..."), None),
        (("steps 4 of 4",), "steps 4 of 4"),
        ((".../runs/mine", "a start"), "a start"),
        (("a start", "a start"), "a start"),
        (("steps 5 of ...",), "steps 5 of ..."),
        (("a.start",), "a.start"),
    ],
)
def test_what_a_page_shows_is_looked_for_in_order(shown, missing):
    assert not_shown(shown, OUTPUT) == missing


def test_the_pages_are_there():
    assert NAMES == ["demo", "own_data", "own_reward", "own_sweep", "your_model"]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_short_and_has_commands(name):
    text = (PAGES / f"{name}.md").read_text()
    assert len(text.splitlines()) <= 80
    assert max(map(len, text.splitlines())) <= 130
    commands = [step for step in parse(text) if isinstance(step, Command)]
    assert any(command.text.startswith(("make ", "python -m expo_ray.")) for command in commands)
