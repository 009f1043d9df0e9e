"""What commands print. Tables for people: colored and folded on a terminal, plain lines for grep and awk elsewhere.

Cells hold text from Consul and from strangers: it is made printable, and never read as markup.
"""

import json
from collections.abc import Sequence
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshgate.core.text import ascii_json, printable

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


class Printer:
    """Prints to stdout, or to another console. `NO_COLOR` and a `TERM` that is dumb are respected."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, emoji=False)

    @property
    def is_terminal(self) -> bool:
        return self.console.is_terminal

    def line(self, text: str = "", style: str = "") -> None:
        self.console.print(Text(printable(text), style), soft_wrap=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> None:
        """Print rows under a head. A cell may have several lines; `styles` has a style for each row, or nothing."""
        cells = [[[printable(line) for line in cell.split("\n")] for cell in row] for row in rows]
        if self.is_terminal:
            self._rich_table(head, cells, styles)
        else:
            self._plain_table(head, [[",".join(lines) for lines in row] for row in cells])

    def _rich_table(self, head: Sequence[str], rows: Sequence[Sequence[Sequence[str]]], styles: Sequence[str]) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for title in head:
            table.add_column(title, overflow="fold")
        for number, row in enumerate(rows):
            table.add_row(*(Text("\n".join(lines)) for lines in row), style=styles[number] if styles else "")
        self.console.print(table)

    def _plain_table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.console.file.write(f"{text.rstrip()}\n")
        # Whoever reads this from a pipe may wait for it, while the command goes on.
        self.console.file.flush()


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print records, mappings and lists as JSON; in ASCII, so that a terminal obeys no stranger's character.

    Args:
        value: what is printed.
        indent: None for one line.
    """
    click.echo(ascii_json(json.dumps(msgspec.to_builtins(value), indent=indent)))


def rate(per_second: float | None) -> str:
    """A rate in at most five characters."""
    if per_second is None:
        return "-"
    return f"{per_second:.1f}" if per_second < 1000 else f"{per_second / 1000:.0f}k"


def size(count: float | None) -> str:
    """An amount of bytes in three digits and a unit; decimal, as networks are."""
    if count is None:
        return "-"
    amount, unit = count, 0
    # What rounds to four digits belongs to the next unit.
    while amount >= 999.5 and unit + 1 < len(_UNITS):
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit and amount < 99.95 else f"{amount:.0f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
