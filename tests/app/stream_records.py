"""What is known at the end of a stream that was carried, and of one that was refused."""

from dataclasses import replace

from meshgate.adapters.relay import StreamRecord
from meshgate.core.reasons import StreamEnd

RECORD = StreamRecord(
    started=1_700_000_000.125,
    duration=1.2345,
    client="192.0.2.1:4000",
    listener="default",
    sni="web.default.dc2.internal.td.consul",
    alpn=("consul~tcp",),
    route="*.dc2.internal.td.consul",
    kind="datacenter",
    endpoint="[2001:db8::7]:8443",
    attempts=2,
    bytes_received=10,
    bytes_sent=20,
    reason=None,
    end=StreamEnd.ENDPOINT_RESET,
    flags="UC",
    worker=1,
)
REFUSED = replace(
    RECORD,
    sni=None,
    alpn=(),
    route=None,
    kind=None,
    endpoint=None,
    attempts=0,
    reason="no_sni",
    end=StreamEnd.REFUSED,
    flags="NR",
)
