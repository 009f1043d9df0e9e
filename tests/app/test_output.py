import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from meshgate.app.cli import output
from meshgate.app.cli.output import Printer, print_json


@pytest.fixture
def terminal() -> Any:
    """A printer for a terminal of 80 columns, and what it printed."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system="standard", highlight=False, markup=False)
    return Printer(console), file


@pytest.fixture
def plain() -> Any:
    file = io.StringIO()
    return Printer(Console(file=file)), file


def test_elsewhere_than_on_a_terminal_a_row_is_a_line(plain: Any) -> None:
    printer, file = plain
    printer.table(("A", "LONGER"), [("x" * 100, "one\ntwo"), ("y", "")], ["red", ""])
    assert file.getvalue() == f"{'A'.ljust(100)}  LONGER\n{'x' * 100}  one,two\ny\n"


def test_a_table_without_rows_is_its_head(plain: Any) -> None:
    printer, file = plain
    printer.table(("A", "B"), [])
    assert file.getvalue() == "A  B\n"


def test_a_terminals_width_is_kept_without_losing_a_letter(terminal: Any) -> None:
    printer, file = terminal
    name = "payments-service-with-a-long-name.default.datacenter-with-a-long-name.internal"
    printer.table(("SNI", "KIND", "ENDPOINTS"), [(name, "datacenter", "10.0.0.7:21000\n[2001:db8::8]:21000 unhealthy")])
    text = file.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert all(len(line) <= 80 for line in text.splitlines())
    column = "".join(line[: text.index("KIND")].strip() for line in text.splitlines()[1:])
    assert column == name


def test_colour_is_for_terminals(terminal: Any, plain: Any) -> None:
    for printer, _ in (terminal, plain):
        printer.line("refused", "red")
    assert "\x1b[31m" in terminal[1].getvalue()
    assert plain[1].getvalue() == "refused\n"


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    Printer(console).line("refused", "red")
    assert "31m" not in file.getvalue()


@pytest.mark.parametrize("kind", ["terminal", "plain"])
def test_text_of_a_stranger_is_shown_and_never_obeyed(kind: str, request: Any) -> None:
    printer, file = request.getfixturevalue(kind)
    hostile = "[bold]x[/bold]\x1b[2J\r:smile:\u202e"
    printer.line(hostile)
    printer.table(("A",), [(hostile,)])
    text = file.getvalue()
    assert "[2J" in text
    assert "\x1b[2J" not in text
    assert "\r" not in text
    assert "\u202e" not in text
    assert text.count("[bold]x[/bold]") == 2
    assert text.count(":smile:") == 2


def test_json_on_a_terminal_has_no_character_that_it_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"na\x9b2Jme": ["\x7f", "\u202e", "\u00fc", "\U0001f600"]}
    for indent in (2, None):
        print_json(value, indent=indent)
        text = capsys.readouterr().out
        assert text.isascii()
        assert text.replace("\n", "").isprintable()
        assert json.loads(text) == value


def test_no_command_prints_json_in_another_way() -> None:
    folder = Path(output.__file__).parent
    ways = re.compile(r"json\.dumps|json\.encode|json\.format")
    assert [path.name for path in folder.glob("*.py") if ways.search(path.read_text())] == ["output.py"]
