"""The made files, once per session, and the rules of docs/inputs.md."""

from __future__ import annotations

from pathlib import Path

import dfmtest_broken_files
import pytest


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    dfmtest_broken_files.make_files(folder)
    return folder
