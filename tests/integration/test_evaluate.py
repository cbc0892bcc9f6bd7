"""The evaluation command with real engines on the toy task: it resumes to the same files after a stop and a kill."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.small_run import finish, kill, launch

PROBLEMS, SAMPLES, CHUNK = 100, 4, 5
# Hot enough that the samples of one problem differ: at 0.7 the base model nearly always says the same.
COMMAND = [
    *("model=toy", "data=toy", "profile=cpu", f"eval.samples={SAMPLES}", f"eval.max_problems={PROBLEMS // 5}"),
    *(f"eval.chunk={CHUNK}", "eval.temperature=1.3"),
]

# Each test starts engines once or twice; a busy machine takes minutes for a start.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    return launch("expo_ray.evaluate", *COMMAND, f"run_dir={folder}", *more)


def lines_in(folder: Path) -> int:
    file = folder / "samples.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for_lines(process: subprocess.Popen[str], folder: Path, wanted: int, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while lines_in(folder) < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1][-3000:]
    assert lines_in(folder) >= wanted


def results(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "samples.jsonl").read_bytes(), (folder / "evaluation.json").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "undisturbed"
    done = finish(start(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == str(folder)
    return folder


def test_the_folder_is_complete_and_the_samples_vary(undisturbed):
    lines = [json.loads(line) for line in (undisturbed / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == PROBLEMS * SAMPLES
    texts = [{line["text"] for line in lines if line["uid"] == uid} for uid in {line["uid"] for line in lines}]
    assert sum(len(of) > 1 for of in texts) > PROBLEMS / 2
    summary = json.loads((undisturbed / "evaluation.json").read_text())
    assert summary["problems"] == {"1": 20, "2": 20, "3": 20, "4": 20, "5": 20, "all": PROBLEMS}
    right = sum(line["outcome"] == "correct" for line in lines) / len(lines)
    assert summary["by_level"]["all"]["accuracy"]["mean"] == pytest.approx(right, abs=1e-6)
    for line in lines:
        assert (line["outcome"] == "correct") == (line["extracted"] in line["answers"])


def test_killed_it_goes_on_to_the_same_files(undisturbed, tmp_path):
    folder = tmp_path / "killed"
    process = start(folder)
    wait_for_lines(process, folder, 2 * CHUNK * SAMPLES)
    kill(process)
    killed_at = lines_in(folder)
    assert killed_at < PROBLEMS * SAMPLES
    assert not (folder / "evaluation.json").exists()
    with (folder / "samples.jsonl").open("ab") as file:
        file.write((undisturbed / "samples.jsonl").read_bytes().splitlines()[killed_at][:40])

    done = finish(start(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resuming after chunk {killed_at // (CHUNK * SAMPLES)} of {PROBLEMS // CHUNK}" in done.stderr
    assert results(folder) == results(undisturbed)


def test_ctrl_c_leaves_whole_chunks_and_no_process(undisturbed, tmp_path):
    folder = tmp_path / "stopped"
    process = start(folder)
    wait_for_lines(process, folder, CHUNK * SAMPLES)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.returncode == 130, done.stderr[-3000:]
    assert f"the same command with run_dir={folder} resumes" in done.stderr
    assert done.stdout.splitlines()[-1] == str(folder)
    assert 0 < lines_in(folder) < PROBLEMS * SAMPLES
    assert lines_in(folder) % (CHUNK * SAMPLES) == 0
    assert (undisturbed / "samples.jsonl").read_bytes().startswith((folder / "samples.jsonl").read_bytes())
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, [process.cmdline() for process in alive]


def test_a_finished_evaluation_is_only_told_again(undisturbed):
    before = results(undisturbed)
    done = finish(start(undisturbed))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "pass@4" in done.stdout
    assert "this chunk" not in done.stderr
    assert results(undisturbed) == before


def test_other_sampling_in_the_same_folder_is_refused(undisturbed):
    before = results(undisturbed)
    done = finish(start(undisturbed, "eval.temperature=0.5"))
    assert done.returncode == 2
    assert "error: eval.temperature=0.5 is not the 1.3" in done.stderr
    assert results(undisturbed) == before
