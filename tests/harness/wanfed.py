"""Two real Consul datacenters whose servers reach each other through mesh gateways alone.

WAN federation through gateways (`connect.enable_mesh_gateway_wan_federation`), started from nothing: the secondary is
told of the primary's gateway and of nothing else, and the token of its own gateway first reaches it by that way. No
other way exists: the WAN addresses that the servers announce are from a block for documentation (RFC 5737), which leads
nowhere, no server is told of another one's gossip port, and nothing but TLS between servers is accepted.
"""

import subprocess
import uuid
from pathlib import Path
from typing import Final

import trio

from meshgate.adapters.consul.policy import acl_policy
from tests.harness.agent import Consul
from tests.harness.cluster import Federation, Report
from tests.harness.gateway import GatewayProcess
from tests.harness.process import child_environment
from tests.harness.waiting import until

# Not Consul's default, so that whoever takes one for the other is found out.
DOMAIN: Final = "fed.example"
NOWHERE: Final = {"dc1": "198.51.100.1", "dc2": "198.51.100.2"}
# The default, which is longer than a test lets a gateway stop.
_GATEWAY_SETTINGS: Final = {"MESHGATE_EXPOSE_SERVERS": "true", "MESHGATE_DRAIN_TIMEOUT": "30s"}
# From here on settings of TLS are grouped by protocol.
_TLS_BY_PROTOCOL: Final = (1, 12, 0)


class GatewayFederation(Federation):
    """The running datacenters and a gateway in each, which is part of them: `gateways`, the primary's first."""

    def __init__(self, dc1: Consul, dc2: Consul, folder: Path) -> None:
        super().__init__(dc1, dc2, folder)
        self.token = str(uuid.uuid4())
        self.gateways = GatewayProcess(dc1, self.token), GatewayProcess(dc2, self.token)

    def configure(self) -> None:
        """Makes a certificate authority and the servers' certificates, and writes both configurations."""
        _run(self.dc1, self.folder, "ca", "create", "-domain", DOMAIN)
        host, port = self.gateways[0].address
        for consul in self.datacenters:
            more: dict[str, object] = {"connect": {"enabled": True, "enable_mesh_gateway_wan_federation": True}}
            if consul is not self.dc1:
                more |= {"primary_gateways": [f"{host}:{port}"], "primary_gateways_interval": "1s"}
            more |= {"domain": DOMAIN, "advertise_addr_wan": NOWHERE[consul.datacenter]}
            more |= {"retry_interval_wan": "1s", **self._tls(consul)}
            consul.configure(self.dc1.datacenter, [], grpc=-1, **more)

    async def launch(self, report: Report, seconds: float) -> None:
        """Starts the primary, its gateway, and then the secondary and its gateway at once."""
        report("dc1 is starting")
        self.dc1.start()
        await self.dc1.until_leader(seconds=seconds)
        await self._create_gateway_token(seconds)
        await self.start_gateway(self.gateways[0])
        self.dc2.start()
        # It has to wait until its token arrives, or can be asked for, by the way that dc1's gateway opens.
        self.gateways[1].spawn(_GATEWAY_SETTINGS)
        await self.until_ready(report, seconds=seconds)
        await self.gateways[1].until_ready(seconds)

    async def start_gateway(self, gateway: GatewayProcess) -> None:
        """Starts one of `gateways`, again if it was stopped or killed, and waits until it is ready."""
        await gateway.start(_GATEWAY_SETTINGS)

    @trio.lowlevel.enable_ki_protection
    async def stop(self) -> None:
        """Ends all processes and removes `folder`. Cancellation does not interrupt it."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for gateway in self.gateways:
                    nursery.start_soon(gateway.stop)
            await super().stop()

    async def _create_gateway_token(self, seconds: float) -> None:
        """Only in the primary: there is no other datacenter yet to wait for."""

        async def missing() -> str | None:
            return None if await self.dc1.ask("/v1/acl/token/self") else "the ACLs of dc1 are not ready yet"

        await until("the primary's ACLs", missing, seconds=seconds)
        await self.dc1.put("/v1/acl/policy", {"Name": "mesh-gateway", "Rules": acl_policy()})
        token = {"Description": "mesh-gateway", "SecretID": self.token, "Policies": [{"Name": "mesh-gateway"}]}
        await self.dc1.put("/v1/acl/token", token)

    def _tls(self, consul: Consul) -> dict[str, object]:
        """Settings by which only servers of this authority talk to each other, by names that say who they are."""
        datacenter = consul.datacenter
        _run(
            consul, self.folder, "cert", "create", "-server", "-dc", datacenter, "-node", consul.node, "-domain", DOMAIN
        )
        certificate = str(self.folder / f"{datacenter}-server-{DOMAIN}-0.pem")
        settings: dict[str, object] = {
            "verify_outgoing": True,
            "verify_server_hostname": True,
            "ca_file": str(self.folder / f"{DOMAIN}-agent-ca.pem"),
            "cert_file": certificate,
            "key_file": certificate.replace(".pem", "-key.pem"),
        }
        if consul.version >= _TLS_BY_PROTOCOL:
            return {"tls": {"internal_rpc": {"verify_incoming": True, **settings}}}
        return {"verify_incoming_rpc": True, **settings}


def _run(consul: Consul, folder: Path, *arguments: str) -> None:
    subprocess.run(
        [consul.binary, "tls", *arguments], cwd=folder, env=child_environment(), check=True, capture_output=True
    )
