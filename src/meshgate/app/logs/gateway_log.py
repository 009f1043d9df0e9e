"""Lines of the log about route tables and refused streams.

Each refusal is counted in the metrics; the log gets at most `BURST` lines at once and `PER_SECOND` after that, so that
strangers cannot fill the disk. How many were left out is said with the next line.
"""

from dataclasses import replace
from typing import Final

import structlog
import trio

from meshgate.adapters.relay import Refused
from meshgate.core.addresses import LEADS_BACK
from meshgate.core.host_port import host_port
from meshgate.core.routes import Endpoint, Route, RouteTable, TableChange
from meshgate.core.token_bucket import TokenBucket

log = structlog.get_logger(module="meshgate")


# Why there may be no route at a start that went well.
_NOTHING_YET: Final = "the catalog has no mesh service and no gateway elsewhere yet that the token sees"


def tell_ready(table: RouteTable) -> None:
    """The line that says that streams are taken from now on."""
    if len(table):
        log.info("ready", routes=len(table))
    else:
        log.info("ready", routes=0, why=_NOTHING_YET)


def tell_table(before: RouteTable, after: RouteTable, change: TableChange) -> None:
    """One line with the numbers, and one for each name that two things in Consul claim since now."""
    pairs = [((before.suffixes if each.suffix else before.exact).get(each.name), each) for each in change.routes]
    added = sum(old is None for old, _ in pairs)
    # Whether a route is followed closely is no news.
    changed = sum(old is not None and replace(old, stale=new.stale) != new for old, new in pairs)
    if added or changed or change.removed:
        log.info("routes changed", total=len(after), added=added, removed=len(change.removed), changed=changed)
    for old, route in pairs:
        for endpoint in _circles(route) - _circles(old):
            log.warning(
                "an endpoint in Consul is this gateway itself and gets no streams, they would go in circles",
                sni=route.sni,
                endpoint=host_port(endpoint.address, endpoint.port),
                node=endpoint.node,
                instance=endpoint.instance,
            )
    for name in set(after.conflicts) - set(before.conflicts):
        log.warning("two things in Consul claim one name; the one without a dot in its name has it", sni=name)


def _circles(route: Route | None) -> set[Endpoint]:
    return set() if route is None else {each for each in route.endpoints if each.cause == LEADS_BACK}


BURST: Final = 20
PER_SECOND: Final = 5.0


class RefusalLog:
    """A token bucket in front of the log."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger) -> None:
        self._log = log
        self._bucket = TokenBucket(PER_SECOND, BURST)
        self._left_out = 0

    def refused(self, refused: Refused) -> None:
        if not self._bucket.take(trio.current_time()):
            self._left_out += 1
            return
        more = {"left_out": self._left_out} if self._left_out else {}
        self._left_out = 0
        self._log.info(
            "stream refused",
            reason=refused.reason.value,
            sni=refused.server_name,
            client=refused.client,
            detail=refused.detail,
            **more,
        )
