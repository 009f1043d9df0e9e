"""The relay: carries TLS streams from listeners to endpoints, byte for byte, without ever terminating one.

`pool.RelayPool` is the whole outside of it: listeners and route tables go in, `Counters` come out. It keeps worker
processes, in each of which a `Relay` works. Everything behind that is plain synchronous state machines under one epoll
instance, which one trio task owns. Neither side imports what it does not need, so neither is imported here.

    pool, worker_process   the parent's side: processes, what they are told, endpoints that none of them should try
    worker, messages       the other side, and what the two tell each other
    relay                  the relay of one process, made of:
      reactor              events, deadlines and turns; knows no streams
      listener             accepts, sheds what is over a limit, survives running out of descriptors
      stream               one stream: relaying, refusal, endings
      stream_setup         its beginning, which returns what came of each step: hello, route, dialling
      pump                 its two legs, and what moves bytes between them: copy, or splice for heavy streams
      circuit_breakers     the limits, and the ticket that all counts of a stream are on
      on_demand            streams that wait until Consul was asked about their name
      overload             cuts silent clients when slots or descriptors run short
      hand_over            how streams go from one worker process to another
      context              what all of them share

Each imports only what stands below it, or `context`, and nothing imports back, not for the names of types either.
"""

from .counters import (
    CONNECT_BUCKETS,
    FIRST_BYTE_BUCKETS,
    STREAM_BUCKETS,
    Counters,
    Destination,
    OpenStream,
    Refused,
    Sender,
    StreamRecord,
)
from .limits import Limits

__all__ = [
    "CONNECT_BUCKETS",
    "FIRST_BYTE_BUCKETS",
    "STREAM_BUCKETS",
    "Counters",
    "Destination",
    "Limits",
    "OpenStream",
    "Refused",
    "Sender",
    "StreamRecord",
]
