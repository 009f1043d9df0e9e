"""All that a fault may reach for, and how tables are compared with what Consul says at the same time."""

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx
import trio
from tests.harness.agent import Consul
from tests.harness.waiting import LateError, until

from .datacenters import PlacedConsul, PlacedFederation
from .fleet import Fleet, Gateway
from .ledger import Ledger
from .network import Network, Place
from .services import SoakInstance
from .traffic import Traffic

# A machine that is busy with other things is no fault of anybody's.
FOLLOW_SECONDS: Final = 90.0
_GATEWAYS: Final = "/v1/health/service/mesh-gateway"


@dataclass
class Stage:
    """What a run consists of."""

    federation: PlacedFederation
    fleet: Fleet
    instances: list[SoakInstance]
    token_file: Path
    ledger: Ledger
    rng: Random
    network: Network
    tokens: int = 0
    traffic: Traffic | None = None

    def gateway(self, datacenter: str) -> Gateway:
        """One that takes streams."""
        return self.rng.choice(self.fleet.taking(datacenter))

    def instance(self, datacenter: str) -> SoakInstance:
        """One of a service of a datacenter."""
        return self.rng.choice([one for one in self.instances if one.consul.datacenter == datacenter])

    def consul(self, datacenter: str) -> PlacedConsul:
        """The server of a datacenter."""
        found = next(one for one in self.federation.datacenters if one.datacenter == datacenter)
        assert isinstance(found, PlacedConsul)
        return found

    def other(self, datacenter: str) -> str:
        """The other datacenter."""
        return next(one.datacenter for one in self.federation.datacenters if one.datacenter != datacenter)

    async def cut(self, what: str, some: Collection[Place], others: Collection[Place], seconds: float) -> None:
        """Nothing passes between the ones and the others for so long."""
        self.ledger.note(f"cut for {seconds:.1f} s: {what}")
        self.network.cut(some, others)
        try:
            await trio.sleep(seconds)
        finally:
            self.network.heal(some, others)
            self.ledger.note(f"together again: {what}")


async def until_all_known(stage: Stage, datacenter: str) -> None:
    """Waits until Consul lists the gateways of a datacenter that there are, and the other's gateways those.

    That a gateway is listed is its own work, that an agent answers for another datacenter is Consul's.
    """
    ports = {gateway.port for gateway in stage.fleet.by_datacenter[datacenter]}
    here, there = stage.consul(datacenter), stage.consul(stage.other(datacenter))

    async def unlisted() -> str | None:
        listed = await passing(here, datacenter)
        return None if listed == ports else f"Consul lists {listed}, not {ports}"

    async def unanswered() -> str | None:
        listed = await passing(there, datacenter)
        return None if listed == ports else f"{there.datacenter} lists {listed}, not {ports}"

    try:
        await until(f"registrations of gateways in {datacenter}", unlisted, seconds=FOLLOW_SECONDS)
    except LateError as error:
        stage.ledger.violation(str(error))
        return
    try:
        await until(f"Consul to answer for {datacenter}", unanswered, seconds=FOLLOW_SECONDS)
    except LateError as error:
        stage.ledger.consul_behind += 1
        stage.ledger.note(f"Consul is behind: {error}")
        return
    await until_tables_follow(stage, datacenter)


async def until_tables_follow(stage: Stage, datacenter: str) -> None:
    """Waits until the other datacenter's gateways have of this one what their agent says at the same time."""
    started = time.monotonic()

    async def missing() -> str | None:
        for gateway in stage.fleet.taking(stage.other(datacenter)):
            if lacking := await difference(stage, gateway, datacenter):
                return lacking
        return None

    try:
        await until("tables to follow Consul", missing, seconds=FOLLOW_SECONDS)
    except LateError as error:
        stage.ledger.violation(f"a table did not follow Consul: {error}")
    stage.ledger.follow_seconds = max(stage.ledger.follow_seconds, time.monotonic() - started)


