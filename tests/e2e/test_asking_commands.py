"""`meshgate doctor`, `probe`, `modes` and `policy` against two real datacenters in which no gateway runs."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from meshgate.adapters.consul.policy import acl_policy
from tests.harness.ports import free_ports
from tests.harness.process import child_environment
from tests.versions import PEERING

from .asking import checks, failed, meshgate, probe, upstreams
from .world import World, until_equal

pytestmark = pytest.mark.consul


# --- doctor ----------------------------------------------------------------------------------------------------------


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


async def test_probe_without_the_right_to_the_identity_says_which_rule_is_missing(world: World) -> None:
    # Of a name that nobody has asked for: later agents give leaves that they have in their cache to any token.
    outcome = await meshgate(world.federation.dc1, world.token, "probe", "web", "--dc=dc2", "--as=unasked", "--yes")
    assert outcome.code == 1
    assert "not called (at leaf): the token may not have the certificate of unasked" in outcome.out
    assert outcome.out.count("certificate of unasked") == 1
    assert "register" not in outcome.out
    assert 'add service "unasked" { policy = "write" }' in outcome.out
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
    dc1 = world.federation.dc1
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
            # The agents of dc1 are asked; dc2 has them seconds later.
            for entry in entries:
                await dc1.put("/v1/config", entry)
            sidecar = {"Port": 21000, "Proxy": proxy}
            await dc1.register({"ID": "shop", "Name": "shop", "Port": 9, "Connect": {"SidecarService": sidecar}})
            by_destination = setter == "service-defaults of the destination"
            # The mode of the destination comes by the discovery chain instead.
            await until_equal(f"{setter} in the agent", merged, "" if by_destination else "local", seconds=20)
            await until_equal(f"modes of {setter}", told, ("local", setter, overruled), seconds=20)
        finally:
            await dc1.deregister("shop")
            for entry in entries:
                await dc1.delete(f"/v1/config/{entry['Kind']}/{entry['Name']}")


async def test_modes_follow_a_redirect_and_flag_what_cannot_work(world: World) -> None:
    """Without any gateway, and through a service-resolver that sends callers to the other datacenter."""
    dc1 = world.federation.dc1
    redirect = {"Kind": "service-resolver", "Name": "cart", "Redirect": {"Service": "basket", "Datacenter": "dc2"}}
    await dc1.put("/v1/config", redirect)
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
        await dc1.delete("/v1/config/service-resolver/cart")


async def test_modes_of_an_agent_without_sidecars(world: World) -> None:
    outcome = await meshgate(world.federation.dc2, world.token, "modes")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == "the agent holds no such sidecar that the token may see\n"
