"""The report's page: numbers as in the files, hostile texts, empty and torn runs, the command."""

import base64
import hashlib
import json
import re
from datetime import datetime
from pathlib import Path

import pytest
from report_cases import HOSTILE, Elements, evaluation_line, hostile_samples, metric_lines, sample_line, write_run

from expo_ray.report import main
from expo_ray.reporting.groups import group_runs
from expo_ray.reporting.page import report_page, safe_json
from expo_ray.reporting.runs import read_run

NOW = datetime(2026, 1, 2, 3, 4, 5)


def page_of(*folders: Path, max_samples: int = 1000) -> str:
    return report_page(group_runs([read_run(folder) for folder in folders]), max_samples, NOW)


def data_of(page: str) -> dict:
    return json.loads(Elements(page).inside["script:application/json"][0])


def chart(data: dict, section: str, title: str) -> dict:
    return next(one for one in data["sections"][section]["charts"] if one["title"] == title)


def test_numbers_in_the_page_are_those_of_the_files(tmp_path):
    folders = [
        write_run(
            tmp_path / str(seed),
            seed=seed,
            metrics=metric_lines(5, offset=0.3 * seed),
            evaluations=[evaluation_line(0, 0.1 * seed), evaluation_line(5, 0.4 + 0.1 * seed)],
        )
        for seed in (0, 1)
    ]
    data = data_of(page_of(*folders))
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]
    for section, title, name in (
        ("learning", "mean reward, all levels", "reward/mean"),
        ("levels", "level 5", "pass_rate/level_5"),
        ("sync", "time of a weight sync", "sync/seconds"),
    ):
        (series,) = chart(data, section, title)["variants"]["every update"]
        pairs = [(a[name], b[name]) for a, b in zip(*lines, strict=True)]
        assert series["x"] == [0, 1, 2, 3, 4]
        assert series["mean"] == pytest.approx([(a + b) / 2 for a, b in pairs], rel=1e-7)
        assert series["low"] == pytest.approx([min(pair) for pair in pairs], rel=1e-7)
        assert series["high"] == pytest.approx([max(pair) for pair in pairs], rel=1e-7)
    (held,) = chart(data, "held_out", "level 5")["variants"]["pass@2"]
    assert held["x"] == [0, 5] and held["mean"] == pytest.approx([0.15, 0.55])
    assert chart(data, "sync", "probe, learner against engines")["bound"] == {"label": "sync/tolerance", "value": 1e-3}


def test_phases_add_up_to_the_step(tmp_path):
    data = data_of(page_of(write_run(tmp_path / "a", metrics=metric_lines(3))))
    section = data["sections"]["time"]
    assert section["legend"] == ["generate", "update", "rest of the step"]
    series = section["charts"][0]["variants"]["every update"]
    assert [sum(of) for of in zip(*[one["mean"] for one in series], strict=True)] == pytest.approx([4.0, 5.0, 6.0])
    assert series[2]["mean"] == pytest.approx([1.0, 1.0, 1.0])


def test_hostile_texts_stay_texts(tmp_path):
    text = HOSTILE[0] + HOSTILE[1]
    folder = write_run(
        tmp_path / "a",
        samples=hostile_samples(),
        metrics=[{"step": 0, "reward/mean": 1.0, f"memory/{text}_mib": 1.0, f"time/{text}": 1.0, "time/step": 2.0}],
        evaluations=[{"steps_done": 0, "pass_at_k": {text: {"1": 0.5}}}],
        summary={"finished": True, "command": text, "seconds": 1.0},
        model__path=text,
        data__path=text,
        seed=0,
    )
    elements = Elements(page_of(folder))
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 3 and "img" not in tags
    assert not [
        a for _, attributes in elements.found for a in attributes if a.startswith("on") or a in ("src", "style")
    ]
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in elements.found)
    prompts = data_of(page_of(folder))["prompts"]
    assert [p["question"] for p in prompts] == list(HOSTILE)
    assert [p["samples"][0]["text"] for p in prompts] == list(HOSTILE)
    assert [p["samples"][4]["leak"] for p in prompts] == list(HOSTILE)
    assert text in elements.inside["td:"]


@pytest.mark.parametrize("text", HOSTILE)
def test_embedded_json_ends_no_element_and_says_the_same(text):
    embedded = safe_json({text: [text]})
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert json.loads(embedded) == {text: [text]}


def test_the_policy_allows_the_pages_own_scripts_and_nothing_else(tmp_path):
    elements = Elements(page_of(write_run(tmp_path / "a", samples=hostile_samples())))
    policy = next(a["content"] for tag, a in elements.found if tag == "meta" and a.get("http-equiv"))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    # Plotly adds one style sheet, which is empty.
    for rule, texts in (("script-src", elements.inside["script:"]), ("style-src", [*elements.inside["style:"], ""])):
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert sorted(rules[rule].split()) == sorted(f"'sha256-{digest}'" for digest in digests)
    assert set(rules) == {"default-src", "base-uri", "form-action", "script-src", "style-src"}


