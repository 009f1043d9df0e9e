"""A real destination: a service of the mesh whose mTLS is terminated by Consul's own `consul connect proxy`.

The proxy holds the leaf of the service, enforces intentions and passes plain bytes to a small backend in this process.
It does not carry a half-closed stream: when one side ends sending it drops what is still under way to that side. Where
that matters use `native`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from tests.harness.agent import Consul
from tests.harness.backend import backend
from tests.harness.instance import HOST, Instance
from tests.harness.ports import free_ports
from tests.harness.process import Child, child_environment
from tests.harness.waiting import until


class Sidecar(Instance):
    """An instance with its proxy, which listens at `address`."""

    def __init__(
        self,
        consul: Consul,
        service: str,
        instance: str,
        backend_port: int,
        extra: Mapping[str, object],
        upstreams: Sequence[Mapping[str, object]] = (),
    ) -> None:
        super().__init__(consul, service, instance, listed_as=f"{instance}-sidecar-proxy")
        self._backend_port = backend_port
        self._extra = extra
        self._upstreams = list(upstreams)
        self._proxy: Child | None = None

    async def start(self) -> None:
        """Registers the instance on a free port, starts its proxy there, and waits until both can be used.

        Raises:
            LateError: the proxy did not listen, or Consul did not list the instance, in time.
        """
        self.port = free_ports(1)[0]
        await self.consul.register(self._registration())
        proxy = self._proxy = Child(
            [self.consul.binary, "connect", "proxy", "-sidecar-for", self.instance],
            name=f"sidecar of {self.instance}",
            log=self.consul.folder / f"{self.listed_as}.log",
            env=child_environment(CONSUL_HTTP_ADDR=self.consul.http_addr, CONSUL_HTTP_TOKEN=self.consul.master_token),
        )

        async def missing() -> str | None:
            if not proxy.running:
                return f"it ended: {proxy.last_lines()}"
            try:
                await (await trio.open_tcp_stream(*self.address)).aclose()
            except OSError:
                return "it does not listen"
            return None

        await until(proxy.name, missing)
        await self.set_health(self.health)

    async def stop(self) -> None:
        """Ends the proxy; the registration stays. Not cancellable."""
        if self._proxy is not None:
            await self._proxy.stop()

    async def move(self) -> None:
        """Goes to another port: the old proxy ends, the registration changes, a new proxy starts."""
        await self.stop()
        await self.start()

    def _registration(self) -> dict[str, object]:
        sidecar = {
            "Address": HOST,
            "Port": self.port,
            "Proxy": {"Config": {"bind_address": HOST}, "Upstreams": self._upstreams},
            "Checks": [self.check],
        }
        return {
            "ID": self.instance,
            "Name": self.service,
            "Address": HOST,
            "Port": self._backend_port,
            "Connect": {"SidecarService": sidecar},
            **self._extra,
        }


@asynccontextmanager
async def sidecar_for(
    consul: Consul,
    service: str,
    *,
    instance: str | None = None,
    named: bool = False,
    upstreams: Sequence[Mapping[str, object]] = (),
    **extra: object,
) -> AsyncIterator[Sidecar]:
    """An instance of `service` with a real sidecar and an echoing backend, for the length of the block.

    `instance` is its ID (default: the service's name). A `named` backend first says the instance's ID and a newline,
    which tells instances apart. `upstreams` are the sidecar's, with Consul's own field names. `extra` goes into the
    service's registration: `Meta`, `Tags`, `Weights`.
    """
    identity = instance or service
    async with backend(f"{identity}\n".encode() if named else b"") as port:
        sidecar = Sidecar(consul, service, identity, port, extra, upstreams)
        try:
            await sidecar.start()
            yield sidecar
        finally:
            await sidecar.stop()
            await sidecar.forget()
