"""A real Envoy as the sidecar of a service, which Consul configures over xDS.

Needs an agent with a gRPC port (`XdsFederation`, or `grpc` among the ports of `Consul.configure`) and a version whose
`consul connect envoy` starts Envoys that it does not know.
"""

import json
import shutil
import sysconfig
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

import httpx
import trio

from tests.harness.agent import Consul
from tests.harness.cluster import Federation
from tests.harness.instance import HOST, Instance
from tests.harness.ports import free_ports
from tests.harness.process import Child, child_environment
from tests.harness.waiting import until

Upstream: TypeAlias = Mapping[str, object]

_START_SECONDS: Final = 30.0


def envoy_binary() -> str:
    """The Envoy that is installed beside this Python.

    Raises:
        FileNotFoundError: there is none; the message says what to do.
    """
    found = shutil.which("envoy", path=sysconfig.get_path("scripts")) or shutil.which("envoy")
    if found is None:
        raise FileNotFoundError("no envoy beside this Python; scripts/test installs it")
    return found


class XdsFederation(Federation):
    """Two datacenters whose agents also configure Envoys. `more` are settings under Consul's names."""

    more: ClassVar[Mapping[str, object]] = {}

    def configure(self) -> None:
        """Writes the configuration of both, with a gRPC port each."""
        for one, other in ((self.dc1, self.dc2), (self.dc2, self.dc1)):
            one.configure(self.dc1.datacenter, [other.ports.serf_wan], grpc=free_ports(1)[0], **self.more)


class EnvoySidecar(Instance):
    """An instance of a service whose mTLS a real Envoy terminates, for it and towards its `upstreams`.

    `backend_port` is where the service itself listens. `listens` holds the local port of each upstream by its name.
    """

    def __init__(self, consul: Consul, service: str, backend_port: int, instance: str, token: str) -> None:
        super().__init__(consul, service, instance, listed_as=f"{instance}-sidecar-proxy")
        self._backend_port = backend_port
        self._token = token
        self._child: Child | None = None
        self.port, self._admin = free_ports(2)
        self.listens: dict[str, int] = {}

    @property
    def child(self) -> Child:
        """The process, also after it ended."""
        assert self._child is not None
        return self._child

    async def register(self, upstreams: Sequence[Upstream] = ()) -> None:
        """Registers it with these upstreams; an Envoy that runs takes over what is new.

        An upstream without `LocalBindPort` keeps the one that it had, or gets a free one.
        """
        bound = []
        for upstream in upstreams:
            name = str(upstream["DestinationName"])
            self.listens.setdefault(name, free_ports(1)[0])
            bound.append({"LocalBindAddress": HOST, "LocalBindPort": self.listens[name], **upstream})
        sidecar = {
            "Address": HOST,
            "Port": self.port,
            "Proxy": {"Config": {"bind_address": HOST}, "Upstreams": bound},
            "Checks": [self.check],
        }
        place = {"Address": HOST, "Port": self._backend_port, "Connect": {"SidecarService": sidecar}}
        await self.consul.register({"ID": self.instance, "Name": self.service, **place})

    async def start(self, upstreams: Sequence[Upstream] = ()) -> None:
        """Registers it, has Consul write the bootstrap, starts Envoy and waits until it takes streams.

        Raises:
            LateError: not in time.
        """
        await self.register(upstreams)
        folder = trio.Path(self.consul.folder / self.listed_as)
        await folder.mkdir(mode=0o700, exist_ok=True)
        await (folder / "bootstrap.json").write_bytes(await self._bootstrap())
        self._child = Child(
            [
                *(envoy_binary(), "-c", str(folder / "bootstrap.json")),
                *("--concurrency", "1", "--disable-hot-restart", "-l", "warn"),
            ],
            name=f"Envoy of {self.instance}",
            log=Path(folder / "log"),
        )
        await until(self.child.name, self._missing, seconds=_START_SECONDS)
        await self.until_listed()

    async def _bootstrap(self) -> bytes:
        done = await trio.run_process(
            [
                *(self.consul.binary, "connect", "envoy", "-sidecar-for", self.instance, "-bootstrap"),
                *("-ignore-envoy-compatibility", "-admin-bind", f"{HOST}:{self._admin}"),
                *("-grpc-addr", f"http://{HOST}:{self.consul.grpc}"),
            ],
            env=child_environment(CONSUL_HTTP_ADDR=self.consul.http_addr, CONSUL_HTTP_TOKEN=self._token),
            capture_stdout=True,
        )
        return bytes(done.stdout)

    async def _missing(self) -> str | None:
        assert self.child.running, self.child.last_lines(30)
        for port in (self.port, *self.listens.values()):
            try:
                await (await trio.open_tcp_stream(HOST, port)).aclose()
            except OSError:
                return f"nothing listens at {port}"
        return None

    async def ask(self, path: str) -> Any:
        """The decoded answer of Envoy's admin address."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            return json.loads((await client.get(f"http://{HOST}:{self._admin}{path}")).content)

    async def endpoints(self, sni: str) -> dict[int, bool]:
        """Where the cluster of that name sends streams: the ports, and whether Envoy takes them for healthy."""
        found: dict[int, bool] = {}
        for cluster in (await self.ask("/clusters?format=json")).get("cluster_statuses", ()):
            # The clusters of a failover have their own names in front.
            if cluster["name"].rpartition("~")[2] == sni:
                for host in cluster.get("host_statuses", ()):
                    healthy = host["health_status"]["eds_health_status"] == "HEALTHY"
                    found[host["address"]["socket_address"]["port_value"]] = healthy
        return found

    async def stop(self) -> None:
        """Ends Envoy; the registration stays. Not cancellable."""
        if self._child is not None:
            await self._child.stop()


@asynccontextmanager
async def envoy_sidecar_for(
    consul: Consul,
    service: str,
    *,
    backend_port: int = 1,
    upstreams: Sequence[Upstream] = (),
    instance: str = "",
    token: str | None = None,
) -> AsyncIterator[EnvoySidecar]:
    """An instance of `service` with a real Envoy as its sidecar, for the length of the block.

    `token` is Envoy's; it has to be known in the other datacenter too, or Consul tells Envoy of no upstream there. The
    master token where None.
    """
    sidecar = EnvoySidecar(consul, service, backend_port, instance or service, token or consul.master_token)
    try:
        await sidecar.start(upstreams)
        yield sidecar
    finally:
        await sidecar.stop()
        await sidecar.forget()
