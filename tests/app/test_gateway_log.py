"""What the log says of a table when streams are taken from now on."""

from structlog.testing import capture_logs

from meshgate.app.gateway.table_keeper import tell_ready
from meshgate.core.catalog import RemoteDatacenter, Snapshot
from meshgate.core.routes import RouteTable
from tests.adapters.consul.model import gateway
from tests.core.samples import plan


def test_start_without_a_route_says_why_and_is_no_warning() -> None:
    with capture_logs() as logs:
        tell_ready(RouteTable.of("dc1", "td.consul", "default", iter(())))
    (line,) = logs
    assert (line["event"], line["log_level"], line["routes"]) == ("ready", "info", 0)
    assert line["why"] == "the catalog has no mesh service and no gateway elsewhere yet that the token sees"


def test_start_with_routes_says_how_many() -> None:
    snapshot = Snapshot("dc1", "td.consul", remotes=(RemoteDatacenter("dc2", (gateway("dc2"),)),))
    with capture_logs() as logs:
        tell_ready(plan(snapshot))
    assert logs == [{"event": "ready", "log_level": "info", "routes": 1, "module": "meshgate"}]
