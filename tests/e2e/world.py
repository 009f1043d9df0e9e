"""The stage of the end-to-end tests: two real Consul datacenters, and gateways that are told to follow them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from tests.harness.agent import Consul
from tests.harness.caller import Caller
from tests.harness.cluster import Federation
from tests.harness.gateway import GatewayProcess
from tests.harness.waiting import until


@dataclass(frozen=True)
class World:
    """Two datacenters and a token for their gateways."""

    federation: Federation
    token: str

    def sni(self, service: str = "web", datacenter: str = "dc2") -> str:
        return f"{service}.default.{datacenter}.internal.{self.federation.trust_domain}"

    def spiffe(self, service: str = "web", datacenter: str = "dc2") -> str:
        return f"spiffe://{self.federation.trust_domain}/ns/default/dc/{datacenter}/svc/{service}"

    async def caller(self, service: str = "shop", consul: Consul | None = None) -> Caller:
        return await Caller.of(consul or self.federation.dc1, service, self.federation.folder)

    @asynccontextmanager
    async def gateways(self, **extra: str) -> AsyncIterator[tuple[GatewayProcess, GatewayProcess]]:
        """A ready gateway in each datacenter, of which dc1's knows dc2's as healthy; they start and end together."""
        local, remote = (GatewayProcess(consul, self.token) for consul in self.federation.datacenters)
        try:
            async with trio.open_nursery() as nursery:
                for gateway in (local, remote):
                    nursery.start_soon(gateway.start, extra)
            await self.until_remote(local, remote.address[1])
            yield local, remote
        finally:
            # Each is deregistered at once and serves for a second longer.
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    for gateway in (local, remote):
                        nursery.start_soon(gateway.stop)

    async def until_remote(self, gateway: GatewayProcess, port: int, seconds: float = 20) -> None:
        """Wait until a gateway of dc1 sends dc2's streams to `port` alone."""

        async def endpoints() -> dict[int, bool]:
            return await gateway.endpoints(f"*.dc2.internal.{self.federation.trust_domain}")

        await until_equal(f"dc2's gateway at {port}", endpoints, {port: True}, seconds)


async def until_equal(what: str, read: Callable[[], Awaitable[object]], wanted: object, seconds: float = 2.0) -> None:
    """Wait until `read` answers `wanted`; the default is the time in which a table must follow Consul."""

    async def missing() -> str | None:
        seen = await read()
        return None if seen == wanted else f"it is {seen!r}, not {wanted!r}"

    await until(what, missing, seconds=seconds, interval=0.02)
