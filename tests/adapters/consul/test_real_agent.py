"""What a real agent does to its client: certificates that are replaced, endpoints that are blocked, its own log."""

import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from meshgate.adapters.consul import acl_policy
from meshgate.adapters.consul.api import (
    ConsulAddress,
    ConsulClient,
    Cursor,
    EndpointBlockedError,
    PermissionDeniedError,
    Rule,
)
from meshgate.app.diagnostics.doctor import Examination
from meshgate.app.settings.settings import Settings
from meshgate.core.prerequisites import Status
from meshgate.core.proxy_config import NO_LIMITS
from tests.harness.agent import Consul, Ports, consul_version
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.ports import free_ports
from tests.harness.waiting import until

from .certificates import Authority

pytestmark = pytest.mark.consul

SERVER = "server.dc1.consul"


@asynccontextmanager
async def agent(binary: str, folder: Path, **more: Any) -> AsyncIterator[Consul]:
    """A datacenter of one server."""
    consul = Consul(binary, consul_version(binary), "dc1", Ports.pick(), folder / "dc1", str(uuid4()))
    consul.configure("dc1", [], retry_join_wan=[], **more)
    try:
        consul.start()
        await until_up(consul)
        yield consul
    finally:
        await consul.stop()


async def until_up(consul: Consul) -> None:
    await consul.until_leader(seconds=60)

    async def missing() -> str | None:
        roots = await consul.ask("/v1/connect/ca/roots")
        known = await consul.ask("/v1/acl/token/self")
        return None if roots and roots["TrustDomain"] and known else "it starts"

    await until("the datacenter", missing, seconds=60)


async def token_of(consul: Consul, rules: str) -> str:
    policy = await consul.put("/v1/acl/policy", {"Name": str(uuid4()), "Rules": rules})
    return str((await consul.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]}))["SecretID"])


def settings_of(consul: Consul, token: str) -> Settings:
    return Settings.load({"CONSUL_HTTP_ADDR": consul.http_addr, "CONSUL_HTTP_TOKEN": token})


def client_of(consul: Consul, token: str) -> ConsulClient:
    values = {"CONSUL_HTTP_ADDR": consul.http_addr, "CONSUL_HTTP_TOKEN": token}
    return ConsulClient(ConsulAddress.from_settings(values))


def log_of(consul: Consul) -> list[str]:
    return (consul.folder / "log").read_text().splitlines()


# --- certificates of HTTPS -------------------------------------------------------------------------------------------


def tls_of(folder: Path) -> dict[str, Path]:
    """A new authority, and certificates of it for the agent and its client, all under the same names as before."""
    authority = Authority(folder)
    cert, key = authority.issue(SERVER)
    client_cert, client_key = authority.issue("gateway")
    return {"ca": authority.file, "cert": cert, "key": key, "client_cert": client_cert, "client_key": client_key}


@dataclass(frozen=True)
class Https:
    """An agent that speaks HTTPS alone to clients with a certificate of its authority."""

    consul: Consul
    files: dict[str, Path]
    port: int

    @property
    def settings(self) -> dict[str, str]:
        return {
            "CONSUL_HTTP_ADDR": f"https://127.0.0.1:{self.port}",
            "CONSUL_CACERT": str(self.files["ca"]),
            "CONSUL_CLIENT_CERT": str(self.files["client_cert"]),
            "CONSUL_CLIENT_KEY": str(self.files["client_key"]),
            "CONSUL_TLS_SERVER_NAME": SERVER,
        }


@asynccontextmanager
async def https_agent(binary: str, folder: Path) -> AsyncIterator[Https]:
    (folder / "tls").mkdir()
    files = tls_of(folder / "tls")
    (https,) = free_ports(1)
    listening = Ports.pick()
    ports = {"http": listening.http, "server": listening.server, "serf_lan": listening.serf_lan}
    ports |= {"serf_wan": listening.serf_wan, "dns": -1, "https": https}
    consul = Consul(binary, consul_version(binary), "dc1", listening, folder / "dc1", str(uuid4()))
    if consul.version >= (1, 14, 0):
        ports["grpc_tls"] = -1
    common = {"ca_file": str(files["ca"]), "cert_file": str(files["cert"]), "key_file": str(files["key"])}
    if consul.version >= (1, 12, 0):
        more: dict[str, Any] = {"tls": {"https": common | {"verify_incoming": True}}}
    else:
        more = common | {"verify_incoming_https": True}
    consul.configure("dc1", [], retry_join_wan=[], **(more | {"ports": ports}))
    try:
        consul.start()
        await until_up(consul)
        yield Https(consul, files, https)
    finally:
        await consul.stop()