async def difference(stage: Stage, gateway: Gateway, datacenter: str) -> str | None:
    """What sets apart the gateways of a datacenter in a table and those that the gateway's agent lists."""
    try:
        endpoints = await gateway.endpoints(f"*.{datacenter}.internal.{stage.federation.trust_domain}")
    except httpx.HTTPError as error:
        return f"{gateway.instance} does not answer: {error!r}"
    healthy = {port for port, well in endpoints.items() if well}
    listed = await passing(gateway.consul, datacenter)
    if listed is None:
        return f"the agent of {gateway.instance} does not answer for {datacenter}"
    return None if healthy == listed else f"{gateway.instance} has {endpoints}, its agent lists {listed}"


async def passing(consul: Consul, datacenter: str) -> set[int] | None:
    """The ports of the gateways of a datacenter that are healthy by an agent; None when it does not say."""
    rows = await consul.ask(_GATEWAYS, dc=datacenter, passing="1")
    return None if rows is None else {row["Service"]["Port"] for row in rows}


async def checks_of(consul: Consul) -> dict[str, str]:
    """The IDs of the checks of all services of an agent, by the ID of the service."""
    checks = await consul.ask("/v1/agent/checks") or {}
    return {check["ServiceID"]: name for name, check in checks.items()}


@asynccontextmanager
async def critical_after_restart(stage: Stage, datacenter: str, before: dict[str, str]) -> AsyncIterator[None]:
    """While an agent starts again: it takes all checks for critical until they have run.

    Refusals of streams to this datacenter are explained by that only where each of its gateways was critical, or has
    got another check than it had `before`, only by the alert that says so, and only until the tables say what Consul
    says after that.
    """
    began = time.monotonic()
    critical: set[str] = set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, stage, datacenter, before, critical)
        yield
        await until_tables_follow(stage, datacenter)
        nursery.cancel_scope.cancel()
    if {gateway.instance for gateway in stage.fleet.taking(datacenter)} <= critical:
        disturbance = stage.ledger.disturb(
            "Consul listed no healthy gateway after its restart", f"from {stage.other(datacenter)} behind {datacenter}"
        )
        disturbance.start, disturbance.alert = began, "internal_error"
        disturbance.close()


async def _watch(stage: Stage, datacenter: str, before: dict[str, str], critical: set[str]) -> None:
    """Writes down which gateways of a datacenter the other agent lists as critical, or with a new check.

    Consul takes changes together, so that one who asks may miss what another sees: a gateway that registers again at
    once is critical for a moment. Its new check says so afterwards.
    """
    asked = stage.consul(stage.other(datacenter))
    async for rows in _answers(asked, _GATEWAYS, dc=datacenter):
        states = {row["Service"]["ID"]: {check["Status"] for check in row["Checks"]} for row in rows}
        stage.ledger.note(f"{asked.datacenter} lists of {datacenter}: {states}")
        for row in rows:
            name = row["Service"]["ID"]
            own = {check["CheckID"]: check["Status"] for check in row["Checks"] if check["ServiceID"]}
            if set(own.values()) != {"passing"} or before.get(name) not in own:
                critical.add(name)


async def _answers(consul: Consul, path: str, **parameters: str) -> AsyncIterator[list[dict[str, Any]]]:
    """Each answer of a blocking query, as a gateway gets it; errors are passed over."""
    index = "0"
    headers = {"X-Consul-Token": consul.master_token}
    async with httpx.AsyncClient(trust_env=False, timeout=15, headers=headers) as client:
        while True:
            with suppress(httpx.HTTPError):
                answer = await client.get(
                    f"http://{consul.http_addr}{path}", params={**parameters, "index": index, "wait": "10s"}
                )
                if answer.is_success:
                    index = answer.headers["X-Consul-Index"]
                    yield answer.json()
                    continue
            await trio.sleep(0.05)


def replace(file: Path, text: str) -> None:
    """Writes a file at once, as an agent of a secret store does."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.replace(file)
