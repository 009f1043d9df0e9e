"""What the examples say to Consul, said to a real one."""

import os
import subprocess
from pathlib import Path

import hcl2
import pytest
import trio

from tests.e2e.conftest import world as world  # noqa: PLC0414 - the fixture
from tests.e2e.world import World
from tests.harness.agent import Consul, consul_version
from tests.harness.ports import free_ports

from .test_examples import COMPOSE, DEPLOY, KUBERNETES, agent_files, plain

pytestmark = pytest.mark.consul

FILES = DEPLOY / "consul"


def consul(binary: str, *arguments: str | Path, agent: Consul | None = None) -> str:
    """What a command of Consul prints that asks this agent with all rights."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONSUL_")}
    if agent is not None:
        environment |= {"CONSUL_HTTP_ADDR": agent.http_addr, "CONSUL_HTTP_TOKEN": agent.master_token}
    ended = subprocess.run([binary, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    "paths", [agent_files("dc1"), agent_files("dc2"), [KUBERNETES / "agent.hcl"]], ids=["dc1", "dc2", "kubernetes"]
)
def test_agent_takes_its_configuration(consul_binary: str, tmp_path: Path, paths: list[Path]) -> None:
    version = consul_version(consul_binary)
    given = [tmp_path / path.name for path in paths]
    for path, copy in zip(paths, given, strict=True):
        text = path.read_text()
        if version < (1, 11, 0):  # the token's older name
            text = text.replace("initial_management", "master")
        if version < (1, 9, 0):  # the block's older form
            text = text.replace("ui_config {\n  enabled = true\n}", "ui = true")
        text = text.replace("/consul/data", str(tmp_path / "data")).replace("consul-server.consul.svc", "127.0.0.1")
        copy.write_text(text)
    assert "valid" in consul(consul_binary, "validate", *given)


def test_agent_takes_the_configuration_of_the_walkthrough(consul_binary: str, tmp_path: Path) -> None:
    page = (DEPLOY.parent / "docs" / "start.md").read_text()
    lines = page.partition("of dc1:\n\n")[2].partition("\n\n")[0].splitlines()
    joined = page.partition("and\n\n")[2].partition("\n\n")[0].strip()
    text = "\n".join(line.removeprefix("    ") for line in lines).replace("/opt/consul", str(tmp_path / "data"))
    (tmp_path / "agent.hcl").write_text(f"{text}\n{joined}\n".replace("10.0.1.5", "127.0.0.1"))
    assert "valid" in consul(consul_binary, "validate", tmp_path / "agent.hcl")


async def test_setup_of_the_compose_example_makes_what_gateways_and_services_need(
    world: World, consul_binary: str, tmp_path: Path
) -> None:
    (tmp_path / "consul").symlink_to(consul_binary)
    tokens = {"GATEWAY_TOKEN": "0" * 8 + "-0000-4000-8000-000000000002"}
    tokens["SERVICE_TOKEN"] = tokens["GATEWAY_TOKEN"][:-1] + "3"
    dc1, dc2 = world.federation.dc1, world.federation.dc2
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DC1": f"http://{dc1.http_addr}",
        "DC2": f"http://{dc2.http_addr}",
        "MANAGEMENT_TOKEN": dc1.master_token,
        "RULES": str(FILES / "acl-policy.hcl"),
        "WEB_ADDRESS": "127.0.0.1",
        **tokens,
    }
    for _ in range(2):  # it may be done twice
        with trio.fail_after(90):
            ended = await trio.run_process(
                ["/bin/sh", str(COMPOSE / "setup.sh")], env=environment, capture_stdout=True, capture_stderr=True,
                check=False,
            )  # fmt: skip
        assert (ended.returncode, ended.stdout) == (0, b"setup: done\n"), ended.stderr
    for secret, policy in ((tokens["GATEWAY_TOKEN"], "mesh-gateway"), (tokens["SERVICE_TOKEN"], "example-services")):
        for datacenter in (dc1, dc2):
            said = consul(consul_binary, "acl", "token", "read", "-self", "-token", secret, agent=datacenter)
            assert policy in said
    assert 'Mode": "local"' in consul(
        consul_binary, "config", "read", "-kind", "proxy-defaults", "-name", "global", agent=dc1
    )
    assert "Allowed" in consul(consul_binary, "intention", "check", "shop", "web", agent=dc1)
    services = await dc2.ask("/v1/agent/services")
    assert services["web-sidecar-proxy"]["Port"] == 21000


async def test_the_files_for_consul_are_taken_by_it(world: World, consul_binary: str, tmp_path: Path) -> None:
    dc1 = world.federation.dc1
    consul(consul_binary, "config", "write", FILES / "proxy-defaults.hcl", agent=dc1)
    (lan, wan) = free_ports(2)
    definition = (FILES / "service-definition.hcl").read_text()
    definition = definition.replace("10.0.0.5:8443", f"127.0.0.1:{lan}").replace("10.0.0.5", "127.0.0.1")
    (tmp_path / "gateway.hcl").write_text(definition.replace("203.0.113.5", "127.0.0.1").replace("8443", str(wan)))
    consul(consul_binary, "services", "register", tmp_path / "gateway.hcl", agent=dc1)
    try:
        services = await dc1.ask("/v1/agent/services")
        assert services["mesh-gateway"]["Kind"] == "mesh-gateway"
        assert set(services["mesh-gateway"]["TaggedAddresses"]) >= {"lan", "wan"}
    finally:
        consul(consul_binary, "services", "deregister", "-id", "mesh-gateway", agent=dc1)


def test_the_mesh_entry_says_that_servers_peer_through_gateways() -> None:
    entry = plain(hcl2.loads((FILES / "mesh.hcl").read_text()))
    assert entry["Kind"] == "mesh"
    assert entry["Peering"] == [{"PeerThroughMeshGateways": True}]
