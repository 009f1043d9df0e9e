"""The stage of the end-to-end tests: two real Consul datacenters, and gateways that are told to follow them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import trio

from tests.harness.agent import Consul
from tests.harness.caller import Caller
from tests.harness.cluster import Federation
from tests.harness.gateway import GatewayProcess
from tests.harness.waiting import until

# The gateways of dc1 and dc2.
Pair: TypeAlias = tuple[GatewayProcess, GatewayProcess]


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
    async def gateways(self, **extra: str) -> AsyncIterator[Pair]:
        """A ready gateway in each datacenter, of which dc1's knows dc2's as healthy; they start and end together."""
        local, remote = self.two_gateways()
        try:
            await self.start(local, remote, **extra)
            yield local, remote
        finally:
            with trio.CancelScope(shield=True):
                await self.stop(local, remote)

    def two_gateways(self) -> Pair:
        local, remote = (GatewayProcess(consul, self.token) for consul in self.federation.datacenters)
        return local, remote

    async def start(self, local: GatewayProcess, remote: GatewayProcess, **extra: str) -> None:
        """Starts a gateway of each datacenter, and waits until dc1's sends dc2's streams to the other."""
        async with trio.open_nursery() as nursery:
            for gateway in (local, remote):
                nursery.start_soon(gateway.start, extra)
        await self.until_remote(local, remote.address[1])

    async def stop(self, *gateways: GatewayProcess) -> None:
        # Each is deregistered at once and serves for a moment longer.
        async with trio.open_nursery() as nursery:
            for gateway in gateways:
                nursery.start_soon(gateway.stop)

    async def until_remote(self, gateway: GatewayProcess, port: int, seconds: float = 20) -> None:
        """Wait until a gateway of dc1 sends dc2's streams to `port` alone."""

        async def endpoints() -> dict[int, bool]:
            return await gateway.endpoints(f"*.dc2.internal.{self.federation.trust_domain}")

        await until_equal(f"dc2's gateway at {port}", endpoints, {port: True}, seconds)

    async def until_known(self, remote: GatewayProcess, port: int) -> None:
        """Wait until dc2's gateway knows that `web` is at `port`, and no more where a test before had it."""
        await until_equal(f"web at {port}", partial(remote.endpoints, self.sni()), {port: True}, seconds=20)


async def until_equal(what: str, read: Callable[[], Awaitable[object]], wanted: object, seconds: float = 20.0) -> None:
    """Wait until `read` answers `wanted`. A table that does not follow Consul until it polls comes later than that."""

    async def missing() -> str | None:
        seen = await read()
        return None if seen == wanted else f"it is {seen!r}, not {wanted!r}"

    await until(what, missing, seconds=seconds, interval=0.02)