@pytest.mark.parametrize("held", [False, True], ids=["between requests", "while a query is held"])
async def test_certificates_that_are_replaced_under_the_same_names_are_used_with_the_next_request(
    consul_binary: str, tmp_path: Path, *, held: bool
) -> None:
    async with https_agent(consul_binary, tmp_path) as https:
        consul, files = https.consul, https.files
        values = https.settings | {"CONSUL_HTTP_TOKEN": consul.master_token}
        async with ConsulClient(ConsulAddress.from_settings(values)) as client, trio.open_nursery() as nursery:
            assert (await client.datacenters()).value == ("dc1",)
            if held:
                page = await client.service_names()
                nursery.start_soon(client.service_names, Cursor(page.index or 0))
                await trio.testing.wait_all_tasks_blocked(0.05)
            tls_of(tmp_path / "tls")
            consul.child.signal(signal.SIGHUP)
            await until_served_by(https.port, files["ca"])
            client.refresh()
            async with client.dedicated() as fresh:
                assert (await fresh.datacenters()).value == ("dc1",)
            for _ in range(5):
                assert (await client.datacenters()).value == ("dc1",)
            assert client.problems() == []
            # A key that belongs to another certificate: what was read before goes on.
            before = files["client_key"].read_bytes()
            files["client_key"].write_bytes(files["key"].read_bytes())
            client.refresh()
            (problem,) = client.problems()
            assert "client certificate and key" in problem
            assert "what was read before stays in use" in problem
            async with client.dedicated() as fresh:
                assert (await fresh.datacenters()).value == ("dc1",)
            files["client_key"].write_bytes(before)
            client.refresh()
            assert client.problems() == []
            nursery.cancel_scope.cancel()


async def test_a_running_gateway_takes_certificates_that_were_replaced(consul_binary: str, tmp_path: Path) -> None:
    """The agent starts anew with them, so that nothing is left of the old ones, and whoever has those is refused."""
    async with https_agent(consul_binary, tmp_path) as https:
        consul = https.consul
        token = await token_of(consul, acl_policy())
        sni = f"api.default.dc1.internal.{(await consul.get('/v1/connect/ca/roots'))['TrustDomain']}"
        async with gateway_beside(consul, token, **https.settings) as gateway:
            tls_of(tmp_path / "tls")
            await consul.restart()
            await until_up(consul)
            await until_served_by(https.port, https.files["ca"])
            await consul.register({"Name": "api", "Port": 1, "Connect": {"Native": True}})

            async def missing() -> str | None:
                if not await gateway.endpoints(sni):
                    return f"no route; {await gateway.ask('/readyz')}"
                if not await consul.ask("/v1/health/service/mesh-gateway", passing="1"):
                    return "no registration of the gateway that passes"
                return "; ".join((await gateway.ask("/readyz"))["problems"]) or None

            await until("the gateway to follow and to be registered", missing, seconds=60)


async def until_served_by(port: int, ca: Path) -> None:
    """Wait until the agent shows a certificate of this authority."""

    async def missing() -> str | None:
        # The default one refuses, from Python 3.13 on, certificates that the gateway takes.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca)
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname=SERVER)
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            return repr(error.__cause__)
        finally:
            await trio.aclose_forcefully(stream)
        return None

    await until("the agent's new certificate", missing, seconds=30)


# --- endpoints that are blocked --------------------------------------------------------------------------------------


