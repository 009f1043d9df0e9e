"""What an error says to a person: why something failed, without the class, the number and the `repr` of a library."""

import os
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Final

# What libraries put behind their words: a place in Python's own source, bytes as Python writes them, a value of Rust's.
_NO_WORDS: Final = re.compile(r" \(_ssl\.c:\d+\)$|: bytearray\(b.*|: ParseError \{.*", re.DOTALL)
_DEFECTS: Final = (LookupError, TypeError, AttributeError, AssertionError, NameError)


def words_of(error: BaseException) -> str:
    """Why something failed, whichever library raised the error.

    Libraries wrap what went wrong, some twice: what lies at the bottom and has words says it best. An error without
    any words, such as a timeout of httpx, is called what its class is called: `read timeout`.
    """
    said = [words for each in causes(error) if (words := _words(each))]
    if said:
        return said[-1]
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error")).lower()


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what lies below it; of a group, the first."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, BaseExceptionGroup):
            at = at.exceptions[0]
        else:
            yield at
            # httpcore takes the cause away from its errors.
            at = at.__cause__ or (at.__context__ if type(at).__module__.startswith("httpcore") else None)


def _words(error: BaseException) -> str:
    match error:
        case MemoryError():
            return "out of memory"
        case RecursionError():
            return "nested too deeply"
        case UnicodeDecodeError():
            return f"not {error.encoding.upper()}"
        case ssl.SSLCertVerificationError():
            return error.verify_message
        case ssl.SSLError():
            return (error.reason or "").replace("_", " ").lower() or _NO_WORDS.sub("", error.strerror or str(error))
        case socket.gaierror():
            return error.strerror or str(error)
        case OSError() if error.errno:
            # Trio puts the address that was called before the system's words; our own errors have others.
            words = os.strerror(error.errno)
            return error.strerror if error.strerror and words not in error.strerror else words
    if isinstance(error, _DEFECTS):
        # Nothing that a user can mend, and their texts alone say little.
        return f"unexpected {type(error).__name__}: {error}"
    return _NO_WORDS.sub("", str(error))
