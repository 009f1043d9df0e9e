"""What Consul asks centrally to be told of a gateway: its streams in an access log, its numbers by statsd."""

from typing import TYPE_CHECKING

from meshgate.adapters.consul import OwnRegistration
from meshgate.app.admin.gateway_stats import StatsSource
from meshgate.app.admin.statsd import StatsdExport
from meshgate.app.logs.central_access_log import CentralAccessLog

if TYPE_CHECKING:
    from meshgate.app.gateway.gateway import Gateway


class Telemetry:
    """Follows the gateway's registration; `statsd` is to be run."""

    def __init__(self, gateway: "Gateway") -> None:
        self.statsd = StatsdExport(StatsSource(gateway).gather)
        self._access_log = CentralAccessLog(gateway.settings, gateway.observer, gateway.relay.want_records)

    def follow(self, registration: OwnRegistration) -> None:
        """Take what the registration says now."""
        self._access_log.follow(registration.access_logs)
        self.statsd.follow(registration.config)