def test_our_script_parses_no_html_and_fetches_nothing():
    folder = Path(__file__).parents[2] / "expo_ray/reporting/page"
    code = "".join(file.read_text() for file in folder.glob("*.js"))
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|fetch\(|XMLHttp|import\(|https?:"
    )
    assert code and re.findall(forbidden, code) == []


def test_an_empty_run_has_a_sentence_for_every_section(tmp_path):
    page = page_of(write_run(tmp_path / "a"))
    sections = data_of(page)["sections"]
    assert all(section["charts"] == [] for section in sections.values())
    assert page.count('class="empty"') >= len(sections)
    assert "0 of 100" in page and "running or interrupted" in page


def test_a_run_that_still_goes(tmp_path):
    folder = write_run(tmp_path / "a", metrics=metric_lines(3), samples=[sample_line("free", "x")] * 4)
    for name in ("metrics", "samples"):
        with (folder / f"{name}.jsonl").open("a") as file:
            file.write('{"step": 3, "rewa')
    page = page_of(folder)
    assert chart(data_of(page), "learning", "mean reward, all levels")["variants"]["every update"][0]["x"] == [0, 1, 2]
    assert "metrics.jsonl: its last line is not complete yet" in page
    assert "samples.jsonl: its last line is not complete yet" in page


def test_settings_that_differ_are_a_table(tmp_path):
    runs = [write_run(tmp_path / str(beta), algo__beta=beta, metrics=metric_lines(2)) for beta in (0.04, 0.5)]
    cells = Elements(page_of(*runs)).inside
    assert "algo.beta" in cells["th:"] and "algo.clip_low" not in cells["th:"]
    assert "0.04" in cells["td:"] and "0.5" in cells["td:"]


def test_the_command_writes_the_page_and_prints_its_path_last(tmp_path, capsys):
    write_run(tmp_path / "runs/0", seed=0, metrics=metric_lines(2))
    write_run(tmp_path / "runs/1", seed=1, metrics=metric_lines(2))
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    last = Path(capsys.readouterr().out.splitlines()[-1])
    assert last == tmp_path / "out/report.html"
    assert data_of(last.read_text())["runs"] == ["ExP-GRPO, seed 0", "ExP-GRPO, seed 1"]
    assert sorted(file.name for file in last.parent.iterdir()) == ["curves.png", "report.html"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "there is no such folder"), ("", "neither it nor a folder in it"), ("algo: [", "cannot be read")],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, capsys, content, said):
    folder = tmp_path / "run"
    if content is not None:
        folder.mkdir()
    if content:
        (folder / "config.yaml").write_text(content)
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error and str(folder) in error
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_told(tmp_path, capsys):
    run = write_run(tmp_path / "run", metrics=metric_lines(1))
    (tmp_path / "file").write_text("")
    assert main([str(run), "--out", str(tmp_path / "file")]) == 2
    assert "--out=" in capsys.readouterr().err


def test_memory_is_the_largest_of_a_kind_of_actor_and_unknown_numbers_are_shown(tmp_path):
    values = {"memory/rollout-0_rss_mib": 10.0, "memory/rollout-1_rss_mib": 30.0, "memory/driver_threads": 4.0}
    metrics = [{"step": step, "something/new": 7.0, **values} for step in (0, 2)]
    data = data_of(page_of(write_run(tmp_path / "a", metrics=metrics)))
    titles = [one["title"] for one in data["sections"]["memory"]["charts"]]
    assert titles == ["rollout: resident memory, the largest of its actors", "driver: threads"]
    (series,) = chart(data, "memory", titles[0])["variants"]["every update"]
    assert (series["x"], series["mean"]) == ([0, 2], [30.0, 30.0])
    assert [one["title"] for one in data["sections"]["other"]["charts"]] == ["something/new"]


def test_the_likelihoods_are_those_of_the_first_step(tmp_path):
    values = {"gold": (-3.0, -2.0), "explanation": (-1.0, -1.5), "free": (-0.5, -0.25)}
    lines = [
        sample_line(
            kind, "x", step=step, uid=f"p{i}", level=i, properties={"mean_logprob": value - step, "answer_rise": i}
        )
        for step in (0, 1)
        for kind, of in values.items()
        for i, value in enumerate(of, start=1)
    ]
    page = page_of(write_run(tmp_path / "a", samples=lines))
    (of_group,) = data_of(page)["sections"]["likelihood"]["charts"]
    assert [(one["x"], one["mean"]) for one in of_group["variants"]["every update"]] == [
        ([1, 2], list(of)) for of in values.values()
    ]
    cells = Elements(page).inside
    for kind, name in (("gold", "gold solution"), ("explanation", "self-explanation"), ("free", "free completion")):
        assert f"ExP-GRPO: {name}" in cells["th:"]
        low, high = (
            min(values[kind]),
            max(values[kind]),
        )  # of two problems' mean the interval reaches from one to the other
        assert f"{sum(values[kind]) / 2:.2f} (95%: {low:.2f} to {high:.2f})" in cells["td:"]
    assert "is 2.0 times that of a self-explanation" in page
