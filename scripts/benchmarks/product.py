"""The whole product: `meshgate run` with all its processes, as it runs in production, beside a real Consul."""

import compileall
import json
import os
import sys
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio
from tests.harness.agent import Consul, ConsulError, Ports, consul_version
from tests.harness.cluster import find_consul
from tests.harness.ports import free_ports
from tests.harness.process import child_environment

from .peers import SCRIPTS, TRUST_DOMAIN, Peer, Place, Subject, Target
from .processes import BenchError, Running, start, wait_until

FETCHED = SCRIPTS.parent / ".cache" / "consul" / "consul"  # by scripts/get-consul


class Datacenter:
    """A Consul server of its own on the load's core, with ACLs and Connect; started when it is first asked for."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._running: Running | None = None
        self._consul: Consul | None = None
        self._used: Counter[Target] = Counter()

    @property
    def consul(self) -> Consul:
        """The server, which has a leader.

        Raises:
            BenchError: there is no Consul here, or it did not start.
        """
        if self._consul is None:
            self._consul = self._start()
        return self._consul

    def register(self, targets: Sequence[Target]) -> None:
        """Have a healthy instance of each target's service in the catalog."""
        new = [target for target in targets if not self._used[target]]
        self._used.update(targets)
        trio.run(self._register, new)

    def deregister(self, targets: Sequence[Target]) -> None:
        """Take away what nobody has registered besides."""
        self._used.subtract(targets)
        trio.run(self._deregister, [target for target in targets if not self._used[target]])

    def stop(self) -> None:
        """End it, if it runs."""
        if self._running is not None:
            self._running.stop()

    def _start(self) -> Consul:
        try:
            binary = find_consul(FETCHED)
        except FileNotFoundError as error:
            raise BenchError(str(error)) from None
        folder = self._place.folder / "consul"
        consul = Consul(binary, consul_version(binary), "dc1", Ports.pick(), folder, str(uuid.uuid4()))
        # The trust domain of the recorded hello. Consul takes it from here for just such a purpose.
        cluster = TRUST_DOMAIN.partition(".")[0]
        consul.configure("dc1", [], connect={"enabled": True, "ca_config": {"cluster_id": cluster}})
        command: list[str | Path] = [binary, "agent", "-config-file", folder / "consul.json"]
        self._running = start(command, self._place.cores.load, self._place.folder, "consul")

        def leads() -> bool:
            try:
                # The first token is known a moment after there is a leader.
                return bool(trio.run(consul.get, "/v1/status/leader") and trio.run(consul.get, "/v1/agent/self"))
            except ConsulError:
                return False

        wait_until(leads, "a leader", self._running)
        return consul

    async def _register(self, targets: Sequence[Target]) -> None:
        for target in targets:
            service = {"Name": _service(target), "Address": "127.0.0.1", "Port": target.port}
            await self.consul.register({**service, "Connect": {"Native": True}})

    async def _deregister(self, targets: Sequence[Target]) -> None:
        for target in targets:
            await self.consul.deregister(_service(target))


def _service(target: Target) -> str:
    return target.server_name.partition(".")[0]


class Product(Peer):
    """`meshgate run` and its workers, all of them on the relay's core, registered and following the catalog.

    Args:
        datacenter: whose gateway it is.
        label: empty for this checkout, else what tells another version apart.
        source: the folder in which the version's package lies.
        workers: how many.
    """

    def __init__(
        self, datacenter: Datacenter, label: str = "", source: Path = SCRIPTS.parent / "src", workers: int = 1
    ) -> None:
        label = label or (f"{workers} workers" if workers > 1 else "")
        self.name = f"meshgate-{label}" if label else "meshgate"
        self.title = f"meshgate, {label}" if label else "meshgate"
        self._datacenter = datacenter
        self._source = source
        self._workers = workers

    def start(self, place: Place, targets: Sequence[Target]) -> Subject:
        """Start it, and wait until it has a route for each target."""
        # As an installation has it: a process that compiles its modules needs more time, and keeps more memory.
        compileall.compile_dir(self._source, quiet=1)
        consul = self._datacenter.consul
        self._datacenter.register(targets)
        port, admin = free_ports(2)
        environment = {
            "CONSUL_HTTP_ADDR": consul.http_addr,
            "CONSUL_HTTP_TOKEN": consul.master_token,
            "MESHGATE_PROXY_ID": f"gateway-{port}",
            "MESHGATE_ADDRESS": f"127.0.0.1:{port}",
            "MESHGATE_ADMIN_BIND": f"127.0.0.1:{admin}",
            "MESHGATE_WORKERS": str(self._workers),
            "MESHGATE_DRAIN_TIMEOUT": "1s",
            "MESHGATE_MAX_CONNECTIONS_PER_CLIENT": "0",  # There is one client, who stands for all.
            "MESHGATE_DENY_ENDPOINTS": "none",  # Everything is on this machine, whatever node it is registered for.
            "PYTHONPATH": str(self._source),
        }
        command = [sys.executable, "-m", "meshgate", "run"]
        clean = dict.fromkeys(os.environ.keys() - child_environment().keys(), "")
        running = start(
            command, place.cores.relay, place.folder, f"{self.name}-{port}", environment=clean | environment
        )
        wanted = {target.server_name for target in targets}

        def serves() -> bool:
            try:
                found = {row["sni"] for row in _ask(admin, "/routes")["routes"]}
                return wanted <= found and bool(_ask(admin, "/readyz")["ready"])
            except OSError:
                return False

        wait_until(serves, "routes", running)
        time.sleep(0.5)  # What a start leaves behind is no cost of a stream.
        return Subject(running, port, helpers=(_Registrations(self._datacenter, targets),))


class _Registrations:
    """The services of a gateway that runs, to be taken away behind it."""

    def __init__(self, datacenter: Datacenter, targets: Sequence[Target]) -> None:
        self._datacenter = datacenter
        self._targets = targets

    def stop(self) -> None:
        self._datacenter.deregister(self._targets)


def _ask(admin: int, path: str) -> Any:  # noqa: ANN401  (JSON)
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}{path}", timeout=20) as answer:
        return json.load(answer)
