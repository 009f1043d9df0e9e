"""A gateway of this very package as a process of its own, beside a Consul of the demo."""

import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Final, Self

import httpx
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.agent import AgentStoppedError, Consul, Json
from tests.harness.instance import HOST
from tests.harness.ports import free_ports
from tests.harness.process import Child, child_environment
from tests.harness.waiting import until

# For tests in which streams are to end by themselves, or whoever sends them is to hear first. A gateway serves for a
# tenth of it after its deregistration, for which most tests need not wait.
LONG_DRAIN: Final = {"MESHGATE_DRAIN_TIMEOUT": "10s"}
# All datacenters of a test are on this machine, at loopback addresses.
_DEFAULTS: Final = {"MESHGATE_WORKERS": "1", "MESHGATE_DRAIN_TIMEOUT": "2s", "MESHGATE_DENY_ENDPOINTS": "none"}
_NO_AUTHORITIES: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class GatewayProcess:
    """`meshgate run` on free ports of 127.0.0.1, registered with `consul` under `service`.

    `address` is where it takes streams, LAN and WAN alike, `admin` its admin address, and `python` what runs it.
    """

    def __init__(self, consul: Consul, token: str, service: str = "mesh-gateway", instance: str = "") -> None:
        self.consul = consul
        self.service = service
        self.instance = instance or service
        self.token = token
        port, admin = free_ports(2)
        self.address = (HOST, port)
        self.admin = f"{HOST}:{admin}"
        self.python = sys.executable
        self._child: Child | None = None

    @property
    def child(self) -> Child:
        """The process, also after it ended."""
        if self._child is None:
            raise RuntimeError(f"the gateway {self.instance} was not started")
        return self._child

    async def start(self, extra: Mapping[str, str] | None = None) -> Self:
        """Starts it, with `extra` variables, and waits until it is ready and registered.

        Raises:
            AgentStoppedError: it ended by itself; the message quotes what it said.
            LateError: not in time.
        """
        self.spawn(extra)
        await self.until_ready()
        return self

    async def until_ready(self, seconds: float = 45.0) -> None:
        """Waits until it is ready and registered; errors as those of `start`.

        An agent that has just failed to write to the catalog tries again after 15 to 30 s, whatever comes meanwhile.
        """
        await until(f"gateway {self.instance} of {self.consul.datacenter} to be ready", self._missing, seconds=seconds)

    def spawn(self, extra: Mapping[str, str] | None = None) -> None:
        """Starts it, and does not wait."""
        self._child = Child(
            [self.python, "-m", "meshgate", "run"],
            name=f"gateway {self.instance} of {self.consul.datacenter}",
            log=self.consul.folder / f"{self.instance}.log",
            env=child_environment(**self.environment(extra or {})),
        )

    def environment(self, extra: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
        """Its settings; those of `extra` come first."""
        address = f"{HOST}:{self.address[1]}"
        return {
            "CONSUL_HTTP_ADDR": self.consul.http_addr,
            "CONSUL_HTTP_TOKEN": self.token,
            "MESHGATE_SERVICE": self.service,
            "MESHGATE_PROXY_ID": self.instance,
            "MESHGATE_ADDRESS": address,
            "MESHGATE_WAN_ADDRESS": address,
            "MESHGATE_ADMIN_BIND": self.admin,
            **_DEFAULTS,
            **extra,
        }

    async def _missing(self) -> str | None:
        if not self.child.running:
            raise AgentStoppedError(f"{self.child.name} ended with {self.child.returncode}:\n{self.child.last_lines()}")
        try:
            ready = await self.ask("/readyz")
        except httpx.HTTPError:
            return "it does not answer yet"
        if not ready["ready"]:
            return "; ".join(ready["problems"]) or "it is not ready yet"
        listed = await self.consul.ask(f"/v1/health/service/{self.service}") or ()
        if all(row["Service"]["ID"] != self.instance for row in listed):
            return "it is not registered yet"
        return None

    async def stop(self, seconds: float = 10.0) -> None:
        """Drains it with SIGTERM; after `seconds` it is killed. Not cancellable."""
        if self._child is not None:
            await self._child.stop(seconds)

    async def ask(self, path: str) -> Json:
        """The decoded answer of its admin address.

        Raises:
            httpx.HTTPError: no answer.
        """
        return json.loads(await self._fetch(path))

    async def endpoints(self, sni: str) -> dict[int, bool]:
        """The endpoints of a route by port, and whether they are healthy; empty where there is no such route."""
        for route in (await self.ask("/routes"))["routes"]:
            if route["sni"] == sni:
                return {endpoint["port"]: endpoint["healthy"] for endpoint in route["endpoints"]}
        return {}

    async def upgrade(self, *flags: str) -> "subprocess.CompletedProcess[str]":
        """What comes of `meshgate upgrade`."""
        command = [sys.executable, "-m", "meshgate", "upgrade", *flags]
        environ = child_environment(MESHGATE_ADMIN_BIND=self.admin)
        run = partial(subprocess.run, command, env=environ, capture_output=True, text=True, check=False, timeout=120)
        return await trio.to_thread.run_sync(run)

    async def series(self) -> dict[str, float]:
        """All series of its metrics page, as they are written there."""
        return {
            f"{sample.name}{dict(sorted(sample.labels.items()))}": sample.value
            for family in text_string_to_metric_families((await self._fetch("/metrics")).decode())
            for sample in family.samples
        }

    async def counter(self, name: str, **labels: str) -> float:
        """The sum of a metric over all series that have these labels; 0 where there is none."""
        text = (await self._fetch("/metrics")).decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def _fetch(self, path: str) -> bytes:
        async with httpx.AsyncClient(verify=_NO_AUTHORITIES, trust_env=False, timeout=10) as client:
            return (await client.get(f"http://{self.admin}{path}")).content


@asynccontextmanager
async def gateway_beside(
    consul: Consul, token: str, *, service: str = "mesh-gateway", instance: str = "", **extra: str
) -> AsyncIterator[GatewayProcess]:
    """A ready gateway for the length of the block; `extra` are variables for it."""
    gateway = GatewayProcess(consul, token, service, instance)
    try:
        yield await gateway.start(extra)
    finally:
        await gateway.stop()
