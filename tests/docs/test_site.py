"""The documentation's site builds without a warning, and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / f"{name}.md" for name in ("README", "SECURITY", "CONTRIBUTING"))]


def test_site_builds_strictly(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-n",
        "-q",
        "-b",
        "html",
        "-d",
        str(tmp_path / "trees"),
    ]
    ended = subprocess.run([*command, DOCS, tmp_path / "site"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "site" / "start.html").exists()


def test_every_page_is_reached_from_the_first_one() -> None:
    trees = "".join(page.read_text() for page in DOCS.rglob("*.md") if "```{toctree}" in page.read_text())
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS).with_suffix(""))
        assert name == "index" or re.search(rf"^{re.escape(name)}$", trees, re.MULTILINE), name


def test_files_that_the_pages_name_exist() -> None:
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text):
            assert (page.parent / target).exists() or (ROOT / target).exists(), f"{page.name}: {target}"
        for path in re.findall(r"`((?:src|tests|deploy|docs|scripts)/[\w./-]+?)/?`", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
