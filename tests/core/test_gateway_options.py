"""The opaque keys of a gateway's registration, as JSON and HCL bring them."""

import pytest

from meshgate.core.proxy_config import NO_OPTIONS, GatewayOptions, Keepalive, gateway_options

KEEPALIVE = "envoy_gateway_remote_tcp_keepalive"
ENABLE = {"envoy_gateway_remote_tcp_enable_keepalive": True}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({}, NO_OPTIONS),
        ({"connect_timeout_ms": 1500}, GatewayOptions(connect_timeout=1.5)),
        ({"connect_timeout_ms": "250"}, GatewayOptions(connect_timeout=0.25)),
        ({"connect_timeout_ms": 0}, GatewayOptions(connect_timeout=5.0)),
        ({"connect_timeout_ms": -3.0}, GatewayOptions(connect_timeout=5.0)),
        ({"connect_timeout_ms": "soon"}, NO_OPTIONS),
        ({"connect_timeout_ms": True}, NO_OPTIONS),
        ({"connect_timeout_ms": None}, NO_OPTIONS),
        ({"connect_timeout_ms": float("inf")}, NO_OPTIONS),
        ({"connect_timeout_ms": 10**400}, NO_OPTIONS),
        ({"envoy_dns_discovery_type": "logical_dns"}, GatewayOptions(one_host_name=True)),
        ({"envoy_dns_discovery_type": "STRICT_DNS"}, NO_OPTIONS),
        ({"envoy_dns_discovery_type": 7}, NO_OPTIONS),
        ({"envoy_stats_bind_addr": "127.0.0.1:9102"}, NO_OPTIONS),
    ],
)
def test_options(config: dict[str, object], options: GatewayOptions) -> None:
    assert gateway_options(config) == options


@pytest.mark.parametrize(
    ("config", "keepalive"),
    [
        ({f"{KEEPALIVE}_time": 30}, None),
        (ENABLE, Keepalive()),
        ({"envoy_gateway_remote_tcp_enable_keepalive": "true"}, Keepalive()),
        ({"envoy_gateway_remote_tcp_enable_keepalive": 1}, Keepalive()),
        ({"envoy_gateway_remote_tcp_enable_keepalive": "no"}, None),
        ({"envoy_gateway_remote_tcp_enable_keepalive": []}, None),
        (
            ENABLE | {f"{KEEPALIVE}_time": 30, f"{KEEPALIVE}_interval": "10", f"{KEEPALIVE}_probes": 3.0},
            Keepalive(30, 10, 3),
        ),
        (ENABLE | {f"{KEEPALIVE}_time": 0, f"{KEEPALIVE}_interval": -1}, Keepalive()),
        (
            ENABLE | {f"{KEEPALIVE}_time": 86400, f"{KEEPALIVE}_interval": 10**9, f"{KEEPALIVE}_probes": 1000},
            Keepalive(32767, 32767, 127),
        ),
    ],
)
def test_keepalive_towards_other_gateways(config: dict[str, object], keepalive: Keepalive | None) -> None:
    assert gateway_options(config) == GatewayOptions(remote_keepalive=keepalive)
