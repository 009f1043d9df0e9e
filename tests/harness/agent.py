"""One real Consul server as a datacenter of its own: its process, its configuration and its HTTP API.

Holds nothing that belongs to an event loop, so it may be started in one `trio.run` and used in another. Works with
Consul 1.8 and newer; what differs is chosen by `consul version`.
"""

import json
import re
import shutil
import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import httpx

from tests.harness.ports import free_ports
from tests.harness.process import Child, child_environment
from tests.harness.waiting import until

Version: TypeAlias = tuple[int, int, int]
# Decoded JSON in the shape that Consul documents for the path; checked nowhere, because this serves tests and the demo.
Json: TypeAlias = Any

# Plain HTTP on loopback: one empty context for all spares the loading of the system's authorities for each request.
_NO_AUTHORITIES: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class ConsulError(Exception):
    """Consul answered something else than success; `status` is the HTTP status, 0 where no answer came."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text.strip()}" if status else text)
        self.status = status


class AgentStoppedError(Exception):
    """An agent ended, and nobody had asked it to."""


def consul_version(binary: str) -> Version:
    """What `consul version` says, as numbers: (1, 8, 7).

    Raises:
        FileNotFoundError: there is no such program.
        ValueError: it is no Consul.
    """
    path = shutil.which(binary)
    if path is None:
        raise FileNotFoundError(f"no program {binary}")
    answer = subprocess.run([path, "version"], capture_output=True, text=True, check=False, env=child_environment())
    found = re.match(r"Consul v(\d+)\.(\d+)\.(\d+)", answer.stdout)
    if found is None:
        raise ValueError(f"{binary} is no Consul: {answer.stdout[:80]!r}")
    major, minor, patch = (int(number) for number in found.groups())
    return major, minor, patch


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one server, all on 127.0.0.1."""

    http: int
    server: int
    serf_lan: int
    serf_wan: int

    @classmethod
    def pick(cls) -> Self:
        """Four that are free now."""
        return cls(*free_ports(4))


