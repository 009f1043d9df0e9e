"""`service-defaults` of the gateway's own name, on a double: Consul has `UpstreamConfig` there since 1.10 only."""

from typing import Any

import pytest

from meshgate.adapters.consul import InvalidAnswerError, PermissionDeniedError
from meshgate.core.gateway_options import NO_LIMITS, DestinationLimits

from .connected import connected

PATH = "/v1/config/service-defaults/mesh-gateway"


def entry(**limits: object) -> dict[str, Any]:
    return {
        "Kind": "service-defaults",
        "Name": "mesh-gateway",
        "UpstreamConfig": {"Defaults": {"Limits": limits, "MeshGateway": {}}, "Overrides": [{"Name": "web"}]},
    }


@pytest.mark.parametrize(
    ("body", "limits"),
    [
        (entry(MaxConnections=512, MaxPendingRequests=7, MaxConcurrentRequests=9), DestinationLimits(512, 7)),
        (entry(MaxConnections=None, MaxPendingRequests=7), DestinationLimits(pending=7)),
        (entry(MaxConnections=512, MaxPendingRequests=None), DestinationLimits(512)),
        (entry(MaxConcurrentRequests=9), NO_LIMITS),
        (entry(MaxConnections=0, MaxPendingRequests=0), NO_LIMITS),
        (entry(MaxConnections=-1, MaxPendingRequests=-1), NO_LIMITS),
        (entry(), NO_LIMITS),
        ({"Kind": "service-defaults", "Name": "mesh-gateway", "Protocol": "tcp"}, NO_LIMITS),
        ({"Kind": "service-defaults", "Name": "mesh-gateway", "UpstreamConfig": None}, NO_LIMITS),
        ({"Name": "mesh-gateway", "UpstreamConfig": {"Defaults": None}}, NO_LIMITS),
        ({"Name": "mesh-gateway", "UpstreamConfig": {"Defaults": {"Limits": None}}}, NO_LIMITS),
    ],
)
async def test_limits_are_read(body: dict[str, Any], limits: DestinationLimits) -> None:
    async with connected() as (double, client):
        double.set(PATH, body)
        assert (await client.service_defaults("mesh-gateway")).limits == limits


async def test_no_entry_is_no_limit_and_no_error() -> None:
    async with connected() as (double, client):
        double.set(PATH, b'Config entry not found for "service-defaults" / "mesh-gateway"', status=404)
        assert (await client.service_defaults("mesh-gateway")).limits == NO_LIMITS
        assert client.errors == {}


async def test_refusal_names_the_rule_to_add() -> None:
    async with connected() as (double, client):
        double.set(PATH, b"Permission denied", status=403)
        with pytest.raises(PermissionDeniedError, match=r'add service "mesh-gateway" \{ policy = "read" \}'):
            await client.service_defaults("mesh-gateway")


async def test_nonsense_is_an_error() -> None:
    async with connected() as (double, client):
        double.set(PATH, {"UpstreamConfig": []})
        with pytest.raises(InvalidAnswerError):
            await client.service_defaults("mesh-gateway")
