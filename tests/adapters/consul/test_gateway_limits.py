"""`service-defaults` of the gateway's own name, on a double: Consul has `UpstreamConfig` there since 1.10 only."""

from typing import Any

import pytest

from meshgate.adapters.consul.api import Cursor, InvalidAnswerError
from meshgate.core.proxy_config import NO_LIMITS, DestinationLimits

from .connected import connected

PATH = "/v1/config/service-defaults"


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
        # Versions that know no filter send all.
        double.set(PATH, [entry(MaxConnections=1) | {"Name": "web"}, body])
        assert (await client.destination_limits("mesh-gateway", Cursor())).value == limits
        assert double.seen[0].query == {"filter": 'Name == "mesh-gateway"'}


async def test_no_entry_is_no_limit_and_no_error() -> None:
    """The list is asked for, since Consul logs an error whenever a single entry is asked for that does not exist."""
    async with connected() as (double, client):
        double.set(PATH, [])
        assert (await client.destination_limits("mesh-gateway", Cursor())).value == NO_LIMITS
        assert client.errors == {}


async def test_nonsense_is_an_error() -> None:
    async with connected() as (double, client):
        double.set(PATH, [{"UpstreamConfig": []}])
        with pytest.raises(InvalidAnswerError):
            await client.destination_limits("mesh-gateway", Cursor())
