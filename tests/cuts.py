"""Whether this Python tells a TLS connection that was cut from one that ended in order. 3.11.2, of Debian, does not."""

import ssl
from typing import Final

import pytest


def _are_told() -> bool:
    incoming = ssl.MemoryBIO()
    incoming.write_eof()
    session = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    try:
        session.do_handshake()
    except ssl.SSLError as error:
        return isinstance(error, ssl.SSLEOFError)
    return False


needs_cuts: Final = pytest.mark.skipif(not _are_told(), reason="this Python calls a cut TLS connection ended in order")
