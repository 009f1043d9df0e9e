"""What Consul asks centrally to be told of a gateway: its streams in an access log, its numbers by statsd."""

from meshgate.adapters.consul import OwnRegistration
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.admin.metrics import Metrics
from meshgate.app.admin.statsd import StatsdExport
from meshgate.app.gateway.gateway import Gateway
from meshgate.app.logs.central_access_log import CentralAccessLog


class Telemetry:
    """Follows the gateway's registration. `metrics` are the numbers that all share; `statsd` is to be run."""

    def __init__(self, view: GatewayView, gateway: Gateway) -> None:
        self.metrics = Metrics(view, lambda: self.statsd.dropped)
        self.statsd = StatsdExport(self.metrics.families)
        self._access_log = CentralAccessLog(gateway.settings, gateway.observer, gateway.relay.want_records)
        gateway.registration.on_registration = self.follow

    def follow(self, registration: OwnRegistration) -> None:
        """Take what the registration says now."""
        self._access_log.follow(registration.access_logs)
        self.statsd.follow(registration.config)
