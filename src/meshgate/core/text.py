"""Text for people: numbers of things, and text from strangers, made safe to show.

Server names, service names and error texts come from elsewhere. What is printed or logged never moves a cursor, starts
a new line or hides itself: everything that is not printable is written as an escape.
"""

import json
import re
from typing import Final

_BEYOND: Final = re.compile("[^ -~\t\n\r]+")


def counted(number: int, thing: str) -> str:
    """`1 stream`, `2 streams`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    r"""`text` with control, format (bidirectional), surrogate and unassigned characters as `\n`, `\x1b`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def ascii_json(text: str) -> str:
    r"""JSON with all that is not printable ASCII as `\u009b`: the same values, and nothing that a terminal obeys.

    JSON lets control characters from U+007F on stand in a string as they are; those before it are always escapes.
    """
    if text.isascii() and "\x7f" not in text:
        return text
    return _BEYOND.sub(lambda found: json.dumps(found[0])[1:-1].replace("\x7f", "\\u007f"), text)
