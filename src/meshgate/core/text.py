"""Text from strangers, made safe to show.

Server names, service names and error texts come from elsewhere. What is printed or logged never moves a cursor, starts
a new line or hides itself: everything that is not printable is written as an escape.
"""


def printable(text: str) -> str:
    r"""`text` with control, format (bidirectional), surrogate and unassigned characters as `\n`, `\x1b`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
