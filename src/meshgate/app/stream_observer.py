"""Where the ends of streams go: refusals to the log, all of them to the access log."""

from meshgate.adapters.relay import Refused, StreamRecord

from .access_log import AccessLog
from .refusal_log import RefusalLog


class StreamObserver:
    """Passes on what the relay tells.

    Args:
        refusals: gets what was refused.
        access: gets every stream; None where no access log is wanted, which spares the relay the records.
    """

    def __init__(self, refusals: RefusalLog, access: AccessLog | None) -> None:
        self._refusals = refusals
        self._access = access

    @property
    def wants_records(self) -> bool:
        """Whether anybody reads records."""
        return self._access is not None

    def on_refused(self, refused: Refused) -> None:
        """A stream was refused."""
        self._refusals.refused(refused)

    def on_ended(self, record: StreamRecord) -> None:
        """A stream has ended."""
        if self._access is not None:
            self._access.write(record)
