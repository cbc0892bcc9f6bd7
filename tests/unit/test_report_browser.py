"""The report in a real browser, where there is one: it draws, and hostile texts run nothing."""

import os
import re
import shutil
import subprocess

import pytest
from report_cases import HOSTILE, evaluation_line, hostile_samples, metric_lines, write_run

from expo_ray.report import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_the_page_draws_and_runs_nothing_of_the_samples(tmp_path):
    run = write_run(
        tmp_path / "run",
        samples=hostile_samples(),
        metrics=metric_lines(30),
        evaluations=[evaluation_line(0, 0.1), evaluation_line(30, 0.8)],
        model__path=HOSTILE[0],
    )
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    page = tmp_path / "out/report.html"
    command = [CHROMIUM, "--headless", "--disable-gpu", "--window-size=1280,900", "--virtual-time-budget=3000"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", f"file://{page}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    dom = done.stdout
    assert 'data-ready="yes"' in dom
    assert dom.count('role="img"') >= 6
    assert dom.count('<article class="prompt">') == len(HOSTILE)
    assert len(re.findall(r"<script", dom)) == 2 and "<img" not in dom
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
