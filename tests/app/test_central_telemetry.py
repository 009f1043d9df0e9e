"""The gateway follows what its registration says of access log and statsd."""

from pathlib import Path

import trio

from meshgate.adapters.admin.statsd import Target
from meshgate.adapters.consul.api import ConsulAddress, ConsulClient, OwnRegistration
from meshgate.adapters.sd_notify import Notifier
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.composition_root import Telemetry
from meshgate.app.gateway.gateway import Gateway
from meshgate.app.settings.settings import Settings

from .stream_records import RECORD
from .test_central_access_log import lines_of, written


async def test_a_changed_registration_changes_where_streams_and_numbers_are_told(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    environ = {"MESHGATE_ACCESS_LOG_DIR": str(tmp_path)} | {
        "MESHGATE_WORKERS": "1",
        "MESHGATE_ADDRESS": "127.0.0.1:1",
        "MESHGATE_ADMIN_BIND": "off",
    }
    settings = Settings.load({}, environ=environ)
    async with ConsulClient(ConsulAddress.from_settings({})) as client, trio.open_nursery() as nursery:
        gateway = Gateway(settings, client, Notifier())
        wanted_before = gateway.observer.wants_records
        telemetry = Telemetry(GatewayView(gateway), gateway)
        nursery.start_soon(gateway.relay.run)
        asked = OwnRegistration(
            "gw",
            "gw",
            "",
            8443,
            config={"envoy_statsd_url": "udp://127.0.0.1:8125"},
            access_logs={"Enabled": True, "Type": "file", "Path": str(path), "TextFormat": "%BYTES_SENT%"},
        )
        gateway.registration.on_registration(asked)
        assert list(telemetry.statsd._targets) == [Target(("127.0.0.1", 8125))]
        assert (wanted_before, gateway.observer.wants_records) == (False, True)
        gateway.observer.on_ended(RECORD)
        assert await lines_of(path, 1) == ["20"]
        gateway.registration.on_registration(OwnRegistration("gw", "gw", "", 8443))
        assert not telemetry.statsd._targets
        assert gateway.observer.dropped == 0
        gateway.observer.on_ended(RECORD)
        assert written(path) == ["20"]
        nursery.cancel_scope.cancel()
