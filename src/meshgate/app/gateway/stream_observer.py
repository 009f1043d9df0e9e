"""Where the ends of streams go: refusals to the log, all of them to the access log."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from meshgate.adapters.relay import Refused, StreamRecord
from meshgate.app.logs.access_log import AccessLog
from meshgate.app.logs.gateway_log import RefusalLog
from meshgate.core.reasons import Reason

RECENT: Final = 50


class StreamObserver:
    """Passes on what the relay tells. `recent` has the last refusals, each with the Unix time at which it was told.

    Args:
        refusals: gets what was refused.
        access: gets every stream; None where no access log is wanted, which spares the relay the records.
        why_unroutable: why a lower-case name has no route although somebody in Consul wants it to; "" if nobody does.
    """

    def __init__(
        self, refusals: RefusalLog, access: AccessLog | None, why_unroutable: Callable[[str], str] = lambda _: ""
    ) -> None:
        self._why_unroutable = why_unroutable
        self._refusals = refusals
        self._access = access
        self._dropped_before = 0
        self.recent: deque[tuple[float, Refused]] = deque(maxlen=RECENT)

    @property
    def wants_records(self) -> bool:
        return self._access is not None

    @property
    def dropped(self) -> int:
        """Lines that no access log has written, ever."""
        return self._dropped_before + (0 if self._access is None else self._access.dropped)

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
        self._refusals.refused(refused)

    def on_ended(self, record: StreamRecord) -> None:
        if self._access is not None:
            self._access.write(record)
