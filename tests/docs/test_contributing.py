"""The pages for whoever changes meshgate name files, and names in them, that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "meshgate"
SECTION = (ROOT / "CONTRIBUTING.md").read_text().partition("## To do X, touch these files\n")[2].partition("\n## ")[0]
EXAMPLES = re.split(r"\n(?=\d+\. )", SECTION)[1:]
# A file, and in parentheses names that it holds.
PLACEHOLDERS = ("Proxy.Config",)
NAMED = re.compile(r"`([\w/.-]+\.\w+)`(?:\s+\((`[^)]*`)\))?")


def test_there_are_ten() -> None:
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda text: re.sub(r"\W+", " ", text.partition("**")[2][:40]).strip()
)
def test_what_an_example_names_exists(example: str) -> None:
    found = [each for each in NAMED.findall(example) if each[0] not in PLACEHOLDERS]
    assert found
    for path, names in found:
        base = ROOT if path.startswith(("tests/", "docs/", "deploy/")) else SOURCES
        assert (base / path).is_file(), path
        text = (base / path).read_text()
        assert [name for name in re.findall(r"`([^`]+)`", names) if name not in text] == [], path


def test_watching_a_config_entry_touches_the_files_that_are_named_and_no_others() -> None:
    (text,) = [text for text in EXAMPLES if "Watch one more config entry" in text]
    steps, _, uses = text.partition("What is done with")
    holding = (path for path in SOURCES.rglob("*.py") if "peer_through" in path.read_text())
    named, used = ({path for path, _ in NAMED.findall(part)} for part in (steps, uses))
    assert len(named) == 5
    # The tenth example says what `warm_start` is for.
    assert {path.relative_to(SOURCES).as_posix() for path in holding} == named | used | {"core/warm_start.py"}


@pytest.mark.parametrize(
    ("heading", "folder"), [("A stream's path", "adapters/relay"), ("A change's path", "adapters/consul")]
)
def test_a_path_names_files_that_exist(heading: str, folder: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"`([\w/]+\.py)`", text)
    assert found
    assert [path for path in found if not (SOURCES / (path if "/" in path else f"{folder}/{path}")).is_file()] == []
