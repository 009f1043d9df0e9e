"""`meshgate top` as an SVG: the very lines that a terminal shows, without the web font that rich would ask for."""

import io
import re
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from meshgate.app.admin_client import response_to
from meshgate.app.cli.top_command import STATE, look
from meshgate.app.cli.top_view import View, screen
from meshgate.core.addresses import HostPort

from .stage import Stage

WIDTH, HEIGHT = 88, 26


def picture_of_top(there: Stage, path: Path) -> None:
    """Looks twice, two seconds apart, and writes the second picture to `path`."""
    host, _, port = there.gateway.admin.partition(":")
    bind = HostPort(host, int(port))
    response_to(bind, STATE)
    time.sleep(2)
    seen = look(bind, view := View())
    console = Console(
        record=True, width=WIDTH, height=HEIGHT, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(screen(seen, view, "", WIDTH, HEIGHT))
    drawn = console.export_svg(title="meshgate top", theme=MONOKAI)
    drawn = re.sub(r"@font-face\s*\{[^}]*\}\s*", "", drawn).replace("Fira Code", "ui-monospace, Menlo, Consolas")
    path.write_text(drawn)
