"""What the pictures show: two datacenters, a handful of services, one of them half down and one down, and callers."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import trio
from tests.harness.agent import Consul
from tests.harness.caller import Caller
from tests.harness.cluster import Federation, two_datacenters
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.instance import HOST
from tests.harness.native import native_service
from tests.harness.waiting import until

from meshgate.adapters.consul.policy import acl_policy
from meshgate.adapters.mesh_tls import RefusedError

# Service, datacenter, how many instances, how many of them critical, pause between two calls in seconds.
SERVICES = (
    ("orders", "dc1", 3, 1, 0.15),
    ("payments", "dc1", 2, 0, 0.4),
    ("search", "dc1", 2, 0, 0.9),
    ("mail", "dc1", 1, 1, 2.0),
    ("web", "dc2", 2, 0, 0.3),
    ("catalog", "dc2", 1, 0, 0.7),
)
_LONG_LIVED = 4
_CHUNK = 16_000


@dataclass(frozen=True)
class Stage:
    """The gateway to be pictured, dc1's, and names to ask it for."""

    gateway: GatewayProcess
    federation: Federation

    def sni(self, service: str, datacenter: str = "dc1") -> str:
        return f"{service}.default.{datacenter}.internal.{self.federation.trust_domain}"


@asynccontextmanager
async def stage(consul_binary: str) -> AsyncIterator[Stage]:
    """All of it, with traffic, for the length of the block."""
    async with AsyncExitStack() as stack:
        federation = await stack.enter_async_context(two_datacenters(consul_binary, print))
        token = await federation.create_policy_token(acl_policy(), "mesh-gateway")
        by_name = {consul.datacenter: consul for consul in federation.datacenters}
        for service, datacenter, instances, critical, _ in SERVICES:
            await federation.set_intention("shop", service, "allow")
            await _start(stack, federation, by_name[datacenter], service, instances, critical)
        await federation.write_config_entry(
            {
                "Kind": "service-resolver",
                "Name": "orders",
                "Subsets": {"v2": {"Filter": "Service.Meta.version == v2", "OnlyPassing": True}},
            }
        )
        extra = {"MESHGATE_WORKERS": "2", "MESHGATE_EXPOSE_SERVERS": "true"}
        remote = await stack.enter_async_context(gateway_beside(federation.dc2, token, **extra))
        local = await stack.enter_async_context(gateway_beside(federation.dc1, token, **extra))
        there = Stage(local, federation)
        await until("dc2's gateway", partial(_missing, local, f"*.dc2.internal.{federation.trust_domain}"), seconds=30)
        await until("web in dc2", partial(_missing, remote, there.sni("web", "dc2")), seconds=30)
        caller = await Caller.of(federation.dc1, "shop", federation.folder)
        nursery = await stack.enter_async_context(trio.open_nursery())
        for service, datacenter, _, _, pause in SERVICES:
            nursery.start_soon(_call, caller, local, there.sni(service, datacenter), pause)
        for _ in range(_LONG_LIVED):
            nursery.start_soon(_talk, caller, local, there.sni("payments"), 0.05)
            nursery.start_soon(_talk, caller, local, there.sni("web", "dc2"), 0.1)
        nursery.start_soon(_call, caller, local, there.sni("odrers"), 3.0)
        yield there
        nursery.cancel_scope.cancel()


async def _start(
    stack: AsyncExitStack, federation: Federation, consul: Consul, service: str, instances: int, critical: int
) -> None:
    for number in range(instances):
        version = "v2" if number else "v1"
        instance = await stack.enter_async_context(
            native_service(
                consul, service, federation.folder, instance=f"{service}-{number + 1}", Meta={"version": version}
            )
        )
        if number >= instances - critical:
            await instance.set_health("critical")


async def _missing(gateway: GatewayProcess, sni: str) -> str | None:
    return None if any((await gateway.endpoints(sni)).values()) else "not yet"


async def _call(caller: Caller, gateway: GatewayProcess, sni: str, pause: float) -> None:
    while True:
        with suppress(RefusedError):
            await caller.call(gateway.address, sni, b"x" * _CHUNK)
        await trio.sleep(pause)


async def _talk(caller: Caller, gateway: GatewayProcess, sni: str, pause: float) -> None:
    """One stream that stays open, as sidecars hold them."""
    async with caller.connect((HOST, gateway.address[1]), sni) as stream, trio.open_nursery() as nursery:

        async def listen() -> None:
            while await stream.receive_some():
                pass

        nursery.start_soon(listen)
        while True:
            await stream.send_all(b"y" * _CHUNK)
            await trio.sleep(pause)
