"""Two real Consul datacenters on this machine, WAN-joined, ACLs default-deny, Connect on.

`dc1` is the primary: tokens, configuration entries and intentions are written there and replicated to `dc2`; what this
module writes has arrived in both when its call returns. All of it, processes and files, ends with the block.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias

import trio

from tests.harness.agent import AgentStoppedError, Consul, Json, Ports, Version, consul_version
from tests.harness.waiting import LateError, until

Report: TypeAlias = Callable[[str], None]
Action: TypeAlias = Literal["allow", "deny"]

_ALIVE: Final = 1
_START_ATTEMPTS: Final = 3
# From here on intentions are written by name; before, by an ID that the first write answers.
_INTENTIONS_BY_NAME: Final = (1, 9, 0)


class StartError(Exception):
    """The datacenters did not come up; the message says what lacked and quotes their logs."""


def find_consul(*further: Path) -> str:
    """The Consul to use: `$CONSUL_BIN`, else `consul` on the PATH, else the first of `further` that exists.

    Raises:
        FileNotFoundError: none of them; the message says what to do.
    """
    named = os.environ.get("CONSUL_BIN")
    for candidate in [named] if named else ["consul", *map(str, further)]:
        if path := shutil.which(candidate):
            return str(Path(path).absolute())
    if named:
        raise FileNotFoundError(f"CONSUL_BIN names no program: {named}")
    raise FileNotFoundError("no Consul here: put a consul binary, 1.8 or newer, on the PATH or name it in CONSUL_BIN")


def _silent(_message: str) -> None:
    pass


class Federation:
    """The running datacenters. `folder` is removed with them and may hold a caller's own files meanwhile."""

    def __init__(self, dc1: Consul, dc2: Consul, folder: Path) -> None:
        self.dc1 = dc1
        self.dc2 = dc2
        self.folder = folder
        self.trust_domain = ""

    @property
    def datacenters(self) -> tuple[Consul, Consul]:
        """Both, the primary first."""
        return self.dc1, self.dc2

    @classmethod
    @trio.lowlevel.enable_ki_protection
    async def start(cls, binary: str, report: Report = _silent, *, seconds: float = 60.0) -> Self:
        """Starts both with `binary` and returns when they are ready; call `stop` at the end.

        `report` is told in a few words what is waited for. A failure or a cancellation leaves nothing behind.

        Raises:
            StartError: not ready within `seconds`, or an agent ended by itself.
            FileNotFoundError: no such program.
            ValueError: `binary` is no Consul.
        """
        version = consul_version(binary)
        for _ in range(_START_ATTEMPTS):
            federation = cls._prepared(binary, version)
            if await federation.come_up(report, seconds):
                return federation
            report("a port was taken meanwhile, trying others")
        raise StartError("no free ports for Consul")

    @classmethod
    def _prepared(cls, binary: str, version: Version) -> Self:
        folder = Path(tempfile.mkdtemp(prefix="meshgate-"))
        token = str(uuid.uuid4())
        dc1, dc2 = (Consul(binary, version, name, Ports.pick(), folder / name, token) for name in ("dc1", "dc2"))
        federation = cls(dc1, dc2, folder)
        try:
            federation.configure()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return federation

    def configure(self) -> None:
        """Writes the configuration of both; `start` calls it."""
        for one, other in ((self.dc1, self.dc2), (self.dc2, self.dc1)):
            one.configure(primary=self.dc1.datacenter, wan=[other.ports.serf_wan])

    async def launch(self, report: Report, seconds: float) -> None:
        """Starts the processes in order and waits until all is ready; `start` calls it."""
        report("dc1 is starting")
        # A secondary that is up before its primary gives up for five seconds.
        self.dc1.start()
        await self.dc1.until_leader(seconds=seconds)
        self.dc2.start()
        await self.until_ready(report, seconds=seconds)

    @trio.lowlevel.enable_ki_protection
    async def come_up(self, report: Report, seconds: float) -> bool:
        """Starts both; `start` calls it. False when a port was taken; everything is gone again unless it is True."""
        try:
            await self.launch(report, seconds)
        except (AgentStoppedError, LateError) as error:
            logs = "\n".join(f"the log of {one.datacenter} ends:\n{one.log_end()}" for one in self.datacenters)
            await self.stop()
            if "address already in use" in logs:
                return False
            raise StartError(f"{error}\n{logs}") from error
        except BaseException:
            await self.stop()
            raise
        return True

    async def until_ready(self, report: Report = _silent, *, seconds: float = 60.0) -> None:
        """Waits until both have a leader, ACLs and one trust domain, and each answers for the other.

        Also for the time after a restart. `report` is told what is waited for.

        Raises:
            AgentStoppedError: an agent ended by itself.
            LateError: not within `seconds`.
        """
        told: str | None = None

        async def missing() -> str | None:
            nonlocal told
            lacking = await self._missing()
            if lacking not in (None, told):
                report(told := lacking)
            return lacking

        await until("two Consul datacenters", missing, seconds=seconds)

    async def _missing(self) -> str | None:
        """What keeps the two from being ready, in a few words; None when nothing does."""
        trust_domains: set[str] = set()
        for consul in self.datacenters:
            name = consul.datacenter
            if not await consul.ask("/v1/status/leader"):
                return f"{name} has no leader yet"
            if not await consul.ask("/v1/acl/token/self"):
                return f"the ACLs of {name} are not ready yet"
            members = await consul.ask("/v1/agent/members", wan="1") or []
            if sum(member["Status"] == _ALIVE for member in members) < len(self.datacenters):
                return f"{name} has not joined the other datacenter yet"
            trust_domains.add((await consul.ask("/v1/connect/ca/roots") or {}).get("TrustDomain", ""))
        if len(trust_domains) != 1 or not all(trust_domains):
            return "the datacenters share no trust domain yet"
        for consul in self.datacenters:
            for other in self.datacenters:
                if not await consul.ask("/v1/catalog/nodes", dc=other.datacenter):
                    return f"{consul.datacenter} cannot see {other.datacenter} yet"
        self.trust_domain = trust_domains.pop()
        return None

    @trio.lowlevel.enable_ki_protection
    async def stop(self) -> None:
        """Ends both agents and removes `folder`. Cancellation does not interrupt it."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for consul in self.datacenters:
                    nursery.start_soon(consul.stop)
            shutil.rmtree(self.folder, ignore_errors=True)

    async def create_policy_token(self, rules: str, name: str, *, local_to: Consul | None = None) -> str:
        """The secret of a new token with one new policy called `name`, whose `rules` are HCL.

        A global token, known in both datacenters when this returns, unless it is `local_to` one.
        """
        policy = await self.dc1.put("/v1/acl/policy", {"Name": name, "Rules": rules})
        await self._arrived(f"policy {name}", f"/v1/acl/policy/{policy['ID']}", lambda _: True)
        token = {"Description": name, "Policies": [{"Name": name}], "Local": local_to is not None}
        made = await (local_to or self.dc1).put("/v1/acl/token", token)
        if local_to is None:
            await self._arrived(f"token {name}", f"/v1/acl/token/{made['AccessorID']}", lambda _: True)
        return str(made["SecretID"])

    async def write_config_entry(self, entry: Mapping[str, object]) -> None:
        """Writes a configuration entry, with Consul's own field names (`Kind`, `Name`, ...)."""
        path = f"/v1/config/{entry['Kind']}/{entry['Name']}"
        await self.dc1.put("/v1/config", entry)
        written = await self.dc1.get(path)
        await self._arrived(f"{entry['Kind']} {entry['Name']}", path, lambda found: _same(found, written))

    async def delete_config_entry(self, kind: str, name: str) -> None:
        """Removes a configuration entry; one that is not there is fine."""
        await self.dc1.delete(f"/v1/config/{kind}/{name}")

        def gone(entries: Json) -> bool:
            return all(entry["Name"] != name for entry in entries)

        await self._arrived(f"removal of {kind} {name}", f"/v1/config/{kind}", gone)

    async def set_intention(self, source: str, destination: str, action: Action | None) -> None:
        """Lets `source` call `destination` or forbids it; None removes what was said of the two."""
        if self.dc1.version >= _INTENTIONS_BY_NAME:
            await self._set_intention_by_name(source, destination, action)
        else:
            await self._set_intention_by_id(source, destination, action)

        def shown(intentions: Json) -> bool:
            return _action(intentions, source, destination) == action

        await self._arrived(f"intention {source} -> {destination}", "/v1/connect/intentions", shown)

    async def _set_intention_by_name(self, source: str, destination: str, action: Action | None) -> None:
        pair = {"source": source, "destination": destination}
        if action is None:
            await self.dc1.delete("/v1/connect/intentions/exact", **pair)
        else:
            await self.dc1.put("/v1/connect/intentions/exact", {"Action": action}, **pair)

    async def _set_intention_by_id(self, source: str, destination: str, action: Action | None) -> None:
        wanted = {"SourceName": source, "DestinationName": destination, "Action": action, "SourceType": "consul"}
        found = _intention(await self.dc1.get("/v1/connect/intentions"), source, destination)
        if action is None:
            if found:
                await self.dc1.delete(f"/v1/connect/intentions/{found['ID']}")
        elif found:
            await self.dc1.put(f"/v1/connect/intentions/{found['ID']}", wanted)
        else:
            await self.dc1.post("/v1/connect/intentions", wanted)

    async def _arrived(self, what: str, path: str, wanted: Callable[[Json], bool]) -> None:
        """Waits until `path` answers as `wanted` in every datacenter; no success counts as not yet."""

        async def missing() -> str | None:
            for consul in self.datacenters:
                answer = await consul.ask(path)
                if answer is None or not wanted(answer):
                    return f"not yet in {consul.datacenter}"
            return None

        await until(what, missing, seconds=30)


def _same(one: Json, other: Json) -> bool:
    """Whether two configuration entries say the same; each datacenter counts its own indexes."""
    own = {"CreateIndex", "ModifyIndex", "Hash"}
    return {key: one[key] for key in one if key not in own} == {key: other[key] for key in other if key not in own}


def _intention(intentions: Json, source: str, destination: str) -> Json:
    for intention in intentions or ():
        if (intention["SourceName"], intention["DestinationName"]) == (source, destination):
            return intention
    return None


def _action(intentions: Json, source: str, destination: str) -> str | None:
    found = _intention(intentions, source, destination)
    return None if found is None else str(found["Action"])


@asynccontextmanager
async def two_datacenters(binary: str, report: Report = _silent) -> AsyncIterator[Federation]:
    """A `Federation` for the length of the block; ended and removed however the block ends."""
    federation = await Federation.start(binary, report)
    try:
        yield federation
    finally:
        await federation.stop()
