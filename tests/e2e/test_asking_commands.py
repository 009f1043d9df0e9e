"""`meshgate doctor`, `probe` and `modes` against two real datacenters with real gateways and sidecars."""

import json
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from meshgate.adapters.consul.policy import acl_policy
from meshgate.core.prerequisites import gives_keys_away
from tests.harness.agent import Consul
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.native import native_service
from tests.harness.ports import free_ports
from tests.harness.process import child_environment
from tests.harness.sidecar import sidecar_for
from tests.versions import PEERING

from .world import World, until_equal

pytestmark = pytest.mark.consul


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


async def meshgate(consul: Consul, token: str, *arguments: str) -> Outcome:
    done = await trio.run_process(
        [sys.executable, "-m", "meshgate", *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=child_environment(CONSUL_HTTP_ADDR=consul.http_addr, CONSUL_HTTP_TOKEN=token),
        cwd=consul.folder,
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def flags_of(gateway: GatewayProcess) -> list[str]:
    address = "{}:{}".format(*gateway.address)
    return [f"--address={address}", f"--wan-address={address}", f"--admin-bind={gateway.admin}"]


def checks(outcome: Outcome) -> dict[str, dict[str, str]]:
    return {check["check"]: check for check in outcome.data["checks"]}


def failed(outcome: Outcome) -> set[str]:
    return {name for name, check in checks(outcome).items() if check["status"] == "failed"}


async def probe(consul: Consul, token: str, *arguments: str) -> Outcome:
    return await meshgate(consul, token, "probe", *arguments, "--yes", "--json")


# --- doctor ----------------------------------------------------------------------------------------------------------


async def test_doctor_finds_a_running_gateway_in_order(world: World) -> None:
    async with world.gateways() as (local, remote):
        dc1 = world.federation.dc1
        outcome = await meshgate(dc1, world.token, "doctor", "--json", *flags_of(local))
        found = checks(outcome)
        assert failed(outcome) == set(), outcome.out
        assert outcome.code == 0
        assert outcome.data["ok"] is True
        for name in (
            "consul version",
            "connect",
            "CA roots",
            "central config",
            "token: service:write",
            "token: service:read",
            "token: node:read",
            "token: agent:read",
            "primary of dc2",
            "token in dc2",
            "ACL replication to dc2",
            "gateways of dc2",
            "LAN address",
            "port lan",
            "admin port",
            "WAN address answers",
            "clock",
            "agent connections",
        ):
            assert found[name]["status"] == "ok", found[name]
        assert world.federation.trust_domain in found["connect"]["detail"]
        assert str(remote.address[1]) in found["gateways of dc2"]["detail"]
        assert "a meshgate is running" in found["port lan"]["detail"]
        # The demo's agents have no gRPC port, and everything is on one machine.
        assert {name for name, check in found.items() if check["status"] == "warning"} <= {
            "gRPC port",
            "WAN address",
            "descriptor limit",
            "keys of services",
        }
        given_away = gives_keys_away(".".join(map(str, dc1.version)))
        assert ("keys of services" in found) == given_away


async def test_doctor_for_people_fits_and_says_what_to_do(world: World) -> None:
    outcome = await meshgate(world.federation.dc1, world.token, "doctor")
    lines = outcome.out.splitlines()
    assert "ok      token: service:write: register mesh-gateway" in lines
    assert "warning gRPC port: off" in lines
    assert lines[lines.index("warning gRPC port: off") + 1].startswith("        -> set ports { grpc = 8502 }")
    assert lines[-1].endswith(" failed")
    assert "\x1b" not in outcome.out
    assert max(map(len, lines)) < 120


@pytest.mark.parametrize(
    ("rule", "check", "advice"),
    [
        ('service "mesh-gateway"', "token: service:write", 'add service "mesh-gateway" { policy = "write" }'),
        ('service_prefix ""', "token: service:read", 'add service_prefix "" { policy = "read" }'),
        ('node_prefix ""', "token: node:read", 'add node_prefix "" { policy = "read" }'),
        ('agent_prefix ""', "token: agent:read", 'add agent_prefix "" { policy = "read" }'),
    ],
)
async def test_doctor_names_the_one_rule_that_is_missing(world: World, rule: str, check: str, advice: str) -> None:
    rules = acl_policy().replace(rule, f'{rule.split(maxsplit=1)[0]} "another"')
    token = await world.federation.create_policy_token(rules, f"without-{check.replace(': ', '-').replace(':', '-')}")
    outcome = await meshgate(world.federation.dc1, token, "doctor", "--json")
    rights = {name: found for name, found in checks(outcome).items() if name.startswith("token: ")}
    assert advice in rights[check]["advice"]
    assert {name for name, found in rights.items() if found["status"] != "ok"} == {check}


async def test_doctor_takes_a_narrower_rule_for_nodes_for_no_failure(world: World) -> None:
    rules = acl_policy().replace('node_prefix ""', 'node "dc1-server"')
    token = await world.federation.create_policy_token(rules, "narrow")
    outcome = await meshgate(world.federation.dc1, token, "doctor", "--json")
    found = checks(outcome)["token: node:read"]
    assert (found["status"], "or not all of them" in found["detail"]) == ("warning", True)


async def test_doctor_tells_that_a_local_token_is_unknown_elsewhere(world: World) -> None:
    dc1 = world.federation.dc1
    made = await dc1.put("/v1/acl/token", {"Policies": [{"Name": "mesh-gateway"}], "Local": True})
    outcome = await meshgate(dc1, made["SecretID"], "doctor", "--json")
    found = checks(outcome)["token in dc2"]
    assert found["status"] == "failed"
    assert "global token" in found["advice"]
    assert outcome.code == 1


async def test_doctor_finds_a_gateway_elsewhere_that_cannot_be_reached(world: World) -> None:
    dc2, port = world.federation.dc2, free_ports(1)[0]
    await dc2.register(
        {"ID": "dead", "Name": "mesh-gateway", "Kind": "mesh-gateway", "Address": "127.0.0.1", "Port": port}
    )
    try:

        async def shown() -> str:
            outcome = await meshgate(world.federation.dc1, world.token, "doctor", "--json")
            return str(checks(outcome)["gateways of dc2"])

        async def refused() -> bool:
            return f"dead at 127.0.0.1:{port}: Connection refused" in await shown()

        await until_equal("the dead gateway", refused, True, seconds=20)
    finally:
        await dc2.deregister("dead")


async def test_doctor_says_that_another_process_has_the_port(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = await meshgate(
            world.federation.dc1, world.token, "doctor", "--json", f"--address=127.0.0.1:{port}", "--admin-bind=off"
        )
        assert failed(outcome) == {"port default"}
        assert "taken by another process" in checks(outcome)["port default"]["detail"]
        assert outcome.code == 1


async def test_doctor_with_an_unknown_token_says_so_and_goes_on(world: World) -> None:
    token = "00000000-dead-beef-0000-000000000000"
    outcome = await meshgate(world.federation.dc1, token, "doctor", "--json")
    found = checks(outcome)
    assert "does not know the token" in found["token"]["detail"]
    assert found["connect"]["status"] == "ok"
    assert outcome.code == 1
    assert token not in outcome.out + outcome.err


async def test_doctor_without_an_agent_examines_the_machine_alone(world: World) -> None:
    port = free_ports(1)[0]
    outcome = await meshgate(world.federation.dc1, "", "doctor", f"--http-addr=127.0.0.1:{port}", "--json")
    found = checks(outcome)
    assert (outcome.code, outcome.err) == (1, "")
    assert found["agent"]["status"] == "failed"
    assert found["agent"]["detail"].startswith(f"cannot reach Consul at http://127.0.0.1:{port}")
    assert {"port default", "descriptor limit"} <= found.keys()
    assert found["LAN address"]["status"] == "warning"
    assert "which does not answer" in found["LAN address"]["detail"]
    assert {"datacenters", "agent connections", "clock"}.isdisjoint(found)


async def test_doctor_fails_for_a_token_that_sees_no_service(world: World) -> None:
    rules = acl_policy().replace('service_prefix ""', 'service "nosuch"')
    token = await world.federation.create_policy_token(rules, "sees-nothing")
    outcome = await meshgate(world.federation.dc1, token, "doctor", "--json")
    found = checks(outcome)["token: service:read"]
    assert (outcome.code, found["status"]) == (1, "failed")
    assert "sees no service of dc1" in found["detail"]
    assert found["advice"] == 'add service_prefix "" { policy = "read" } to its policy'


@pytest.mark.since_consul(*PEERING)
async def test_doctor_names_the_right_to_peerings_and_does_not_wait_for_consuls_refusal(world: World) -> None:
    rules = acl_policy().replace('peering = "read"', "")
    token = await world.federation.create_policy_token(rules, "no-peerings")
    outcome = await meshgate(world.federation.dc1, token, "doctor", "--json")
    found = checks(outcome)["cluster peering"]
    assert (found["status"], found["advice"]) == ("warning", 'add peering = "read" to its policy')
    assert "cannot reach" not in outcome.out


@pytest.mark.parametrize("flags", [(), ("--json",)])
async def test_doctor_without_a_token_says_that_before_all_else(world: World, flags: tuple[str, ...]) -> None:
    outcome = await meshgate(world.federation.dc1, "", "doctor", *flags)
    assert outcome.code == 1
    detail = "no token was given, so what follows is what anybody may do"
    advice = "use --token-file (CONSUL_HTTP_TOKEN_FILE) or --token (CONSUL_HTTP_TOKEN)"
    if flags:
        assert outcome.data["checks"][0] == {"check": "token", "status": "failed", "detail": detail, "advice": advice}
    else:
        lines = outcome.out.splitlines()
        assert lines[:2] == [f"failed  token: {detail}", f"        -> {advice}"]
        assert max(map(len, lines)) < 120


@pytest.mark.parametrize("command", [("modes",), ("probe", "web")], ids=["modes", "probe"])
async def test_command_without_a_token_says_so_in_one_line_and_names_no_rule(
    world: World, command: tuple[str, ...]
) -> None:
    outcome = await meshgate(world.federation.dc1, "", *command)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("meshgate: no token was given, and Consul refuses to answer without: use --token-f")
    assert outcome.err.count("\n") == 1
    assert "policy" not in outcome.err


# --- policy ----------------------------------------------------------------------------------------------------------


async def test_policy_says_how_it_is_saved_and_applied(world: World, consul_binary: str, tmp_path: Path) -> None:
    """The commands in its comment are run as they stand, with `meshgate` and `consul` on the PATH."""
    dc1 = world.federation.dc1
    printed = (await meshgate(dc1, "", "policy", "--service=edge.1")).out
    commands = [line[1:].strip() for line in printed.splitlines() if line.startswith("#   ")]
    assert commands[0] == "meshgate policy --service edge.1 > edge-1.hcl"
    (tmp_path / "consul").symlink_to(consul_binary)
    (tmp_path / "meshgate").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m meshgate "$@"\n')
    (tmp_path / "meshgate").chmod(0o755)
    environment = child_environment(CONSUL_HTTP_ADDR=dc1.http_addr, CONSUL_HTTP_TOKEN=dc1.master_token)
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    shell = ["/bin/sh", "-ec", "\n".join(commands)]
    done = await trio.run_process(shell, capture_stdout=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "edge-1.hcl").read_text() == printed
    (token,) = [line.split()[1] for line in done.stdout.decode().splitlines() if line.startswith("SecretID")]
    outcome = await meshgate(dc1, token, "doctor", "--service=edge.1", "--json")
    assert {name for name in failed(outcome) if name.startswith("token:")} == set()


def test_policy_is_saved_and_applied_as_the_pages_say() -> None:
    commands = [line[1:].strip() for line in acl_policy().splitlines() if line.startswith("#   ")]
    root = Path(__file__).parents[2]
    for page in ("README.md", "docs/start.md"):
        lines = [line.strip() for line in (root / page).read_text().splitlines()]
        assert [line for line in lines if line in commands] == commands


# --- probe -----------------------------------------------------------------------------------------------------------


async def shop_token(world: World) -> str:
    rules = acl_policy() + '\nservice "shop" { policy = "write" }\nservice "stranger" { policy = "write" }\n'
    return await world.federation.create_policy_token(rules, f"prober-{free_ports(1)[0]}")


@pytest.mark.parametrize("via", ["lan", "wan", "address"])
async def test_probe_meets_the_service_through_the_gateway_of_its_choice(world: World, via: str) -> None:
    token = await shop_token(world)
    async with sidecar_for(world.federation.dc2, "web", named=True), world.gateways() as (local, remote):
        place = "{}:{}".format(*remote.address) if via == "address" else via
        outcome = await probe(world.federation.dc1, token, "web", "--dc=dc2", "--as=shop", f"--via={place}")
        assert outcome.code == 0, outcome.out
        found = outcome.data
        assert found["met"]["spiffe_id"] == world.spiffe()
        assert found["met"]["tls_version"] == "TLSv1.3"
        assert found["caller"] == world.spiffe("shop", "dc1")
        assert found["sni"] == world.sni()
        assert found["address"] == "{}:{}".format(*(local if via == "lan" else remote).address)
        steps = {step["step"]: step for step in found["steps"]}
        assert all(step["ok"] for step in steps.values())
        assert "verified against the CA roots" in steps["identity"]["detail"]
        assert {name for name, step in steps.items() if step["seconds"]} == {"leaf", "connect", "handshake", "consent"}
        assert steps["consent"]["detail"] == "the service spoke first"
        assert await local.counter("meshgate_connections_total") == (via == "lan")
        assert await remote.counter("meshgate_connections_total", kind="service") == 1
        people = await meshgate(world.federation.dc1, token, "probe", "web", "-dc=dc2", "--as=shop", "--yes")
        assert "ok: web answers and accepts the caller" in people.out
        assert "PRIVATE KEY" not in outcome.out + people.out
        assert list(world.federation.folder.rglob("*.pem")) == []


async def test_probe_shows_that_an_intention_denies_the_caller(world: World) -> None:
    token = await shop_token(world)
    async with sidecar_for(world.federation.dc2, "web"), world.gateways():
        outcome = await probe(world.federation.dc1, token, "web", "--dc=dc2", "--as=stranger")
        assert outcome.code == 1
        assert outcome.data["met"]["spiffe_id"] == world.spiffe()
        failure = outcome.data["failure"]
        assert (failure["step"], failure["alert"]) == ("consent", "bad_certificate")
        assert outcome.data["verdict"] == "denied"
        assert failure["meaning"] == "Consul's intentions deny the call"


async def test_probe_shows_a_destination_that_hangs_up_without_an_alert(world: World) -> None:
    token = await shop_token(world)
    async with native_service(world.federation.dc2, "web", world.federation.folder), world.gateways():
        outcome = await probe(world.federation.dc1, token, "web", "--dc=dc2", "--as=stranger")
        failure = outcome.data["failure"]
        assert (outcome.code, failure["step"], failure["alert"]) == (1, "consent", None)
        assert outcome.data["verdict"] == "denied"
        assert failure["meaning"] == "Consul's intentions deny the call"
        assert (await probe(world.federation.dc1, token, "web", "--dc=dc2", "--as=shop")).code == 0


async def test_probe_names_the_alert_for_an_unknown_service_and_what_it_means(world: World) -> None:
    async with world.gateways():
        outcome = await meshgate(world.federation.dc1, world.token, "probe", "nosuch", "--dc=dc2", "--yes")
        assert outcome.code == 1
        assert "unreachable (at handshake): TLS alert unrecognized_name" in outcome.out
        assert "the gateway has no route for this name" in outcome.out


async def test_probe_shows_an_endpoint_that_the_gateway_cannot_reach(world: World) -> None:
    dc2 = world.federation.dc2
    async with native_service(dc2, "ghost", world.federation.folder) as ghost, world.gateways() as (_, remote):
        real = ghost.port
        ghost.port = free_ports(1)[0]
        await dc2.register(
            {
                "ID": "ghost",
                "Name": "ghost",
                "Address": "127.0.0.1",
                "Port": ghost.port,
                "Connect": {"Native": True},
            }
        )
        await until_equal("the wrong port", partial(remote.endpoints, world.sni("ghost")), {ghost.port: True}, 20)
        outcome = await probe(world.federation.dc1, world.token, "ghost", "--dc=dc2")
        assert outcome.data["failure"]["alert"] == "internal_error"
        assert "could not reach any endpoint, or none is healthy" in outcome.data["failure"]["meaning"]
        assert real != ghost.port


async def test_probe_without_the_right_to_the_identity_says_which_rule_is_missing(world: World) -> None:
    outcome = await meshgate(world.federation.dc1, world.token, "probe", "web", "--dc=dc2", "--as=web", "--yes")
    assert outcome.code == 1
    assert "not called (at leaf): the token may not have the certificate of web" in outcome.out
    assert outcome.out.count("certificate of web") == 1
    assert "register" not in outcome.out
    assert 'add service "web" { policy = "write" }' in outcome.out
    assert "--as" in outcome.out


async def test_probe_shows_that_nothing_listens_at_the_gateway(world: World) -> None:
    outcome = await probe(world.federation.dc1, world.token, "web", f"--via=127.0.0.1:{free_ports(1)[0]}")
    assert outcome.data["failure"] == {
        "step": "connect",
        "verdict": "unreachable",
        "alert": None,
        "detail": "Connection refused",
        "meaning": "nobody listens there, or a firewall is in between",
    }


async def test_probe_without_any_gateway_says_so(world: World) -> None:
    outcome = await probe(world.federation.dc1, world.token, "web", "--dc=dc2")
    assert outcome.data["failure"]["step"] == "gateway"
    assert "dc1 has no mesh gateway" in outcome.data["failure"]["detail"]


# --- modes -----------------------------------------------------------------------------------------------------------


def upstreams(outcome: Outcome) -> list[dict[str, Any]]:
    (sidecar,) = outcome.data["sidecars"]
    found: list[dict[str, Any]] = sidecar["upstreams"]
    return found


async def test_modes_follow_consuls_precedence_and_show_the_path(world: World) -> None:
    federation, dc1 = world.federation, world.federation.dc1
    proxy = {
        "Upstreams": [
            {"DestinationName": "web", "Datacenter": "dc2", "LocalBindPort": 9191},
            {"DestinationName": "cart", "Datacenter": "dc2", "LocalBindPort": 9192, "MeshGateway": {"Mode": "remote"}},
            {"DestinationName": "web", "LocalBindPort": 9193, "MeshGateway": {"Mode": "local"}},
        ]
    }

    async def register(**extra: Any) -> None:
        sidecar = {"Port": 21000, "Proxy": proxy | extra}
        await dc1.register({"ID": "shop", "Name": "shop", "Port": 9, "Connect": {"SidecarService": sidecar}})

    async def first() -> tuple[str, str | None]:
        found = upstreams(await meshgate(dc1, world.token, "modes", "shop", "--json"))
        return found[0]["mode"], found[0]["set_by"]

    async with sidecar_for(federation.dc2, "web") as web, world.gateways() as (local, remote):
        try:
            await register()
            assert await first() == ("none", None)
            await federation.write_config_entry(
                {"Kind": "proxy-defaults", "Name": "global", "MeshGateway": {"Mode": "local"}}
            )
            await until_equal("proxy-defaults", first, ("local", "proxy-defaults"), seconds=20)
            gateway_1, gateway_2 = [f"127.0.0.1:{gateway.address[1]}" for gateway in (local, remote)]
            sidecar = f"127.0.0.1:{web.port}"
            by_default, by_upstream, nearby = upstreams(await meshgate(dc1, world.token, "modes", "shop", "--json"))
            assert by_default["targets"][0]["sni"] == world.sni()
            assert by_default["targets"][0]["path"] == [
                {"to": "local_gateway", "addresses": [gateway_1]},
                {"to": "remote_gateway", "addresses": [gateway_2]},
                {"to": "sidecar", "addresses": [sidecar]},
            ]
            assert (by_upstream["mode"], by_upstream["set_by"]) == ("remote", "registration Proxy.Upstreams")
            assert by_upstream["overruled"] == [{"place": "proxy-defaults", "mode": "local"}]
            assert by_upstream["targets"][0]["path"][0] == {"to": "remote_gateway", "addresses": [gateway_2]}
            assert nearby["targets"][0]["path"] == [{"to": "sidecar", "addresses": []}]
            await federation.write_config_entry(
                {"Kind": "service-defaults", "Name": "shop", "Protocol": "tcp", "MeshGateway": {"Mode": "none"}}
            )
            await until_equal("service-defaults", first, ("none", "service-defaults"), seconds=20)
            await register(MeshGateway={"Mode": "remote"})
            await until_equal("the registration", first, ("remote", "registration Proxy.MeshGateway"), seconds=20)
            people = await meshgate(dc1, world.token, "modes")
            assert "  web in dc2, at 127.0.0.1:9191\n    mode   remote, set by registration Proxy.MeshG" in people.out
        finally:
            await dc1.deregister("shop")
            await federation.delete_config_entry("proxy-defaults", "global")
            await federation.delete_config_entry("service-defaults", "shop")


def defaults(mode: str = "", *, everybody: str = "", web: str = "", name: str = "shop") -> dict[str, Any]:
    """A service-defaults with a mode of its own, for all of its upstreams, and for its upstream web."""
    entry: dict[str, Any] = {"Kind": "service-defaults", "Name": name, "Protocol": "tcp"}
    upstream: dict[str, Any] = {"Defaults": {"MeshGateway": {"Mode": everybody}}} if everybody else {}
    if web:
        upstream["Overrides"] = [{"Name": "web", "MeshGateway": {"Mode": web}}]
    return (
        entry | ({"MeshGateway": {"Mode": mode}} if mode else {}) | ({"UpstreamConfig": upstream} if upstream else {})
    )


def for_all(mode: str) -> dict[str, Any]:
    return {"Kind": "proxy-defaults", "Name": "global", "MeshGateway": {"Mode": mode}}


WAYS: list[tuple[list[dict[str, Any]], str, str, str | None, list[str]]] = [
    # Entries, the mode of the registration, that of its upstream; who sets `local`, and who is overruled.
    ([for_all("local")], "", "", "proxy-defaults", []),
    ([defaults("local")], "", "", "service-defaults", []),
    ([defaults("local", name="web")], "", "", "service-defaults of the destination", []),
    ([], "local", "", "registration Proxy.MeshGateway", []),
    ([], "", "local", "registration Proxy.Upstreams", []),
    (
        [defaults("remote", name="web"), for_all("local")],
        "",
        "",
        "proxy-defaults",
        ["service-defaults of the destination"],
    ),
    ([for_all("remote"), defaults("local")], "", "", "service-defaults", ["proxy-defaults"]),
    ([for_all("remote")], "local", "", "registration Proxy.MeshGateway", ["proxy-defaults"]),
    ([defaults(everybody="local")], "", "", "service-defaults UpstreamConfig.Defaults", []),
    ([defaults(web="local")], "", "", "service-defaults UpstreamConfig.Overrides", []),
    (
        [defaults("remote", everybody="local")],
        "",
        "",
        "service-defaults UpstreamConfig.Defaults",
        ["service-defaults"],
    ),
    (
        [defaults(everybody="remote")],
        "local",
        "",
        "registration Proxy.MeshGateway",
        ["service-defaults UpstreamConfig.Defaults"],
    ),
    (
        [defaults(web="local")],
        "remote",
        "",
        "service-defaults UpstreamConfig.Overrides",
        ["registration Proxy.MeshGateway"],
    ),
    (
        [defaults(web="remote")],
        "",
        "local",
        "registration Proxy.Upstreams",
        ["service-defaults UpstreamConfig.Overrides"],
    ),
]


async def test_modes_know_each_way_to_set_one(world: World) -> None:
    """And so does Consul: the mode that the agent merges into the registration for the sidecar is the same."""
    federation, dc1 = world.federation, world.federation.dc1
    known = [way for way in WAYS if dc1.version >= (1, 10, 0) or not any("UpstreamConfig" in it for it in way[0])]
    assert len(known) == (14 if dc1.version >= (1, 10, 0) else 8)
    for entries, registered, upstream, setter, overruled in known:
        target = {
            "DestinationName": "web",
            "Datacenter": "dc2",
            "LocalBindPort": 9191,
            "MeshGateway": {"Mode": upstream},
        }
        proxy = {"Upstreams": [target], "MeshGateway": {"Mode": registered}}

        async def told() -> tuple[str, str | None, list[str]]:
            (found,) = upstreams(await meshgate(dc1, world.token, "modes", "shop", "--json"))
            return found["mode"], found["set_by"], [each["place"] for each in found["overruled"]]

        async def merged() -> str:
            sidecar = await dc1.get("/v1/agent/service/shop-sidecar-proxy")
            return str((sidecar["Proxy"]["Upstreams"][0].get("MeshGateway") or {}).get("Mode", ""))

        try:
            for entry in entries:
                await federation.write_config_entry(entry)
            sidecar = {"Port": 21000, "Proxy": proxy}
            await dc1.register({"ID": "shop", "Name": "shop", "Port": 9, "Connect": {"SidecarService": sidecar}})
            by_destination = setter == "service-defaults of the destination"
            # The mode of the destination comes by the discovery chain instead.
            await until_equal(f"{setter} in the agent", merged, "" if by_destination else "local", seconds=20)
            await until_equal(f"modes of {setter}", told, ("local", setter, overruled), seconds=20)
        finally:
            await dc1.deregister("shop")
            for entry in entries:
                await federation.delete_config_entry(entry["Kind"], entry["Name"])


async def test_modes_show_both_targets_of_a_failover_and_no_fault_in_the_near_one(world: World) -> None:
    federation, dc1 = world.federation, world.federation.dc1
    failover = {"Kind": "service-resolver", "Name": "web", "Failover": {"*": {"Datacenters": ["dc2"]}}}
    target = {"DestinationName": "web", "LocalBindPort": 9191, "MeshGateway": {"Mode": "local"}}
    sidecar = {"Port": 21000, "Proxy": {"Upstreams": [target]}}
    async with (
        sidecar_for(dc1, "web") as near,
        sidecar_for(federation.dc2, "web") as far,
        world.gateways() as (here, there),
    ):
        try:
            await federation.write_config_entry(failover)
            await dc1.register({"ID": "shop", "Name": "shop", "Port": 9, "Connect": {"SidecarService": sidecar}})
            outcome = await meshgate(dc1, world.token, "modes", "shop", "--json")
            (found,) = upstreams(outcome)
            paths = {each["datacenter"]: each["path"] for each in found["targets"]}
            assert paths == {
                "dc1": [{"to": "sidecar", "addresses": [f"127.0.0.1:{near.port}"]}],
                "dc2": [
                    {"to": "local_gateway", "addresses": [f"127.0.0.1:{here.address[1]}"]},
                    {"to": "remote_gateway", "addresses": [f"127.0.0.1:{there.address[1]}"]},
                    {"to": "sidecar", "addresses": [f"127.0.0.1:{far.port}"]},
                ],
            }
            assert outcome.data["sound"], (found["notes"], [each["problems"] for each in found["targets"]])
        finally:
            await dc1.deregister("shop")
            await federation.delete_config_entry("service-resolver", "web")


async def test_modes_follow_a_redirect_and_flag_what_cannot_work(world: World) -> None:
    """Without any gateway, and through a service-resolver that sends callers to the other datacenter."""
    federation, dc1 = world.federation, world.federation.dc1
    redirect = {"Kind": "service-resolver", "Name": "cart", "Redirect": {"Service": "basket", "Datacenter": "dc2"}}
    await federation.write_config_entry(redirect)
    proxy = {"Upstreams": [{"DestinationName": "cart", "LocalBindPort": 9191}], "MeshGateway": {"Mode": "local"}}
    sidecar = {"Port": 21000, "Proxy": proxy}
    await dc1.register({"ID": "shop", "Name": "shop", "Port": 9, "Connect": {"SidecarService": sidecar}})
    try:
        outcome = await meshgate(dc1, world.token, "modes", "--json")
        assert outcome.code == 0, outcome.err
        (cart,) = upstreams(outcome)
        (target,) = cart["targets"]
        assert (target["service"], target["datacenter"]) == ("basket", "dc2")
        assert target["sni"] == world.sni("basket")
        assert any("mode local, but dc1 has no healthy mesh gateway" in problem for problem in target["problems"])
        assert any("dc2 has no instance of basket" in problem for problem in target["problems"])
        assert outcome.data["sound"] is False
    finally:
        await dc1.deregister("shop")
        await federation.delete_config_entry("service-resolver", "cart")


async def test_modes_of_an_agent_without_sidecars(world: World) -> None:
    outcome = await meshgate(world.federation.dc2, world.token, "modes")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == "the agent holds no such sidecar that the token may see\n"


async def test_whatif_tells_what_dc2_and_the_only_gateway_carry(world: World) -> None:
    """A dc2 without its one gateway, the node that runs it all, and a token that ends: all told by the real Consul."""
    dc1 = world.federation.dc1
    async with native_service(dc1, "orders", world.federation.folder), world.gateways() as (local, _):

        async def single() -> set[str]:
            return {row["destination"] for row in (await local.ask("/whatif"))["single"]["rows"]}

        async def told(*arguments: str) -> Outcome:
            return await meshgate(dc1, "", "whatif", f"--admin-bind={local.admin}", *arguments)

        await until_equal("one endpoint each", partial(_has, single, {"dc2", "orders"}), wanted=True, seconds=20)
        answer = (await told("--json")).data
        assert [(it["name"], it["cut"]["total"]) for it in answer["gone"]] == [("dc2", 1)]
        assert answer["gateway"]["others"] == {"total": 0, "healthy": 0}
        assert answer["gateway"]["cut"] == answer["destinations"] - answer["broken"]["total"]
        ends = {it["what"]: it for it in answer["ends"]}
        assert all(it["known"] for it in ends.values())
        assert ends["CA root"]["seconds"] > 0
        assert all(it["limit"] for it in answer["limits"])

        node = next(it["node"] for it in answer["nodes"] if it["datacenter"] == "dc1")
        outcome = await told(f"--node={node}")
        assert (outcome.code, outcome.err) == (0, "")
        assert "    orders (service)\n" in outcome.out.partition(" cut:")[2]
        unknown = await told("--dc=dc9")
        assert (unknown.code, unknown.out) == (1, "")
        assert "no gateway of datacenter dc9 is known here" in unknown.err

        asked = {"Policies": [{"Name": "mesh-gateway"}], "Local": True, "ExpirationTTL": "1h"}
        token = (await dc1.put("/v1/acl/token", asked))["SecretID"]
        async with gateway_beside(dc1, token, instance="mesh-gateway-2") as second:
            ending = {it["what"]: it for it in (await second.ask("/whatif"))["ends"]}["ACL token"]
            assert ending["near"]
            assert 0 < ending["seconds"] <= 3600

            async def others() -> object:
                return (await local.ask("/whatif"))["gateway"]

            healthy = {"streams": 0, "others": {"total": 1, "healthy": 1}, "cut": 0}
            await until_equal("the second gateway", others, healthy, seconds=20)


async def _has(read: Callable[[], Awaitable[set[str]]], wanted: set[str]) -> bool:
    return wanted <= await read()
