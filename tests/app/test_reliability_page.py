"""The page of promises names only tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", page)
    assert len(named) > 40
    assert [f"{path}::{name}" for path, name in named if name not in functions(ROOT / path)] == []


def test_every_row_of_promises_names_a_test() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.endswith(("held by |", "--- |"))]
    assert rows
    assert [row for row in rows if "::test_" not in row] == []


def functions(path: Path) -> set[str]:
    if not path.exists():
        return set()
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
