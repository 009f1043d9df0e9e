"""The relay: carries TLS streams from listeners to endpoints, byte for byte, without ever terminating one.

`pool.RelayPool` is the whole outside of it: listeners and route tables go in, `Counters` come out. It keeps worker
processes, in each of which a `Relay` works. Everything behind that is plain synchronous state machines under one epoll
instance, which one trio task owns. A worker imports nothing that it does not need, so the pool is not imported here.

    pool, worker, messages   the processes, and what they tell each other
    shared      counts that all workers share, for the limits
    destinations   the limits of each destination
    relay       the relay of one process
    engine      the epoll loop: events and deadlines in, turns out; fair between streams
    protocols   whom the engine calls
    listener    accepts, sheds what is over a limit, survives running out of descriptors
    pressure    cuts silent clients when slots or descriptors run short
    connection  one stream: relaying, refusal, endings
    opening     its beginning: hello, route, dialling
    leg         one of its two sockets
    pump        moves bytes from one socket to another: copy, or splice for heavy streams
    deadlines   thousands of timeouts in one wheel
    pipes       the pool of kernel pipes that splice goes through
    sockets     socket options and addresses
    counters, records   what happened, as numbers and as lines
"""

from .counters import CONNECT_BUCKETS, STREAM_BUCKETS, Counters, OpenStream, Refused, StreamRecord
from .limits import Limits
from .relay import Relay

__all__ = ["CONNECT_BUCKETS", "STREAM_BUCKETS", "Counters", "Limits", "OpenStream", "Refused", "Relay", "StreamRecord"]
