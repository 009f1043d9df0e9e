"""The adapter against real Consul: two datacenters, ACLs default-deny, one of them the gateway's own."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from meshgate.adapters.consul import (
    CatalogWatcher,
    GatewayDefinition,
    Home,
    Registrar,
    WatchRegistry,
    acl_policy,
    wait_for_agent,
)
from meshgate.adapters.consul.api import LONGEST_WAIT, ConsulAddress, ConsulClient, Cursor
from meshgate.adapters.consul.watch import FIRST_WAIT
from meshgate.core.catalog import Instance, Snapshot
from meshgate.core.proxy_config import BindAddress
from tests.harness.agent import Consul
from tests.harness.cluster import Federation

from .fake_consul import fake_consul

pytestmark = pytest.mark.consul

# Seconds in which a table has to follow Consul: it takes a fraction of one, the rest is for a loaded machine.
FOLLOWS = 5.0


@pytest.fixture(scope="module")
def federation(consul_binary: str) -> Iterator[Federation]:
    federation = trio.run(Federation.start, consul_binary)
    try:
        yield federation
    finally:
        trio.run(federation.stop)


@pytest.fixture(scope="module")
def token(federation: Federation) -> str:
    """A token with the documented policy and nothing else."""
    return trio.run(federation.create_policy_token, acl_policy(), "mesh-gateway")


@dataclass
class Running:
    """A watcher and a registrar on dc1."""

    client: ConsulClient
    watcher: CatalogWatcher
    registrar: Registrar
    snapshots: list[Snapshot] = field(default_factory=list)

    def service(self, name: str) -> tuple[Instance, ...]:
        return next((it.instances for it in self.snapshots[-1].services if it.name == name), ())

    def gateways(self, datacenter: str) -> tuple[Instance, ...]:
        return next((it.gateways for it in self.snapshots[-1].remotes if it.name == datacenter), ())

    async def until(self, holds: Callable[[], Any], seconds: float = FOLLOWS) -> None:
        with trio.fail_after(seconds):
            while not (self.snapshots and holds()):
                await trio.sleep(0.01)


@asynccontextmanager
async def running(consul: Consul, *, first_wait: float = FIRST_WAIT, **settings: str) -> AsyncIterator[Running]:
    address = ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": consul.http_addr} | settings)
    async with ConsulClient(address) as client, trio.open_nursery() as nursery:
        registry = WatchRegistry(token_version=lambda: client.token.version, first_wait=first_wait)
        facts = await wait_for_agent(client, registry)
        snapshots: list[Snapshot] = []
        watcher = CatalogWatcher(client, registry, snapshots.append, Home(facts.datacenter))
        registrar = Registrar(client, registry, GatewayDefinition(address="127.0.0.1", port=8555))
        nursery.start_soon(watcher.run)
        nursery.start_soon(registrar.run)
        it = Running(client, watcher, registrar, snapshots)
        await registrar.registered()
        await it.until(lambda: True, 6)
        yield it
        nursery.cancel_scope.cancel()


def web(name: str = "web", *, port: int = 21900, **fields: Any) -> dict[str, Any]:
    sidecar = {"Port": port, "Checks": [{"CheckID": f"{name}-up", "Name": "up", "TTL": "1h", "Status": "passing"}]}
    return {"Name": name, "Port": 80, "Connect": {"SidecarService": sidecar | fields}}


def statuses(it: Running, service: str) -> set[str]:
    return {check.status for instance in it.service(service) for check in instance.checks}


def gateway(name: str, number: int) -> dict[str, Any]:
    place = {"Port": 8700 + number, "Address": "127.0.0.1"}
    return {"Kind": "mesh-gateway", "Name": name, "ID": f"{name}-{number}", **place}


async def test_the_documented_policy_is_enough(federation: Federation, token: str) -> None:
    async with running(federation.dc1, CONSUL_HTTP_TOKEN=token) as it:
        assert it.watcher.problems() == []
        assert it.client.errors == {}
        assert it.snapshots[-1].datacenter == "dc1"
        assert it.snapshots[-1].trust_domain == federation.trust_domain
        assert it.watcher.ca_roots is not None
        assert (await it.client.agent_facts()).version == ".".join(map(str, federation.dc1.version))
    agent = await federation.dc1.get("/v1/agent/services")
    assert "mesh-gateway" not in agent


async def test_an_agent_lets_go_of_a_health_query_with_its_client_where_it_is_streaming(
    federation: Federation, token: str
) -> None:
    """150 queries are held and given up, of 200 connections that an address has; then 100 more are wanted."""
    consul = federation.dc1
    address = ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": consul.http_addr, "CONSUL_HTTP_TOKEN": token})
    async with ConsulClient(address) as client:
        streaming = (await client.agent_facts()).streaming
        index = (await client.connect_instances("nobody", Cursor())).index or 0
    host, _, port = consul.http_addr.removeprefix("http://").rpartition(":")

    async def ask(path: str) -> trio.SocketStream:
        # From an address of its own, whose connections are counted alone.
        stream = await trio.open_tcp_stream(host, int(port), local_address="127.0.0.9")
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: consul\r\nX-Consul-Token: {token}\r\n\r\n".encode())
        return stream

    async def served() -> int:
        streams = [await ask("/v1/status/leader") for _ in range(100)]
        answers = []
        for stream in streams:
            try:
                answers.append((await stream.receive_some()).startswith(b"HTTP/1.1 200"))
            except trio.BrokenResourceError:
                answers.append(False)
            await stream.aclose()
        return sum(answers)

    # The last one is answered, so Consul has taken those before it.
    held = [await ask(f"/v1/health/connect/nobody-{each}?index={index + 1000}&wait=10s") for each in range(150)]
    held.append(await ask("/v1/status/leader"))
    assert await held[-1].receive_some()
    for stream in held:
        await stream.aclose()
    if not streaming:
        assert await served() < 60
        return
    with trio.fail_after(4):
        while await served() < 100:
            await trio.sleep(0.1)


async def test_a_service_is_followed_through_its_life(federation: Federation, token: str) -> None:
    dc1 = federation.dc1
    async with running(dc1, CONSUL_HTTP_TOKEN=token) as it:
        await dc1.register(web())
        await it.until(lambda: [one.port for one in it.service("web")] == [21900])
        await dc1.register(web(port=21901))
        await it.until(lambda: [one.port for one in it.service("web")] == [21901])
        for status in ("critical", "warning", "passing"):
            await dc1.put("/v1/agent/check/update/web-up", {"Status": status})
            await it.until(lambda: status in statuses(it, "web"))  # noqa: B023 (awaited in this round)
        await dc1.deregister("web")
        await it.until(lambda: not it.service("web"))
        assert await it.watcher.why_missing("web") == "no such service registered"
        assert it.watcher.problems() == []


async def test_subsets_follow_their_filters(federation: Federation, token: str) -> None:
    dc1 = federation.dc1
    subsets = {"v1": {"Filter": "Service.Meta.version == 1"}, "v2": {"Filter": "Service.Meta.version == 2"}, "all": {}}
    entry = {"Kind": "service-resolver", "Name": "api", "ConnectTimeout": "7s", "DefaultSubset": "v1"}

    def found(it: Running) -> dict[str, list[str] | None]:
        service = next((one for one in it.snapshots[-1].services if one.name == "api"), None)
        subsets = service.subsets if service else ()
        return {one.name: one.instances if one.instances is None else [i.id for i in one.instances] for one in subsets}

    async with running(dc1, CONSUL_HTTP_TOKEN=token) as it:
        await dc1.register(web("api", Meta={"version": "1"}))
        await federation.write_config_entry(entry | {"Subsets": subsets})
        mine = ["api-sidecar-proxy"]
        await it.until(lambda: found(it) == {"v1": mine, "v2": [], "all": mine})
        await dc1.register(web("api", Meta={"version": "2"}))
        await it.until(lambda: found(it) == {"v1": [], "v2": mine, "all": mine})
        await federation.delete_config_entry("service-resolver", "api")
        await it.until(lambda: found(it) == {})
        await dc1.deregister("api")


async def test_a_filter_that_does_not_compile_is_a_bad_request(federation: Federation, token: str) -> None:
    async with running(federation.dc1, CONSUL_HTTP_TOKEN=token) as it:
        with pytest.raises(Exception, match="does not understand the filter") as raised:
            await it.client.connect_instances("mesh-gateway", Cursor(), subset_filter="Service.Meta.version ==")
        assert type(raised.value).__name__ == "BadRequestError"


async def test_gateways_of_the_other_datacenter_are_followed(federation: Federation, token: str) -> None:
    dc2 = federation.dc2
    async with running(federation.dc1, CONSUL_HTTP_TOKEN=token) as it:
        await dc2.register(gateway("mesh-gateway", 1))
        await it.until(lambda: [one.port for one in it.gateways("dc2")] == [8701])
        await dc2.deregister("mesh-gateway-1")
        await dc2.register(gateway("mesh-gateway", 2))
        await it.until(lambda: [one.port for one in it.gateways("dc2")] == [8702])
        await dc2.deregister("mesh-gateway-2")
        # Both views have to forget the last one; the federation states are filled by the other datacenter's leader.
        await it.until(lambda: not it.gateways("dc2"), 10)


async def test_a_service_that_the_token_may_not_read_is_missing_alone_and_says_why(federation: Federation) -> None:
    rules = acl_policy() + 'service "secret" { policy = "deny" }\nservice "secret-sidecar-proxy" { policy = "deny" }\n'
    token = await federation.create_policy_token(rules, "no-secret")
    for name in ("secret", "open"):
        await federation.dc1.register(web(name, port=21910 + len(name)))
    async with running(federation.dc1, CONSUL_HTTP_TOKEN=token) as it:
        await it.until(lambda: it.service("open"))
        assert not it.service("secret")
        answer = await it.watcher.why_missing("secret")
        assert answer is not None
        assert answer.startswith('the token may not read service "secret": add service "secret" { policy = "read" }')
        assert await it.watcher.why_missing("open") is None
        assert await it.watcher.why_missing("mesh-gateway") == "registered but without a sidecar or native instance"
    for name in ("secret", "open"):
        await federation.dc1.deregister(name)


async def test_a_token_that_loses_its_rights_keeps_what_is_known(federation: Federation, tmp_path: Path) -> None:
    """Rights are taken by replacing the token in its file, and given back the same way."""
    dc1 = federation.dc1
    full = await federation.create_policy_token(acl_policy(), "full")
    blind = await federation.create_policy_token('service "mesh-gateway" { policy = "write" }', "blind")
    file = tmp_path / "token"
    file.write_text(full)
    await dc1.register(web())
    async with running(dc1, CONSUL_HTTP_TOKEN_FILE=str(file)) as it:
        await it.until(lambda: it.service("web"))
        for other in (blind, "00000000-0000-0000-0000-000000000000"):
            before = it.snapshots[-1]
            file.write_text(f"{other}\n")
            # A change of the catalog wakes the queries, which are then asked again with the other token.
            await dc1.register(web("waker", port=21999))
            with trio.fail_after(10):
                while not it.watcher.problems():
                    await trio.sleep(0.02)
            await dc1.deregister("waker")
            await trio.sleep(1.5)
            assert it.service("web") == next(one.instances for one in before.services if one.name == "web")
            file.write_text(full)
            with trio.fail_after(10):
                while it.watcher.problems():
                    await trio.sleep(0.02)
        await dc1.deregister("web")
        await it.until(lambda: not it.service("web"))


async def test_without_the_rule_to_register_the_message_names_it(federation: Federation) -> None:
    rules = acl_policy().replace(
        'service "mesh-gateway" {\n  policy = "write"', 'service "mesh-gateway" {\n  policy = "read"'
    )
    token = await federation.create_policy_token(rules, "no-write")
    address = ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": federation.dc1.http_addr, "CONSUL_HTTP_TOKEN": token})
    registry = WatchRegistry()
    async with ConsulClient(address) as client, trio.open_nursery() as nursery:
        nursery.start_soon(Registrar(client, registry, GatewayDefinition()).run)
        with trio.fail_after(5):
            while not (errors := [state.error for state in registry.states() if state.error]):
                await trio.sleep(0.01)
        assert 'add service "mesh-gateway" { policy = "write" }' in errors[0]
        nursery.cancel_scope.cancel()


async def test_a_registration_that_somebody_removed_returns(federation: Federation, token: str) -> None:
    async with running(federation.dc1, CONSUL_HTTP_TOKEN=token) as it:
        first = it.registrar.registration
        await federation.dc1.deregister("mesh-gateway")
        with trio.fail_after(FOLLOWS):
            while "mesh-gateway" not in await federation.dc1.get("/v1/agent/services"):
                await trio.sleep(0.02)
        assert it.registrar.registration == first


async def test_an_agent_that_is_killed_takes_nothing_with_it(federation: Federation, token: str) -> None:
    dc1 = federation.dc1
    await dc1.register(web())
    async with running(dc1, CONSUL_HTTP_TOKEN=token) as it:
        await it.until(lambda: it.service("web"))
        before = it.snapshots[-1]
        await dc1.kill()
        with trio.fail_after(5):
            while not it.watcher.problems():
                await trio.sleep(0.02)
        assert "cannot reach Consul at" in it.watcher.problems()[0]
        assert it.snapshots[-1] == before
        await dc1.restart()
        await federation.until_ready()
        await dc1.register(web("after", port=21950))
        # Waits grow while the agent is away, to half a minute at most; one watch that gets through wakes the others.
        await it.until(lambda: it.service("web") and it.service("after"), 35)
        with trio.fail_after(35):
            while "mesh-gateway" not in await dc1.get("/v1/agent/services"):
                await trio.sleep(0.05)
        for name in ("web", "after"):
            await dc1.deregister(name)


@pytest.mark.parametrize(
    ("arguments", "definition"),
    [
        # The default port was 443 before Consul 1.9.
        (["-address", ":8443"], GatewayDefinition()),
        (
            [
                *("-service", "gw", "-proxy-id", "gw-1", "-address", "127.0.0.1:8555"),
                *("-wan-address", "127.0.0.1:9555", "-expose-servers", "-deregister-after-critical", "2m"),
            ],
            GatewayDefinition(
                service="gw",
                proxy_id="gw-1",
                address="127.0.0.1",
                port=8555,
                wan_address="127.0.0.1",
                wan_port=9555,
                expose_servers=True,
                deregister_after_critical=120.0,
            ),
        ),
        (
            ["-address", "127.0.0.1:8555", "-wan-address", "192.0.2.1:443"],
            GatewayDefinition(address="127.0.0.1", port=8555, wan_address="192.0.2.1", wan_port=443),
        ),
        (
            ["-address", ":8555", "-bind-address", "a=127.0.0.1:8555", "-bind-address", "b=127.0.0.1:8556"],
            GatewayDefinition(
                port=8555, bind_addresses=(BindAddress("a", "127.0.0.1", 8555), BindAddress("b", "127.0.0.1", 8556))
            ),
        ),
    ],
)
async def test_the_registration_is_field_by_field_that_of_consuls_own_command(
    federation: Federation, arguments: list[str], definition: GatewayDefinition
) -> None:
    dc1 = federation.dc1
    theirs = await _sent_by_consul(dc1, arguments)
    ours = json.loads(json.dumps(definition.payload()))
    # What the agent assumes where it is not sent, and the state in which the check begins (see registration.py).
    assert ours.pop("Weights") == {"Passing": 1, "Warning": 1}
    assert ours["Check"].pop("Status") == "passing"
    assert _filled(ours) == _filled(theirs)

    held = []
    for body in (theirs, definition.payload()):
        await dc1.register(body)
        service = await dc1.get(f"/v1/agent/service/{definition.id}")
        checks = await dc1.get("/v1/agent/checks")
        check = next(one for one in checks.values() if one["ServiceID"] == definition.id)
        held.append((service, {key: value for key, value in check.items() if key not in ("Status", "Output")}))
        await dc1.deregister(definition.id)
    assert held[0] == held[1]


async def _sent_by_consul(consul: Consul, arguments: list[str]) -> Any:
    """What `consul connect envoy -gateway=mesh -register` sends to an agent."""
    async with fake_consul() as double:
        double.set("/v1/agent/self", {"Config": {"Datacenter": "dc1"}, "DebugConfig": {"GRPCPort": 8502}}, index=None)
        double.set("/v1/agent/service/register", b"", index=None)
        command = [consul.binary, "connect", "envoy", "-gateway=mesh", "-register", "-bootstrap"]
        where = ["-http-addr", f"127.0.0.1:{double.port}", "-grpc-addr", "127.0.0.1:8502"]
        # It fails later, at what the double does not have; the registration has been sent by then.
        await trio.run_process([*command, *where, *arguments], capture_stdout=True, capture_stderr=True, check=False)
        return json.loads(double.requests("/v1/agent/service/register")[0].body)


def _filled(body: Any) -> Any:
    """Without what is empty, which Go writes and we do not."""
    if isinstance(body, dict):
        return {key: _filled(value) for key, value in body.items() if value not in (None, {}, [], "")}
    return body


async def test_a_registration_with_a_check_of_another_id_starts_as_passing(federation: Federation, token: str) -> None:
    dc1 = federation.dc1
    # Nobody listens there, so the check is critical once it has run.
    payload = GatewayDefinition(service="mesh-gateway", proxy_id="again", address="127.0.0.1", port=1).payload()
    address = ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": dc1.http_addr, "CONSUL_HTTP_TOKEN": token})

    async def states() -> dict[str, str]:
        checks = await dc1.get("/v1/agent/checks")
        return {name: check["Status"] for name, check in checks.items() if check["ServiceID"] == "again"}

    async with ConsulClient(address) as client:
        await client.register(payload)
        assert await states() == {"service:again": "passing"}
        with trio.fail_after(60):
            while await states() != {"service:again": "critical"}:
                await trio.sleep(0.1)
        await client.register(payload)
        assert await states() == {"service:again": "critical"}
        await client.register({**payload, "Check": {**payload["Check"], "CheckID": "service:again:2"}})
        assert await states() == {"service:again": "critical", "service:again:2": "passing"}
        await client.deregister_check("service:again")
        assert await states() == {"service:again:2": "passing"}
        await client.deregister("again")
        assert await states() == {}


async def test_what_a_restored_snapshot_took_back_is_gone_at_once(federation: Federation, token: str) -> None:
    dc1 = federation.dc1
    at = {"Node": "elsewhere", "Address": "192.0.2.1"}
    headers = {"X-Consul-Token": dc1.master_token}

    def row(port: int) -> dict[str, Any]:
        return at | {"Service": {"Service": "kept", "ID": "kept", "Port": port, "Connect": {"Native": True}}}

    async with httpx.AsyncClient(base_url=f"http://{dc1.http_addr}", headers=headers) as admin:
        # Queries that end in a few seconds, as those of a young process do, would be asked anew soon in any case.
        async with running(dc1, first_wait=LONGEST_WAIT, CONSUL_HTTP_TOKEN=token) as it:
            await dc1.put("/v1/catalog/register", row(1))
            await it.until(lambda: [one.port for one in it.service("kept")] == [1])
            snapshot = (await admin.get("/v1/snapshot")).content
            await dc1.put("/v1/catalog/register", row(2))
            await it.until(lambda: [one.port for one in it.service("kept")] == [2])
            # Held for longer than a proxy that holds nothing would.
            await trio.sleep(1.5)
            await admin.put("/v1/snapshot", content=snapshot)
            await it.until(lambda: [one.port for one in it.service("kept")] == [1])
        await dc1.put("/v1/catalog/deregister", at)


async def test_a_token_that_sees_little_works_for_that(federation: Federation) -> None:
    rules = """
        node_prefix "" { policy = "read" }
        agent_prefix "" { policy = "read" }
        service "mesh-gateway" { policy = "write" }
        service "web" { policy = "read" }
        service "web-sidecar-proxy" { policy = "read" }
    """
    narrow = await federation.create_policy_token(rules, "narrow")
    async with running(federation.dc1, CONSUL_HTTP_TOKEN=narrow) as it:
        await federation.dc1.register(web())
        await it.until(lambda: it.service("web"))
        await federation.dc1.deregister("web")
        await it.until(lambda: not it.service("web"))
        await federation.dc2.register(gateway("mesh-gateway", 7))
        await it.until(lambda: it.gateways("dc2"), 35)
        await federation.dc2.deregister("mesh-gateway-7")
        # Consul does not show this token its own servers there, by which nodes are seen as a rule.
        await it.until(lambda: not it.gateways("dc2"), 10)
