"""Where the ends of streams go: refusals to the log, all to the access log, and some are kept for a while.

Each refusal is counted in the metrics; the log gets at most `BURST` lines at once and `PER_SECOND` after that, so that
strangers cannot fill the disk. How many were left out is said with the next line. At level debug the log has a line for
each stream that was carried, too.

What is kept is what somebody asks about later: refusals, and streams that did not end in order. There are KEPT of each
end at most, so that ends that a client can cause at will do not push the others out.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

import structlog
import trio

from meshgate.adapters.relay import Refused, StreamRecord
from meshgate.app.logs import logs
from meshgate.app.logs.access_log import AccessLog
from meshgate.core.reasons import Reason, StreamEnd
from meshgate.core.token_bucket import TokenBucket

log = structlog.get_logger(module="meshgate")

KEPT: Final = 500
BURST: Final = 20
PER_SECOND: Final = 5.0


class StreamObserver:
    """Passes on what the relay tells. `recent` has the last refusals, each with the Unix time at which it was told.

    Without an access log, and above level debug, the relay is spared the records of streams that end in order.
    `why_unroutable` says why a lower-case name has no route although somebody in Consul wants it to; "" if nobody does.
    """

    def __init__(self, access: AccessLog | None, why_unroutable: Callable[[str], str] = lambda _: "") -> None:
        self._why_unroutable = why_unroutable
        self._access = access
        self._dropped_before = 0
        self._refusal_lines = TokenBucket(PER_SECOND, BURST)
        self._left_out = 0
        self.recent: deque[tuple[float, Refused]] = deque(maxlen=KEPT)
        self._ended: dict[StreamEnd, deque[StreamRecord]] = {end: deque(maxlen=KEPT) for end in StreamEnd}

    def go_on(self, recent: Iterable[tuple[float, Refused]], ended: Iterable[StreamRecord], dropped: int) -> None:
        """Go on with what the version before has kept, and with its lost lines."""
        self.recent.extend(recent)
        for record in ended:
            self._ended[record.end].appendleft(record)
        self._dropped_before += dropped

    def flush(self, timeout: float) -> bool:
        """Wait until the access log has written what it was given; blocks. Whether it has."""
        return self._access is None or self._access.flush(timeout)

    @property
    def has_access_log(self) -> bool:
        return self._access is not None

    @property
    def wants_records(self) -> bool:
        return self._access is not None or logs.debugging()

    @property
    def dropped(self) -> int:
        """Lines that no access log has written, ever."""
        return self._dropped_before + (0 if self._access is None else self._access.dropped)

    @property
    def ended(self) -> list[StreamRecord]:
        """The last streams that did not end in order, without those that were refused; the newest first."""
        return sorted((it for kept in self._ended.values() for it in kept), key=lambda it: -it.started - it.duration)

    def use(self, access: AccessLog | None) -> None:
        """Write to another access log from now on. The one before writes what it has taken, and nobody waits for it."""
        before, self._access = self._access, access
        if before is not None:
            self._dropped_before += before.dropped
            before.close(timeout=0)

    def reopen(self) -> None:
        """Open the file of the access log again: it may have been rotated."""
        if self._access is not None:
            self._access.reopen()

    def on_refused(self, refused: Refused) -> None:
        if refused.reason is Reason.UNKNOWN_SNI and (why := self._why_unroutable((refused.server_name or "").lower())):
            refused = replace(refused, detail=why)
        self.recent.append((time.time(), refused))
        if not self._refusal_lines.take(trio.current_time()):
            self._left_out += 1
            return
        more, self._left_out = {"left_out": self._left_out} if self._left_out else {}, 0
        sni, client = refused.server_name, refused.client
        log.info("stream refused", reason=refused.reason.value, sni=sni, client=client, detail=refused.detail, **more)

    def on_ended(self, record: StreamRecord) -> None:
        if self._access is not None:
            self._access.write(record)
        if record.reason is None and logs.debugging():
            log.debug(
                "stream ended",
                end=record.end.value,
                sni=record.sni,
                client=record.client,
                endpoint=record.endpoint,
                seconds=round(record.duration, 3),
                bytes_received=record.bytes_received,
                bytes_sent=record.bytes_sent,
            )
        # Whoever was refused is known by `on_refused`, shed ones included.
        if record.end is not StreamEnd.CLOSED and record.reason is None:
            self._ended[record.end].append(replace(record, alpn=()))
