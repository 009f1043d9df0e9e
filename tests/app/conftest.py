import os
from pathlib import Path

import pytest


@pytest.fixture
def clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside, and an empty folder to be in."""
    for name in os.environ:
        if name.startswith(("MESHGATE_", "CONSUL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
