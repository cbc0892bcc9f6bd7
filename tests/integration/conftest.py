"""What integration tests share."""

from pathlib import Path

import pytest

from tests.integration.small_run import start


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """The folder of a small run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("small_run") / "run"
    assert start(folder).wait(timeout=600) == 0, folder.with_suffix(".stderr").read_text()[-3000:]
    return folder