class Consul:
    """A server agent that is a datacenter alone.

    `http_addr` is `127.0.0.1:port`, `master_token` may do everything in every datacenter. `folder` holds its
    configuration, data and log; it belongs to the caller.
    """

    def __init__(self, binary: str, version: Version, datacenter: str, ports: Ports, folder: Path, token: str) -> None:
        self.binary = binary
        self.version = version
        self.datacenter = datacenter
        self.node = f"{datacenter}-server"
        self.ports = ports
        self.folder = folder
        self.master_token = token
        self.http_addr = f"127.0.0.1:{ports.http}"
        self.grpc = -1
        self._child: Child | None = None

    def configure(self, primary: str, wan: list[int], *, grpc: int = -1, **more: object) -> None:
        """Writes the configuration: ACLs default-deny, Connect on, joined over the gossip ports `wan`.

        `primary` names the datacenter that is the authority for tokens, intentions and certificates. `grpc` is the
        port at which Envoys ask for their configuration, -1 for none. `more` are settings under Consul's names, which
        take the place of those made here.
        """
        self.grpc = grpc
        master = "initial_management" if self.version >= (1, 11, 0) else "master"
        ports = {
            "http": self.ports.http,
            "server": self.ports.server,
            "serf_lan": self.ports.serf_lan,
            "serf_wan": self.ports.serf_wan,
            "dns": -1,
            "https": -1,
            "grpc": grpc,
        }
        if self.version >= (1, 14, 0):
            ports["grpc_tls"] = -1
        settings = {
            "server": True,
            "bootstrap_expect": 1,
            "datacenter": self.datacenter,
            "primary_datacenter": primary,
            "node_name": self.node,
            "bind_addr": "127.0.0.1",
            "advertise_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": ports,
            "data_dir": str(self.folder / "data"),
            "retry_join_wan": [f"127.0.0.1:{port}" for port in wan],
            "retry_interval_wan": "500ms",
            "performance": {"raft_multiplier": 1},
            "connect": {"enabled": True},
            "enable_central_service_config": True,
            "acl": {
                "enabled": True,
                "default_policy": "deny",
                "enable_token_replication": True,
                # What a token may do is seen a second after it changed, not half a minute.
                "policy_ttl": "1s",
                "token_ttl": "1s",
                "tokens": {master: self.master_token, "agent": self.master_token, "replication": self.master_token},
            },
            "leave_on_terminate": False,
            "skip_leave_on_interrupt": True,
            "disable_update_check": True,
            "log_level": "warn",
        }
        self.folder.mkdir(mode=0o700)
        (self.folder / "consul.json").write_text(json.dumps(settings | more, indent=1))

    @property
    def child(self) -> Child:
        """The process, also after it ended.

        Raises:
            RuntimeError: it was never started.
        """
        if self._child is None:
            raise RuntimeError(f"Consul of {self.datacenter} was not started")
        return self._child

    def start(self) -> None:
        """Starts the process with what `configure` wrote; `until_leader` waits for its answers."""
        self._child = Child(
            [self.binary, "agent", "-config-file", str(self.folder / "consul.json")],
            name=f"Consul of {self.datacenter}",
            log=self.folder / "log",
        )

    async def stop(self) -> None:
        """Ends the process if there is one: SIGTERM, later SIGKILL; never leaves the cluster. Not cancellable."""
        if self._child is not None:
            await self._child.stop()

    async def kill(self) -> None:
        """SIGKILL, as a crash; `restart` brings it back."""
        await self.child.kill()

    async def restart(self, *, seconds: float = 20.0) -> None:
        """Stops it if it runs, starts it with the same data and ports, waits until it has a leader again."""
        await self.stop()
        self.start()
        await self.until_leader(seconds=seconds)

    async def until_leader(self, *, seconds: float = 20.0) -> None:
        """Waits until the datacenter has a leader.

        Raises:
            AgentStoppedError: the process ended.
            LateError: not within `seconds`.
        """

        async def missing() -> str | None:
            return None if await self.ask("/v1/status/leader") else "no leader"

        await until(f"Consul of {self.datacenter} to have a leader", missing, seconds=seconds)

    def log_end(self) -> str:
        """The last lines of its log, for error messages; empty when it was never started."""
        return self._child.last_lines() if self._child else ""

    async def ask(self, path: str, **parameters: str) -> Json:
        """As `get`, but None while there is no answer or no success: for waiting.

        Raises:
            AgentStoppedError: the process ended.
        """
        if not self.child.running:
            raise AgentStoppedError(f"{self.child.name} ended with {self.child.returncode}")
        try:
            return await self.get(path, **parameters)
        except ConsulError:
            return None

    async def get(self, path: str, *, token: str | None = None, **parameters: str) -> Json:
        """The decoded JSON of `GET path` (`/v1/...`) with the master token or `token` ("" sends none).

        Raises:
            ConsulError: any other answer than success, or none within 10 s.
        """
        return await self._call("GET", path, None, token, parameters)

    async def put(self, path: str, body: object = None, *, token: str | None = None, **parameters: str) -> Json:
        """As `get`, for `PUT`; `body` is sent as JSON."""
        return await self._call("PUT", path, body, token, parameters)

    async def post(self, path: str, body: object = None, *, token: str | None = None, **parameters: str) -> Json:
        """As `get`, for `POST`; `body` is sent as JSON."""
        return await self._call("POST", path, body, token, parameters)

    async def delete(self, path: str, *, token: str | None = None, **parameters: str) -> Json:
        """As `get`, for `DELETE`."""
        return await self._call("DELETE", path, None, token, parameters)

    async def _call(
        self, method: str, path: str, body: object, token: str | None, parameters: Mapping[str, str]
    ) -> Json:
        secret = self.master_token if token is None else token
        # A connection for each request: none is left over when the agent restarts or the event loop ends.
        async with httpx.AsyncClient(verify=_NO_AUTHORITIES, trust_env=False, timeout=10) as client:
            try:
                answer = await client.request(
                    method,
                    f"http://{self.http_addr}{path}",
                    params=parameters,
                    content=None if body is None else json.dumps(body).encode(),
                    headers={"X-Consul-Token": secret} if secret else {},
                )
            except httpx.TransportError as error:
                raise ConsulError(0, f"no answer from Consul of {self.datacenter}: {error!r}") from error
        if not answer.is_success:
            raise ConsulError(answer.status_code, answer.text)
        return answer.json() if answer.content else None

    async def register(self, registration: Mapping[str, object]) -> None:
        """`PUT /v1/agent/service/register` with Consul's own field names."""
        await self.put("/v1/agent/service/register", registration)

    async def deregister(self, instance: str) -> None:
        """Removes the service with that ID, and its sidecar's registration with it; one that is gone is fine."""
        try:
            await self.put(f"/v1/agent/service/deregister/{instance}")
        except ConsulError as error:
            # 404 in newer Consuls, 500 in older ones.
            if "Unknown service" not in str(error):
                raise
