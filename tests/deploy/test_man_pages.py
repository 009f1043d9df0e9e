"""The manual pages that the wheel installs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from meshgate.app.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "deploy" / "man"


def test_pages_are_what_the_commands_say_now(tmp_path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    subprocess.run([sys.executable, "-m", "manuals", tmp_path], env=environ, check=True, timeout=60)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(made) == {"meshgate.1", *(f"meshgate-{name}.1" for name in cli.commands)}
    assert {path.name: path.read_text() for path in PAGES.iterdir()} == made, "scripts/man-pages makes them anew"


def test_the_page_of_run_has_flags_examples_and_exit_codes() -> None:
    text = (PAGES / "meshgate-run.1").read_text()
    assert ".SS Registration\n.TP\n.B \\-\\-service NAME\n" in text
    assert ".SH EXAMPLES\n.nf\nmeshgate run" in text
    assert ".SH EXIT STATUS\n.TP\n.B 0\nfine\n" in text


@pytest.mark.skipif(shutil.which("mandoc") is None and shutil.which("groff") is None, reason="no formatter here")
@pytest.mark.parametrize("page", sorted(PAGES.glob("*.1")), ids=lambda path: path.name)
def test_a_formatter_takes_each_page(page: Path) -> None:
    tool = ["mandoc", "-Tlint", "-Werror"] if shutil.which("mandoc") else ["groff", "-man", "-ww", "-z"]
    ended = subprocess.run([*tool, page], capture_output=True, text=True, timeout=30, check=False)
    assert ended.stderr == ""
