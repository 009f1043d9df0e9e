"""Distinguished names in DER, as the certificate_authorities extension holds them (RFC 5280 section 4.1.2.4).

No gateway needs these names, but OpenSSL decodes them before it looks at the server name, and refuses the hello where
it cannot. A name that passes here decodes there; forms that no encoder of certificates uses (lengths of more than two
bytes, constructed strings) do not pass.
"""

from typing import Final

from meshgate.core.hello_key_share import Bytes

__all__ = ["is_distinguished_name"]

_OBJECT_IDENTIFIER: Final = 0x06
_SEQUENCE: Final = 0x30
_SET: Final = 0x31

# By their tags: UTF8String, NumericString, PrintableString, TeletexString, IA5String, UniversalString, BMPString.
_STRINGS: Final = {
    0x0C: "utf-8",
    0x12: "ascii",
    0x13: "ascii",
    0x14: "latin-1",
    0x16: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}


def is_distinguished_name(data: Bytes, start: int, end: int) -> bool:
    """Whether data[start:end] is one name: a SEQUENCE of SETs of SEQUENCEs of an object identifier and a string."""
    try:
        ((body, stop),) = _contents(data, start, end, _SEQUENCE)
        for set_start, set_end in _contents(data, body, stop, _SET):
            for attribute in _contents(data, set_start, set_end, _SEQUENCE):
                _check_attribute(data, *attribute)
    except ValueError:
        return False
    return True


def _check_attribute(data: Bytes, start: int, end: int) -> None:
    (kind, *name), (string, body, stop) = _values(data, start, end)
    if kind != _OBJECT_IDENTIFIER or string not in _STRINGS:
        raise ValueError
    numbers = bytes(data[name[0] : name[1]])
    # Base 128, most significant first, the high bit on all bytes of a number but its last; no leading zeros.
    starts_number = True
    for number in numbers:
        if starts_number and number == 0x80:
            raise ValueError
        starts_number = number < 0x80
    if not numbers or not starts_number:
        raise ValueError
    bytes(data[body:stop]).decode(_STRINGS[string])


def _contents(data: Bytes, start: int, end: int, tag: int) -> list[tuple[int, int]]:
    """The bounds of the contents of the values that data[start:end] is made of, all of which have this tag."""
    values = _values(data, start, end)
    if any(found != tag for found, _, _ in values):
        raise ValueError
    return [(body, stop) for _, body, stop in values]


def _values(data: Bytes, position: int, end: int) -> list[tuple[int, int, int]]:
    """The values that data[position:end] is made of: the tag of each, and the bounds of its contents."""
    values = []
    while position < end:
        if end - position < 2:
            raise ValueError
        tag, size, body = data[position], data[position + 1], position + 2
        if size >= 0x80:
            width = size - 0x80
            body += width
            if width not in (1, 2) or body > end:
                raise ValueError
            size = int.from_bytes(data[body - width : body])
        position = body + size
        if position > end:
            raise ValueError
        values.append((tag, body, position))
    return values
