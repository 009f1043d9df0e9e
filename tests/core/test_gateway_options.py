"""The opaque keys of a gateway's registration, as JSON and HCL bring them."""

import pytest

from meshgate.core.gateway_options import NO_OPTIONS, GatewayOptions, gateway_options


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
        ({"envoy_gateway_remote_tcp_keepalive_time": 30}, NO_OPTIONS),
        (
            {"envoy_gateway_remote_tcp_enable_keepalive": True, "envoy_gateway_remote_tcp_keepalive_time": 30},
            GatewayOptions(keepalive=30.0),
        ),
        (
            {"envoy_gateway_remote_tcp_enable_keepalive": True, "envoy_gateway_remote_tcp_keepalive_time": 0},
            NO_OPTIONS,
        ),
        (
            {"envoy_gateway_remote_tcp_enable_keepalive": True, "envoy_gateway_remote_tcp_keepalive_time": 86400},
            GatewayOptions(keepalive=32767),
        ),
        ({"envoy_stats_bind_addr": "127.0.0.1:9102"}, NO_OPTIONS),
    ],
)
def test_options(config: dict[str, object], options: GatewayOptions) -> None:
    assert gateway_options(config) == options
