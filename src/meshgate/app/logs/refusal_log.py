"""Says in the log which streams were refused and why, without letting strangers fill the disk.

Each refusal is counted in the metrics; the log gets at most `BURST` lines at once and `PER_SECOND` after that. How many
were left out is said with the next line.
"""

from typing import Final

import structlog
import trio

from meshgate.adapters.relay import Refused

BURST: Final = 20
PER_SECOND: Final = 5.0


class RefusalLog:
    """A token bucket in front of the log."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger) -> None:
        self._log = log
        self._tokens = float(BURST)
        self._refilled = trio.current_time()
        self._left_out = 0

    def refused(self, refused: Refused) -> None:
        """Note a refused stream."""
        now = trio.current_time()
        self._tokens = min(BURST, self._tokens + (now - self._refilled) * PER_SECOND)
        self._refilled = now
        if self._tokens < 1:
            self._left_out += 1
            return
        self._tokens -= 1
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
