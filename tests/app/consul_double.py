"""A double of Consul for the commands that ask it directly: a newer Enterprise than the real one of the other tests."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from meshgate.adapters.consul.api import ConsulAddress, ConsulClient
from tests.adapters.consul.fake_consul import FakeConsul, Seen, fake_consul, row

TOKEN = "5ecc9f1b-7d3a-4c5e-token"
RIGHTS = "/v1/internal/acl/authorize"


@asynccontextmanager
async def inspected(**values: str) -> AsyncIterator[tuple[FakeConsul, ConsulClient]]:
    async with fake_consul() as double:
        settings = {"CONSUL_HTTP_ADDR": f"127.0.0.1:{double.port}", "CONSUL_HTTP_TOKEN": TOKEN}
        address = ConsulAddress.from_settings(settings | {f"CONSUL_{name}": value for name, value in values.items()})
        async with ConsulClient(address) as client:
            datacenter(double)
            yield double, client


def datacenter(double: FakeConsul, **debug: Any) -> None:
    """One datacenter, dc1, in which nothing is registered."""
    known = {
        "ConnectEnabled": True,
        "EnableCentralServiceConfig": True,
        "GRPCPort": 8502,
        "GRPCTLSPort": 8503,
        "HTTPMaxConnsPerClient": 200,
        "ACLsEnabled": True,
    }
    config = {"Datacenter": "dc1", "NodeName": "n1", "Version": "1.18.2+ent", "PrimaryDatacenter": "dc1"}
    double.set("/v1/agent/self", {"Config": config, "DebugConfig": known | debug}, index=None)
    double.set("/v1/status/leader", "10.0.0.1:8300", index=None)
    double.set("/v1/catalog/datacenters", ["dc1"], index=None)
    root = {
        "ID": "r",
        "Active": True,
        "RootCert": "ROOT",
        "IntermediateCerts": None,
        "NotAfter": "2999-01-01T00:00:00Z",
    }
    double.set("/v1/connect/ca/roots", {"TrustDomain": "td.consul", "ActiveRootID": "r", "Roots": [root]})
    double.set("/v1/internal/federation-states/mesh-gateways", {"dc1": []})
    double.set("/v1/agent/services", {}, index=None)
    double.set("/v1/health/service/mesh-gateway", [])
    may(double)


def may(double: FakeConsul, **rights: bool) -> None:
    """What the token may do: `resource_access`, or `resource_access_name` for one name. All else is allowed."""

    def answer(seen: Seen) -> None:
        if seen.path != RIGHTS:
            return
        rows = []
        for asked in json.loads(seen.body):
            right = f"{asked['Resource']}_{asked['Access']}"
            rows.append({"Allow": rights.get(f"{right}_{asked['Segment']}", rights.get(right, True))})
        double.set(RIGHTS + (f"?dc={seen.query['dc']}" if "dc" in seen.query else ""), rows, index=None)

    double.on_put = answer


def gateway(double: FakeConsul, where: str, address: str, port: int, **fields: Any) -> None:
    """A mesh gateway in a datacenter, as it is seen with `dc=`."""
    found = row("mesh-gateway", address=address, port=port, kind="mesh-gateway")
    found["Service"] |= fields
    double.set(f"/v1/internal/ui/services?dc={where}", [{"Name": "mesh-gateway", "Kind": "mesh-gateway"}])
    double.set(f"/v1/health/service/mesh-gateway?dc={where}", [found])
