"""A pair of datacenters that stands for as long as a test process, and is as new for each module of tests.

Two servers take seconds to come up, and a process has dozens of modules. What a module leaves behind (services, checks,
entries, intentions, tokens) is taken out before the next one; where that does not succeed the pair is replaced.

A secondary takes over five changes to intentions at once and then one each five seconds, and five to tokens, policies
and configuration entries and then one a second. So what all modules need stands from the beginning: `shop` may call
everybody.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from meshgate.adapters.consul.policy import acl_policy
from tests.harness.agent import AgentStoppedError, Consul, ConsulError
from tests.harness.cluster import Federation
from tests.harness.waiting import LateError, until

# What is there: what kind of thing, in which datacenter it is removed, its name.
Thing: TypeAlias = tuple[str, str, str]

_KINDS: Final = (
    # What refers to others comes before these.
    "exported-services",
    "service-router",
    "service-splitter",
    "service-resolver",
    "ingress-gateway",
    "terminating-gateway",
    "service-defaults",
    "proxy-defaults",
    "mesh",
)
_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Stage:
    """Two datacenters, and a global token with the documented policy for their gateways."""

    federation: Federation
    token: str


async def set_up(binary: str) -> Stage:
    """A new pair; `stage.federation.stop()` ends it.

    Raises:
        StartError: it did not come up.
    """
    federation = await Federation.start(binary)
    try:
        token = await federation.create_policy_token(acl_policy(), "mesh-gateway")
        await federation.set_intention("shop", "*", "allow")
    except BaseException:
        await federation.stop()
        raise
    return Stage(federation, token)


class Standing:
    """The pair of this process, started when it is first asked for."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._stage: Stage | None = None
        self._things: set[Thing] = set()

    async def stage(self) -> Stage:
        """The pair, with nothing in it but what was there at its beginning."""
        if self._stage is not None:
            try:
                await _clear(self._stage.federation, self._things)
            except (AgentStoppedError, ConsulError, LateError):
                await self.stop()
        if self._stage is None:
            self._stage = await set_up(self._binary)
            self._things = await _things(self._stage.federation)
        return self._stage

    async def stop(self) -> None:
        """Ends the pair, if there is one."""
        stage, self._stage = self._stage, None
        if stage is not None:
            await stage.federation.stop()


async def _clear(federation: Federation, wanted: set[Thing]) -> None:
    """Removes all but `wanted` and waits until it is gone in both.

    Raises:
        LateError: something stays.
        AgentStoppedError, ConsulError: a server does not answer.
    """

    async def missing() -> str | None:
        left = await _things(federation) - wanted
        first = min((_ORDER.index(kind) for kind, *_ in left), default=0)
        for kind, datacenter, name in sorted(left):
            try:
                # The agent takes a service out of the catalog with the token that came with it: tokens go later.
                if _ORDER.index(kind) == first:
                    await _REMOVE[kind](federation, datacenter, name)
            except ConsulError as error:
                return f"{kind} {name} of {datacenter}: {error}"
        return f"{len(left)} were there" if left else None

    await until("an empty pair of datacenters", missing, seconds=_SECONDS)
    await federation.until_ready(seconds=_SECONDS)


async def _things(federation: Federation) -> set[Thing]:
    found: set[Thing] = set()
    for consul in federation.datacenters:
        where, primary = consul.datacenter, consul is federation.dc1
        checks = await consul.get("/v1/agent/checks")
        intentions = await consul.get("/v1/connect/intentions") or ()
        # What the primary removes of these goes from the other by and by, and is in nobody's way until then.
        tokens = [it for it in await consul.get("/v1/acl/tokens") if primary or it["Local"]]
        policies = await consul.get("/v1/acl/policies") if primary else ()
        found |= {("service", where, identity) for identity in await consul.get("/v1/agent/services")}
        found |= {("check", where, identity) for identity, check in checks.items() if not check["ServiceID"]}
        for node in await consul.get("/v1/catalog/nodes"):
            services = (await consul.get(f"/v1/catalog/node/{node['Node']}"))["Services"]
            found.add(("node", where, node["Node"]))
            found |= {("instance", where, f"{node['Node']} {identity}") for identity in services}
        found |= {("token", where, token["AccessorID"]) for token in tokens}
        found |= {("policy", where, policy["ID"]) for policy in policies}
        found |= {("intention", where, f"{it['SourceName']} {it['DestinationName']}") for it in intentions}
        for number, kind in enumerate(_KINDS):
            # A kind that this version does not know has no entries.
            entries = await consul.ask(f"/v1/config/{kind}") or ()
            found |= {("entry", where, f"{number} {kind} {entry['Name']}") for entry in entries}
    return found


async def _remove_service(federation: Federation, datacenter: str, name: str) -> None:
    await _at(federation, datacenter).deregister(name)


async def _remove_check(federation: Federation, datacenter: str, name: str) -> None:
    consul = _at(federation, datacenter)
    if name == "_node_maintenance":
        await consul.put("/v1/agent/maintenance", enable="false")
    else:
        await consul.put(f"/v1/agent/check/deregister/{name}")


async def _remove_node(federation: Federation, datacenter: str, name: str) -> None:
    await _at(federation, datacenter).put("/v1/catalog/deregister", {"Node": name})


async def _remove_instance(federation: Federation, datacenter: str, place: str) -> None:
    node, identity = place.split(" ", 1)
    await _at(federation, datacenter).put("/v1/catalog/deregister", {"Node": node, "ServiceID": identity})


async def _remove_token(federation: Federation, datacenter: str, accessor: str) -> None:
    await _at(federation, datacenter).delete(f"/v1/acl/token/{accessor}")


async def _remove_policy(federation: Federation, _: str, identity: str) -> None:
    await federation.dc1.delete(f"/v1/acl/policy/{identity}")


async def _remove_intention(federation: Federation, _: str, pair: str) -> None:
    source, destination = pair.split(" ")
    await federation.set_intention(source, destination, None)


async def _remove_entry(federation: Federation, _: str, entry: str) -> None:
    await federation.delete_config_entry(*entry.split(" ", 2)[1:])


def _at(federation: Federation, datacenter: str) -> Consul:
    return next(consul for consul in federation.datacenters if consul.datacenter == datacenter)


_REMOVE: Final[dict[str, Callable[[Federation, str, str], Awaitable[None]]]] = {
    "service": _remove_service,
    "check": _remove_check,
    "instance": _remove_instance,
    "node": _remove_node,
    "entry": _remove_entry,
    "intention": _remove_intention,
    "token": _remove_token,
    "policy": _remove_policy,
}
_ORDER: Final = list(_REMOVE)
