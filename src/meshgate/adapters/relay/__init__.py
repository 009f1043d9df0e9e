"""The relay: carries TLS streams from listeners to endpoints, byte for byte, without ever terminating one.

`Relay` is the whole outside of it: listeners and route tables go in, `Counters` come out. Everything behind it is
plain synchronous state machines under one epoll instance, which one trio task owns:

    engine      the epoll loop: events and deadlines in, turns out; fair between streams
    listener    accepts, sheds what is over a limit, survives running out of descriptors
    connection  one stream: hello, dialling, relaying, refusal
    pump        moves bytes from one socket to another: copy, or splice for heavy streams
    deadlines   thousands of timeouts in one wheel
    pipes       the pool of kernel pipes that splice goes through
    sockets     socket options and addresses
    counters    what happened, as numbers
"""

from .counters import CONNECT_BUCKETS, Counters, Refused
from .limits import Limits
from .relay import Relay

__all__ = ["CONNECT_BUCKETS", "Counters", "Limits", "Refused", "Relay"]
