import errno
import socket

import pytest

from meshgate.adapters.consul import GatewayDefinition, RegistrationError
from meshgate.adapters.consul.service_definition import can_bind
from meshgate.core.proxy_config import BindAddress


def test_the_defaults_are_those_of_consuls_own_command() -> None:
    assert GatewayDefinition().payload() == {
        "Kind": "mesh-gateway",
        "Name": "mesh-gateway",
        "ID": "mesh-gateway",
        "Port": 8443,
        "Weights": {"Passing": 1, "Warning": 1},
        "Check": {
            "Name": "mesh-gateway listening",
            "TCP": "127.0.0.1:8443",
            "Interval": "10s",
            "DeregisterCriticalServiceAfter": "6h",
            "Status": "passing",
        },
    }


def test_everything_set_is_sent() -> None:
    definition = GatewayDefinition(
        service="gw",
        proxy_id="gw-1",
        address="127.0.0.7",
        port=8555,
        wan_address="192.0.2.1",
        wan_port=443,
        expose_servers=True,
        deregister_after_critical=90.0,
        namespace="team",
        partition="p1",
    )
    payload = definition.payload()
    assert (payload["Name"], payload["ID"], payload["Address"], payload["Port"]) == ("gw", "gw-1", "127.0.0.7", 8555)
    assert payload["TaggedAddresses"] == {
        "lan": {"Address": "127.0.0.7", "Port": 8555},
        "wan": {"Address": "192.0.2.1", "Port": 443},
    }
    assert payload["Meta"] == {"consul-wan-federation": "1"}
    assert payload["Check"]["TCP"] == "127.0.0.7:8555"
    assert payload["Check"]["DeregisterCriticalServiceAfter"] == "1m30s"
    assert (payload["Namespace"], payload["Partition"]) == ("team", "p1")


def test_an_ipv6_address_is_bracketed_in_the_check() -> None:
    payload = GatewayDefinition(address="::1", port=1).payload()
    assert payload["Check"]["TCP"] == "[::1]:1"


def test_a_wan_address_without_a_port_has_that_of_the_lan() -> None:
    payload = GatewayDefinition(port=8555, wan_address="192.0.2.1").payload()
    assert payload["TaggedAddresses"] == {"wan": {"Address": "192.0.2.1", "Port": 8555}}


def test_bind_addresses_replace_every_other_rule() -> None:
    binds = (BindAddress("a", "127.0.0.1", 1), BindAddress("b", "127.0.0.1", 2))
    payload = GatewayDefinition(address="192.0.2.9", bind_addresses=binds).payload()
    assert payload["Proxy"]["Config"] == {
        "envoy_gateway_no_default_bind": True,
        "envoy_gateway_bind_addresses": {
            "a": {"Address": "127.0.0.1", "Port": 1},
            "b": {"Address": "127.0.0.1", "Port": 2},
        },
    }


def test_two_addresses_of_this_machine_are_both_bound() -> None:
    payload = GatewayDefinition(address="127.0.0.7", wan_address="127.0.0.8", wan_port=1).payload()
    expected = {"envoy_gateway_no_default_bind": True, "envoy_gateway_bind_tagged_addresses": True}
    assert payload["Proxy"]["Config"] == expected


def test_a_wan_address_of_elsewhere_leaves_the_default_listener() -> None:
    definition = GatewayDefinition(address="127.0.0.7", wan_address="192.0.2.1", wan_port=1)
    assert "Proxy" not in definition.payload()


def test_a_lan_address_of_elsewhere_needs_bind_addresses() -> None:
    with pytest.raises(RegistrationError, match=r"LAN address '192.0.2.9' cannot be bound here: .*bind addresses"):
        GatewayDefinition(address="192.0.2.9").payload()


@pytest.mark.parametrize(
    ("address", "possible"),
    [("127.0.0.1", True), ("::1", True), ("192.0.2.77", False), ("localhost", False), ("::17", False)],
)
def test_whether_this_machine_has_an_address_is_tried_out(address: str, possible: bool) -> None:
    assert can_bind(address) is possible


def test_an_address_is_not_taken_for_one_of_another_machine_for_want_of_a_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none)
    with pytest.raises(RegistrationError, match=r"cannot try to bind '127\.0\.0\.1': Too many open files"):
        can_bind("127.0.0.1")