async def test_an_endpoint_that_is_blocked_is_told_apart_and_nobody_is_sent_for_a_rule(
    consul_binary: str, tmp_path: Path
) -> None:
    blocked = {"block_endpoints": ["/v1/internal", "/v1/agent/connect/ca/leaf"]}
    async with agent(consul_binary, tmp_path, http_config=blocked) as consul:
        token = await token_of(consul, acl_policy())
        async with client_of(consul, token) as client:
            with pytest.raises(EndpointBlockedError) as raised:
                await client.gateway_names()
            assert str(raised.value).startswith("this agent blocks /v1/internal/ui/services for every token ")
            assert "gateways of another name" in str(raised.value)
            with pytest.raises(EndpointBlockedError, match="`meshgate probe` gets no certificate"):
                await client.leaf("web")
            assert client.errors == {"blocked": 2}
        async with client_of(consul, token) as client:
            found = await Examination(client, settings_of(consul, token)).run()
            blocked_ones = [finding for finding in found if finding.check == "blocked endpoints"]
            assert {finding.status for finding in blocked_ones} == {Status.FAILED}
            assert not [finding for finding in found if "policy" in finding.advice]


# --- what a token may not see, and Consul's own log ------------------------------------------------------------------

WITHOUT_PEERING = acl_policy().replace('peering = "read"', "").replace('mesh    = "read"', "")


async def test_a_token_without_the_right_to_peerings_is_told_so_without_asking_for_them(
    consul_binary: str, tmp_path: Path
) -> None:
    """Consul itself says it after 11 s only."""
    async with agent(consul_binary, tmp_path) as consul:
        token = await token_of(consul, WITHOUT_PEERING)
        knows = consul.version >= (1, 13, 0)
        async with client_of(consul, token) as client:
            if knows:
                with pytest.raises(PermissionDeniedError) as raised:
                    await client.peerings()
                assert raised.value.missing_rule == Rule("peering")
            else:
                assert (await client.peerings()).value is None
            found = {finding.check: finding for finding in await Examination(client, settings_of(consul, token)).run()}
            assert ("cluster peering" in found) is knows
            if knows:
                assert 'add peering = "read"' in found["cluster peering"].advice
        assert not [line for line in log_of(consul) if "/v1/peerings" in line and knows]
        async with client_of(consul, await token_of(consul, acl_policy())) as client:
            assert (await client.peerings()).value == (() if knows else None)


async def test_neither_polling_nor_what_vanishes_leaves_an_error_in_consuls_log(
    consul_binary: str, tmp_path: Path
) -> None:
    """Not where there is no such entry, or it is deleted, nor where the token may not read it."""
    async with agent(consul_binary, tmp_path) as consul:
        sni = f"web.default.dc1.internal.{(await consul.get('/v1/connect/ca/roots'))['TrustDomain']}"
        begun = len(log_of(consul))  # What it said while it started is not about gateways.
        for number, rules in enumerate((acl_policy(), WITHOUT_PEERING)):
            token = await token_of(consul, rules)
            async with gateway_beside(consul, token, instance=f"gateway-{number}") as gateway:
                await appears_and_vanishes(consul, gateway, sni)

                async def missing(gateway: GatewayProcess = gateway) -> str | None:
                    """Each look that is repeated has been taken once."""
                    text = (await gateway._fetch("/metrics")).decode()
                    return None if '"service-defaults' in text else "no look at service-defaults"

                await until("the first looks", missing, seconds=30)
            async with client_of(consul, token) as client:
                assert (await client.destination_limits("mesh-gateway")).value == NO_LIMITS
                assert await client.proxy_defaults_mode() == ""
                if consul.version >= (1, 13, 0):
                    assert (await client.peer_through()).value is False
                    with suppress(PermissionDeniedError):
                        assert (await client.exported_entry(Cursor(), "default")).value == ()
        assert [line for line in log_of(consul)[begun:] if "[ERROR]" in line] == []


async def appears_and_vanishes(consul: Consul, gateway: GatewayProcess, sni: str) -> None:
    """A service with a resolver and a subset."""
    await consul.register({"Name": "web", "Port": 1, "Connect": {"Native": True}})
    await consul.put(
        "/v1/config", {"Kind": "service-resolver", "Name": "web", "Subsets": {"v1": {"Filter": "Service.Port == 1"}}}
    )

    async def missing(*, wanted: bool) -> str | None:
        found = {route["sni"] for route in (await gateway.ask("/routes"))["routes"]}
        return None if (sni in found, f"v1.{sni}" in found) == (wanted, wanted) else f"only {found}"

    await until("the routes", partial(missing, wanted=True), seconds=30)
    await consul.delete("/v1/config/service-resolver/web")
    await consul.deregister("web")
    await until("no route", partial(missing, wanted=False), seconds=30)
