"""`service-defaults` of the gateway's own name, on a double: Consul has `UpstreamConfig` there since 1.10 only."""

from typing import Any

import pytest

from meshgate.adapters.consul import InvalidAnswerError, PermissionDeniedError

from .connected import connected

PATH = "/v1/config/service-defaults/mesh-gateway"


def entry(**limits: object) -> dict[str, Any]:
    return {
        "Kind": "service-defaults",
        "Name": "mesh-gateway",
        "UpstreamConfig": {"Defaults": {"Limits": limits, "MeshGateway": {}}, "Overrides": [{"Name": "web"}]},
    }


@pytest.mark.parametrize(
    ("body", "most"),
    [
        (entry(MaxConnections=512, MaxPendingRequests=7, MaxConcurrentRequests=9), 512),
        (entry(MaxConnections=None, MaxPendingRequests=7), 0),
        (entry(MaxConnections=0), 0),
        (entry(MaxConnections=-1), 0),
        (entry(), 0),
        ({"Kind": "service-defaults", "Name": "mesh-gateway", "Protocol": "tcp"}, 0),
        ({"Kind": "service-defaults", "Name": "mesh-gateway", "UpstreamConfig": None}, 0),
        ({"Kind": "service-defaults", "Name": "mesh-gateway", "UpstreamConfig": {"Defaults": {"Limits": None}}}, 0),
    ],
)
async def test_limit_of_connections_is_read(body: dict[str, Any], most: int) -> None:
    async with connected() as (double, client):
        double.set(PATH, body)
        assert await client.max_connections("mesh-gateway") == most


async def test_no_entry_is_no_limit_and_no_error() -> None:
    async with connected() as (double, client):
        double.set(PATH, b'Config entry not found for "service-defaults" / "mesh-gateway"', status=404)
        assert await client.max_connections("mesh-gateway") == 0
        assert client.errors == {}


async def test_refusal_names_the_rule_to_add() -> None:
    async with connected() as (double, client):
        double.set(PATH, b"Permission denied", status=403)
        with pytest.raises(PermissionDeniedError, match=r'add service "mesh-gateway" \{ policy = "read" \}'):
            await client.max_connections("mesh-gateway")


async def test_nonsense_is_an_error() -> None:
    async with connected() as (double, client):
        double.set(PATH, {"UpstreamConfig": []})
        with pytest.raises(InvalidAnswerError):
            await client.max_connections("mesh-gateway")
