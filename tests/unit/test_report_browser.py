"""The report in a real browser, if there is one: it draws, and hostile texts run nothing."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_cases import HOSTILE, Elements, evaluation_line, hostile_samples, metric_lines, write_run

from expo_ray.report import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)
LINK = '<a href="https://example.org/">link</a>'
"""Plotly makes links of such texts."""
HOVER = """setTimeout(() => {
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    const closest = plot.layout.hovermode === "closest";
    Plotly.Fx.hover(plot, closest ? [{ curveNumber: 0, pointNumber: 0 }] : { xval: 20, yval: 0.5 }, "xy");
  }
  const marks = document.querySelector(".scatter .plot");
  marks.emit("plotly_click", { points: [{ customdata: marks._fullData[0].customdata[0] }] });
  document.documentElement.dataset.hovered = "yes";
}, 2000);"""


def dom_of(page: Path) -> tuple[str, list[str]]:
    """The page's elements after its scripts ran, without the scripts' own text; and what the console said."""
    command = [str(CHROMIUM), "--headless", "--disable-gpu", "--window-size=1280,12000", "--virtual-time-budget=5000"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    command += ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", "--dump-dom", f"file://{page}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    dom = re.sub(r"(<script[^>]*>).*?</script>", r"\1</script>", done.stdout, flags=re.DOTALL)
    return dom, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def page(tmp_path) -> Path:
    """Two groups of runs whose labels are hostile too, because they differ in a hostile setting."""
    properties = {"mean_logprob": -1.0, "answer_rise": 2.0, "rise_over_free": 0.5}
    for number, text in enumerate((LINK, HOSTILE[0])):
        write_run(
            tmp_path / "runs" / str(number),
            samples=[line | {"properties": properties, "question": LINK} for line in hostile_samples()],
            metrics=[line | {"update/learning_rate": 1e-9 * line["step"]} for line in metric_lines(30)],
            evaluations=[evaluation_line(0, 0.1), evaluation_line(30, 0.8)],
            model__path=text,
        )
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out/report.html"


def test_the_page_draws_and_runs_nothing_of_the_samples(page):
    dom, said = dom_of(page)
    assert 'data-ready="yes"' in dom
    assert dom.count('role="img"') >= 6
    assert len(re.findall(r'class="[^"]*js-plotly-plot', dom)) >= 6
    assert len(re.findall(r'class="js-line"', dom)) >= 12  # two groups in six charts
    assert dom.count('<article class="prompt">') == 2 * len(HOSTILE)
    assert len(re.findall(r"<script", dom)) == 3 and "<img" not in dom
    assert said == []


def test_hostile_names_and_questions_stay_texts_in_the_charts(page):
    """Hovers over every chart, and clicks a mark, on a page whose policy is removed: only escaping protects it."""
    text = page.read_text().replace('http-equiv="Content-Security-Policy"', 'name="removed"')
    hovered = page.with_name("hovered.html")
    hovered.write_text(f"<script>{HOVER}</script></body>".join(text.rsplit("</body>", 1)))
    dom, said = dom_of(hovered)
    assert 'data-hovered="yes"' in dom and said == []
    assert dom.count('<article class="prompt">') == 1  # a click on a mark opens its prompt
    elements = Elements(dom)
    links = [value for _, of in elements.found for name, value in of.items() if "href" in name and value]
    assert links and not [value for value in links if "example" in value]
    assert "img" not in [tag for tag, _ in elements.found]
    assert [text for text in elements.inside["text:"] if LINK in text]  # a group's label
    assert [text for text in elements.inside["tspan:"] if LINK in text]  # a question, in a box of several lines
