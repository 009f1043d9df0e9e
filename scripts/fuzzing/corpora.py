"""The inputs that the targets begin with: `tests/data/fuzz`."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_CORPORA: Final = ROOT / "tests" / "data" / "fuzz"


def folder(name: str) -> Path:
    """Where the inputs of a target are; both of the hello share theirs."""
    return _CORPORA / ("hello" if name.startswith("hello") else name)


def corpus(name: str) -> list[bytes]:
    """The inputs of a target."""
    return [file.read_bytes() for file in sorted(folder(name).iterdir())]
