"""Three admin partitions of one datacenter, a gateway each, and the same service in the same namespace of each.

The scenario of Consul's documents for mesh gateways between admin partitions, mode `local`: a sidecar asks the gateway
of its own partition, which asks that of the other one. Consul is a double here, as Enterprise cannot be had.
"""

from contextlib import AsyncExitStack
from pathlib import Path

from tests.adapters.consul.mesh_double import TRUST_DOMAIN, exported, mesh_double

from .doubled import Mesh, gateway_of, until_routed


def sni(service: str, partition: str = "", ns: str = "default") -> str:
    if partition:
        return f"{service}.{ns}.{partition}.dc1.internal-v1.{TRUST_DOMAIN}"
    return f"{service}.{ns}.dc1.internal.{TRUST_DOMAIN}"


async def test_streams_cross_from_every_partition_to_every_other_one_in_mode_local(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)
    async with mesh_double() as double, AsyncExitStack() as stack:
        for partition in ("default", "p1", "p2"):
            double.tenant(partition)
            double.serve("web", await stack.enter_async_context(mesh.service(f"web.{partition}")), partition=partition)
        double.tenant("p2", "team")
        double.serve("api", await stack.enter_async_context(mesh.service("api.p2")), partition="p2", ns="team")
        default = await stack.enter_async_context(gateway_of(double, tmp_path))
        p1 = await stack.enter_async_context(gateway_of(double, tmp_path, "p1"))
        p2 = await stack.enter_async_context(gateway_of(double, tmp_path, "p2"))
        to_default, to_p1, to_p2 = (f"*.{sni('', it)[len('.default.') :]}" for it in ("", "p1", "p2"))
        kinds = await until_routed(p1, to_default, to_p2, sni("web", "p1"))
        assert kinds == {to_default: "partition", to_p2: "partition", sni("web", "p1"): "service"}
        await until_routed(default, to_p1, to_p2, sni("web"))
        await until_routed(p2, to_default, to_p1, sni("api", "p2", "team"))

        for gateway, name, met in (
            (p1, sni("web", "p2"), "web.p2"),
            (p1, sni("web"), "web.default"),
            (p1, sni("web", "p1"), "web.p1"),
            (default, sni("web", "p1"), "web.p1"),
            (default, sni("api", "p2", "team"), "api.p2"),
            (p2, sni("web"), "web.default"),
            (p2, sni("web", "p1"), "web.p1"),
        ):
            assert await mesh.call(gateway.address, name) == f"I am {met}; you said hello"

        for gateway, name in (
            (p1, sni("web", "p3")),
            (p1, sni("web", "p2", "team")),
            (p1, sni("api", "p2")),
            (default, sni("web", "p1", "team")),
            (p1, f"web.default.dc2.internal.{TRUST_DOMAIN}"),
        ):
            assert "unrecognized name" in (await mesh.call(gateway.address, name)).lower()

        told = await p1.ask(f"/explain?sni={sni('web', 'p3')}")
        assert "no gateway of partition p3 is known; known are p1 (this gateway's), default, p2" in str(told["steps"])
        assert (await p1.ask("/routes"))["partition"] == "p1"
        payloads = [seen for seen in double.seen if seen.path == "/v1/agent/service/register"]
        assert sorted(seen.query.get("partition", "") for seen in payloads) == ["", "p1", "p2"]


async def test_with_enforced_exports_only_what_is_exported_can_be_reached_from_another_partition(
    tmp_path: Path,
) -> None:
    mesh = Mesh(tmp_path)
    async with mesh_double() as double, mesh.service("web.p1") as web, mesh.service("db.p1") as db:
        double.tenant("p1")
        double.serve("web", web, partition="p1")
        double.serve("db", db, partition="p1")
        double.set_at("/v1/exported-services", [exported("web", partitions=("default",))], partition="p1")
        to_p1 = f"*.p1.dc1.internal-v1.{TRUST_DOMAIN}"
        async with (
            gateway_of(double, tmp_path, "p1", MESHGATE_ENFORCE_EXPORTS="true") as p1,
            gateway_of(double, tmp_path) as default,
        ):
            await until_routed(p1, sni("web", "p1"))
            await until_routed(default, to_p1)
            assert await mesh.call(default.address, sni("web", "p1")) == "I am web.p1; you said hello"
            assert "unrecognized name" in (await mesh.call(default.address, sni("db", "p1"))).lower()
            told = await p1.ask(f"/explain?sni={sni('db', 'p1')}")
            assert "db is in no exported-services entry" in str(told["steps"])
            rows = [exported(name, partitions=("default",)) for name in ("web", "db")]
            double.set_at("/v1/exported-services", rows, partition="p1")
            await until_routed(p1, sni("db", "p1"))
            assert await mesh.call(default.address, sni("db", "p1")) == "I am db.p1; you said hello"
