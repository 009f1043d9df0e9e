"""Logging in to a real Consul with a JWT of a key pair of the test's own (Consul 1.8 has the auth method jwt)."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from meshgate.adapters.consul import acl_policy
from meshgate.adapters.consul.api import (
    ConsulAddress,
    ConsulClient,
    ConsulConfigError,
    Login,
    LoginError,
    PermissionDeniedError,
)
from tests.harness.agent import Consul
from tests.harness.gateway import gateway_beside
from tests.harness.waiting import until

from .test_real_agent import agent

pytestmark = pytest.mark.consul


class Issuer:
    """Makes bearer tokens, and tells Consul to take them for those of a gateway."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.write()

    @property
    def settings(self) -> dict[str, str]:
        """With which a gateway logs in by one of them."""
        return {
            "MESHGATE_LOGIN_AUTH_METHOD": "workloads",
            "MESHGATE_LOGIN_BEARER_TOKEN_FILE": str(self.file),
        }

    def write(self, name: str = "gateway") -> None:
        now = int(time.time())
        claims = {"iss": "test", "aud": "consul", "sub": name, "iat": now, "nbf": now - 60, "exp": now + 3600}
        parts = [
            _base64(json.dumps(each).encode()) for each in ({"alg": "ES256", "typ": "JWT"}, claims | {"name": name})
        ]
        signed = ".".join(parts)
        first, second = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        self.file.write_text(f"{signed}.{_base64(first.to_bytes(32, 'big') + second.to_bytes(32, 'big'))}\n")

    async def introduce(self, consul: Consul) -> None:
        """Give gateways the documented policy, by a role that the auth method binds."""
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        public = self._key.public_key().public_bytes(encoding, form).decode()
        config = {
            "JWTValidationPubKeys": [public],
            "JWTSupportedAlgs": ["ES256"],
            "BoundIssuer": "test",
            "BoundAudiences": ["consul"],
            "ClaimMappings": {"name": "name"},
        }
        await consul.put("/v1/acl/auth-method", {"Name": "workloads", "Type": "jwt", "Config": config})
        policy = await consul.put("/v1/acl/policy", {"Name": "mesh-gateway", "Rules": acl_policy()})
        await consul.put("/v1/acl/role", {"Name": "gateways", "Policies": [{"ID": policy["ID"]}]})
        rule = {"AuthMethod": "workloads", "BindType": "role", "BindName": "gateways"}
        await consul.put("/v1/acl/binding-rule", rule | {"Selector": "value.name == gateway"})


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def had_by_login(consul: Consul) -> list[str]:
    """The tokens that logins have made and that still exist."""
    tokens: list[dict[str, Any]] = await consul.get("/v1/acl/tokens")
    return [token["AccessorID"] for token in tokens if token.get("AuthMethod") == "workloads"]


def client_of(consul: Consul, issuer: Issuer, method: str = "workloads", *, unknown_for: float = 5.0) -> ConsulClient:
    address = ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": consul.http_addr})
    return ConsulClient(address, login=Login(method, str(issuer.file), unknown_for))


async def test_a_client_logs_in_once_again_when_its_token_is_gone_and_out_at_the_end(
    consul_binary: str, tmp_path: Path
) -> None:
    issuer = Issuer(tmp_path / "jwt")
    async with agent(consul_binary, tmp_path) as consul:
        await issuer.introduce(consul)
        async with client_of(consul, issuer, unknown_for=0.0) as client:
            assert not client.token.given
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(client.service_names)
            (first,) = await had_by_login(consul)
            version = client.token.version
            await consul.delete(f"/v1/acl/token/{first}")

            async def missing() -> str | None:
                """A server remembers a token for a second."""
                assert "consul" in (await client.service_names()).value
                return None if client.token.version > version else "the first one is used still"

            await until("another token", missing, seconds=20)
            (second,) = await had_by_login(consul)
            assert second != first
        assert await had_by_login(consul) == []


async def test_a_login_that_is_refused_says_so_and_shows_no_bearer_token(consul_binary: str, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "jwt")
    async with agent(consul_binary, tmp_path) as consul:
        await issuer.introduce(consul)
        for method, name in (("workloads", "somebody else"), ("unknown", "gateway")):
            issuer.write(name)
            async with client_of(consul, issuer, method) as client:
                with pytest.raises(LoginError, match=f"no login with the auth method {method}: ") as raised:
                    await client.service_names()
                assert issuer.file.read_text().strip() not in str(raised.value)
                assert "policy" not in str(raised.value)
        assert await had_by_login(consul) == []
        # A file that vanishes later is a failure of the login, not of the process.
        async with client_of(consul, issuer) as client:
            issuer.file.unlink()
            with pytest.raises(LoginError, match="cannot be read"):
                await client.service_names()
        with pytest.raises(ConsulConfigError, match=r"bearer token file .* cannot be read"):
            client_of(consul, issuer)


async def test_a_gateway_logs_in_registers_and_leaves_nothing_behind(consul_binary: str, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "jwt")
    async with agent(consul_binary, tmp_path) as consul:
        await issuer.introduce(consul)
        async with gateway_beside(consul, "", **issuer.settings) as gateway:
            (token,) = await had_by_login(consul)
            await trio.sleep(5)
            await consul.delete(f"/v1/acl/token/{token}")
            # A query that is held goes on by the rights that it came with, up to its end: this is its end.
            await consul.register({"Name": "new", "Port": 1})

            async def missing() -> str | None:
                tokens = await had_by_login(consul)
                ready = await gateway.ask("/readyz")
                settled = len(tokens) == 1 and tokens != [token] and ready["ready"] and not ready["problems"]
                return None if settled else f"{tokens} {ready}"

            await until("the gateway to be well with another token", missing, seconds=60)
        assert await had_by_login(consul) == []
        assert not await consul.get("/v1/health/service/mesh-gateway")


async def test_a_login_goes_on_through_an_upgrade_and_ends_with_the_gateway(consul_binary: str, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "jwt")
    async with agent(consul_binary, tmp_path) as consul:
        await issuer.introduce(consul)
        async with gateway_beside(consul, "", **issuer.settings) as gateway:
            token = await had_by_login(consul)
            assert len(token) == 1
            done = await gateway.upgrade()
            assert done.returncode == 0, done.stderr
            assert await had_by_login(consul) == token
            assert "logged out" not in gateway.child.log.read_text()
            assert (await gateway.ask("/readyz"))["problems"] == []
        assert await had_by_login(consul) == []
        assert not await consul.get("/v1/health/service/mesh-gateway")


async def test_without_a_login_no_token_is_had(consul_binary: str, tmp_path: Path) -> None:
    async with agent(consul_binary, tmp_path) as consul:
        async with ConsulClient(ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": consul.http_addr})) as client:
            with pytest.raises(PermissionDeniedError):
                await client.connect_instances("web")
        assert await had_by_login(consul) == []
