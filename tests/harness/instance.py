"""One instance of a mesh service in one datacenter: where it listens, its health, its place in the catalog."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Literal, TypeAlias

import trio

from tests.harness.agent import Consul, ConsulError
from tests.harness.waiting import until

Health: TypeAlias = Literal["passing", "warning", "critical"]

HOST: Final = "127.0.0.1"
# It takes a fraction of a second; the rest is for a machine that is busy with other things.
_CATALOG_SECONDS: Final = 30.0


class Instance:
    """An instance of `service`.

    `instance` is its service ID; `listed_as` is the ID under which `/v1/health/connect` lists what terminates its mTLS,
    at `address`. Its health there is one TTL check, so a test decides what Consul thinks of it.
    """

    def __init__(self, consul: Consul, service: str, instance: str, listed_as: str) -> None:
        self.consul = consul
        self.service = service
        self.instance = instance
        self.listed_as = listed_as
        self.port = 0
        self.health: Health = "passing"

    @property
    def address(self) -> tuple[str, int]:
        """Where it takes mTLS connections."""
        return HOST, self.port

    @property
    def check(self) -> Mapping[str, object]:
        """The definition of its check, with the present health."""
        return {"CheckID": f"{self.listed_as}-health", "Name": "set by hand", "TTL": "24h", "Status": self.health}

    async def set_health(self, health: Health) -> None:
        """Sets its check and waits until the datacenter's catalog says the same.

        An agent that crashed remembers only what was set: without that, a TTL check is critical after its restart.
        """
        self.health = health
        body = {"Status": health, "Output": f"set to {health}"}
        await self.consul.put(f"/v1/agent/check/update/{self.listed_as}-health", body)
        await self.until_listed()

    async def until_listed(self) -> None:
        """Waits until the datacenter's catalog has it at its address and with its health.

        Raises:
            LateError: not in time.
        """

        async def missing() -> str | None:
            for row in await self.consul.ask(f"/v1/health/connect/{self.service}") or ():
                service, checks = row["Service"], row["Checks"]
                if (service["ID"], service["Port"]) == (self.listed_as, self.port):
                    states = {check["Status"] for check in checks if check["CheckID"] == f"{self.listed_as}-health"}
                    return None if states == {self.health} else f"it is {states or 'without its check'}"
            return "it is not listed"

        await until(f"{self.instance} in the catalog of {self.consul.datacenter}", missing, seconds=_CATALOG_SECONDS)

    async def deregister(self) -> None:
        """Removes it from Consul and waits until the datacenter's catalog lacks it; it goes on listening."""
        await self.consul.deregister(self.instance)

        async def missing() -> str | None:
            rows = await self.consul.ask(f"/v1/health/connect/{self.service}")
            gone = rows is not None and all(row["Service"]["ID"] != self.listed_as for row in rows)
            return None if gone else "still listed"

        await until(
            f"{self.instance} to leave the catalog of {self.consul.datacenter}", missing, seconds=_CATALOG_SECONDS
        )

    async def forget(self) -> None:
        """Takes it out of Consul at the end, where Consul still answers. Not cancellable, at most 5 s."""
        with trio.move_on_after(5, shield=True), suppress(ConsulError):
            if self.consul.child.running:
                await self.consul.deregister(self.instance)
