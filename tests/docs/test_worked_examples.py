"""The worked examples of CONTRIBUTING name what a change really touches."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "meshgate"


def examples() -> dict[str, str]:
    """The text of each, by its title."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Worked examples\n")[2].partition("\n## ")[0]
    titles = re.split(r"^\*\*(.+?)\*\*", section, flags=re.MULTILINE)[1:]
    return dict(zip(titles[::2], titles[1::2], strict=True))


def test_files_that_examples_name_exist() -> None:
    named = [path for text in examples().values() for path in re.findall(r"`([\w/]+\.(?:py|json|md))`", text)]
    assert named
    assert [path for path in named if not ((ROOT / path).exists() or (SOURCES / path).exists())] == []


def test_watching_a_config_entry_touches_the_files_that_are_named_and_no_others() -> None:
    steps, _, uses = examples()["Watch one more config entry"].partition("What is then done")
    touched = {
        path.relative_to(ROOT).as_posix() for path in SOURCES.rglob("*.py") if "peer_through" in path.read_text()
    }
    named = set(re.findall(r"`(src/[\w/]+\.py)`", steps))
    used = {f"src/meshgate/{path}" for path in re.findall(r"`([\w/]+\.py)`", uses)}
    assert len(named) == 5
    assert touched == named | used
