"""What the real Consul of the end-to-end tests does not do: answer with a date of yesterday, lack Connect, be old."""

import errno
import socket
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trio

from meshgate.adapters.consul.api import ConsulAddress, ConsulClient
from meshgate.adapters.state import Kept, write
from meshgate.app.diagnostics import doctor_machine
from meshgate.app.diagnostics.doctor import Examination
from meshgate.app.settings.settings import Settings
from meshgate.core.catalog import Snapshot
from meshgate.core.prerequisites import Finding, Status
from tests.adapters.consul.fake_consul import FakeConsul, row
from tests.harness.ports import free_ports

from .consul_double import RIGHTS, datacenter, gateway, inspected, may

OK, WARNING, FAILED = Status.OK, Status.WARNING, Status.FAILED


def settings_of(**values: str) -> Settings:
    port = free_ports(1)[0]
    base = {"MESHGATE_ADDRESS": f"127.0.0.1:{port}", "MESHGATE_ADMIN_BIND": "off"}
    flags = base | {f"MESHGATE_{name}": value for name, value in values.items()}
    return Settings.load(flags, environ={})


async def findings(client: ConsulClient, **values: str) -> dict[str, Finding]:
    return {finding.check: finding for finding in await Examination(client, settings_of(**values)).run()}


def federated(double: FakeConsul, port: int) -> None:
    double.set("/v1/catalog/datacenters", ["dc1", "dc2"], index=None)
    double.set("/v1/connect/ca/roots?dc=dc2", {"TrustDomain": "td.consul", "Roots": None})
    double.set("/v1/acl/replication?dc=dc2", replication(), index=None)
    double.set("/v1/acl/token/self?dc=dc2", {"AccessorID": "a", "Local": False}, index=None)
    gateway(double, "dc2", "127.0.0.1", port)


def replication(**fields: Any) -> dict[str, Any]:
    known = {"Enabled": True, "Running": True, "SourceDatacenter": "dc1", "ReplicationType": "tokens"}
    return known | fields


async def test_a_single_datacenter_in_order_has_nothing_that_failed() -> None:
    async with inspected() as (double, client):
        double.set("/v1/status/leader", "x", headers={"Date": formatdate(time.time(), usegmt=True)}, index=None)
        found = await findings(client)
        complained = {name for name, finding in found.items() if finding.status is not OK}
        assert complained <= {"descriptor limit", "keys of services"}
        assert found["gRPC port"].detail == "8502, 8503"
        assert found["consul version"].detail == "1.18.2+ent"
        assert "dc1 alone" in found["datacenters"].detail


async def test_the_admin_port_that_nobody_has_is_free(tmp_path: Path) -> None:
    async with inspected() as (_, client):
        found = await findings(client, ADMIN_BIND=f"127.0.0.1:{free_ports(1)[0]}")
        assert found["admin port"].status is OK
        found = await findings(client, ADMIN_BIND=f"unix://{tmp_path}/admin.sock")
        assert found["admin socket"].status is OK
        found = await findings(client, ADMIN_BIND=f"unix://{tmp_path}/no/admin.sock")
        assert found["admin socket"].status is FAILED
        (tmp_path / "file").touch()
        found = await findings(client, ADMIN_BIND=f"unix://{tmp_path}/file")
        assert (found["admin socket"].status, found["admin socket"].detail) == (
            FAILED,
            f"{tmp_path}/file is there, and no socket",
        )


async def test_an_address_of_another_machine_cannot_be_bound() -> None:
    async with inspected() as (_, client):
        found = await findings(client, ADDRESS="192.0.2.7:8443")
        assert found["LAN address"].status is FAILED
        assert found["port default"].detail == "192.0.2.7:8443 is no address of this machine"
        found = await findings(client, ADDRESS=f":{free_ports(1)[0]}")
        assert found["LAN address"].detail.startswith("that of the agent")
        assert found["port default"].detail.endswith("is free")


@pytest.mark.parametrize(("seconds", "status"), [(-3600.0, FAILED), (-30.0, WARNING), (0.0, OK), (30.0, WARNING)])
async def test_the_agents_clock_is_compared(seconds: float, status: Status) -> None:
    async with inspected() as (double, client):
        date = formatdate(time.time() + seconds, usegmt=True)
        double.set("/v1/status/leader", "x", headers={"Date": date}, index=None)
        assert (await findings(client))["clock"].status is status


async def test_answers_without_a_date_leave_the_clock_open() -> None:
    async with inspected() as (double, client):
        assert (await findings(client))["clock"].status is WARNING
        double.set("/v1/status/leader", "x", headers={"Date": "yesterday"}, index=None)
        assert (await findings(client))["clock"].status is WARNING


async def test_connect_that_is_off_is_said() -> None:
    async with inspected() as (double, client):
        text = b"Connect must be enabled in order to use this endpoint"
        double.set("/v1/connect/ca/roots", text, status=500)
        found = await findings(client)
        assert (found["connect"].status, found["CA roots"].status) == (FAILED, FAILED)
        assert "enabled = true" in found["connect"].advice


async def test_an_old_agent_without_grpc_and_with_few_connections_is_told_apart() -> None:
    async with inspected() as (double, client):
        datacenter(double, GRPCPort=-1, GRPCTLSPort=-1, HTTPMaxConnsPerClient=50, EnableCentralServiceConfig=False)
        double.set("/v1/agent/self", double.resources["/v1/agent/self"].body, index=None)
        found = await findings(client)
        assert found["gRPC port"].status is WARNING
        assert found["central config"].status is WARNING
        assert found["agent connections"].status is FAILED
        assert "MESHGATE_CATALOG_WATCHES to 30" in found["agent connections"].advice
        body = {"Config": {"Datacenter": "dc1", "Version": "1.7.2"}, "DebugConfig": None}
        double.set("/v1/agent/self", body, index=None)
        found = await findings(client)
        assert found["consul version"].status is FAILED
        assert found["gRPC port"].detail == "the agent does not tell"


async def test_without_acls_no_right_is_asked_for() -> None:
    async with inspected() as (double, client):
        datacenter(double, ACLsEnabled=False)
        double.set("/v1/catalog/datacenters", ["dc1"], index=None)
        found = await findings(client)
        assert found["ACLs"].status is OK
        assert not any(name.startswith("token") for name in found)
        asked = [seen.body for seen in double.requests("/v1/internal/acl/authorize")]
        assert all(b"peering" in body for body in asked)


async def test_rights_are_asked_one_by_one() -> None:
    async with inspected() as (double, client):
        may(double, service_read=False, node_read=False)
        double.set("/v1/catalog/services", {"web": [], "db": []})
        found = await findings(client)
        assert found["token: service:write"].status is OK
        # A narrower rule than the prefix works too, so that is no failure.
        assert found["token: service:read"].status is WARNING
        assert found["token: node:read"].status is FAILED
        assert found["token: agent:read"].status is OK


async def test_no_token_is_said_first_where_one_is_needed_and_only_there() -> None:
    async with inspected(HTTP_TOKEN="") as (double, client):
        assert "token" not in await findings(client)
        may(double, service_read=False)
        (name, found), *_ = (await findings(client)).items()
        assert (name, found.status) == ("token", WARNING)
        may(double, node_read=False)
        (name, found), *_ = (await findings(client)).items()
        assert (name, found.status) == ("token", FAILED)
        assert found.detail.startswith("no token was given")
        datacenter(double, ACLsEnabled=False)
        assert "token" not in await findings(client)


async def test_a_narrower_rule_for_nodes_is_no_failure() -> None:
    async with inspected() as (double, client):
        may(double, node_read=False, node_read_n1=True)
        assert (await findings(client))["token: node:read"].status is WARNING


async def test_a_gateway_that_does_not_register_needs_no_right_to() -> None:
    async with inspected() as (double, client):
        may(double, service_write=False)
        assert (await findings(client))["token: service:write"].status is FAILED
        assert "token: service:write" not in await findings(client, REGISTER="false")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"body": b"no such endpoint", "status": 404}, "404"),
        ({"body": [{"Allow": True}]}, "asked for 4 rights and told 1"),
    ],
)
async def test_an_agent_that_does_not_answer_about_rights_is_no_failure(answer: dict[str, Any], words: str) -> None:
    async with inspected() as (double, client):
        double.on_put = lambda _: None
        double.set(RIGHTS, **answer)
        found = (await findings(client))["token"]
        assert (found.status, words in found.detail) == (WARNING, True)
        assert "meshgate policy" in found.advice


async def test_an_agent_that_says_nothing_of_itself_does_not_end_the_examination() -> None:
    async with inspected() as (double, client):
        double.set("/v1/agent/self", b"Permission denied", status=403)
        may(double, agent_read=False)
        double.set("/v1/health/service/consul", [row("consul", kind="")])
        found = await findings(client)
        assert found["agent"].advice == 'add agent_prefix "" { policy = "read" } to the token\'s policy'
        assert "dc1 alone" in found["datacenters"].detail
        double.set("/v1/health/service/consul", [])
        found = await findings(client)
        assert found["datacenters"].status is FAILED


async def test_a_port_below_1024_needs_a_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    async with inspected() as (_, client):
        monkeypatch.setattr(doctor_machine, "bind", refused)
        found = (await findings(client))["port default"]
        assert (found.status, "CAP_NET_BIND_SERVICE" in found.advice) == (FAILED, True)


async def test_two_datacenters_in_order() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with inspected() as (double, client):
            federated(double, listener.getsockname()[1])
            found = await findings(client, WAN_ADDRESS="198.51.100.7:443")
            for name in ("primary of dc2", "token in dc2", "ACL replication to dc2", "gateways of dc2", "WAN address"):
                assert found[name].status is OK, found[name]


@pytest.mark.parametrize(
    ("path", "body", "check", "status", "words"),
    [
        ("/v1/connect/ca/roots?dc=dc2", {"TrustDomain": "x.consul"}, "primary of dc2", FAILED, "instead of td.consul"),
        ("/v1/acl/replication?dc=dc2", replication(SourceDatacenter="dc9"), "primary of dc2", FAILED, "dc9 instead"),
        ("/v1/acl/replication?dc=dc2", replication(Enabled=False), "ACL replication to dc2", WARNING, "off"),
        ("/v1/acl/replication?dc=dc2", replication(Running=False), "ACL replication to dc2", FAILED, "not running"),
        (
            "/v1/acl/replication?dc=dc2",
            replication(ReplicationType="policies"),
            "ACL replication to dc2",
            WARNING,
            "policies only",
        ),
        ("/v1/health/service/mesh-gateway?dc=dc2", [], "gateways of dc2", WARNING, "none"),
    ],
)
async def test_what_is_wrong_elsewhere_is_found(path: str, body: Any, check: str, status: Status, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with inspected() as (double, client):
            federated(double, listener.getsockname()[1])
            double.set(path, body)
            found = (await findings(client))[check]
            assert found.status is status, found
            assert words in found.detail
            assert found.advice


async def test_each_datacenter_is_asked_once_for_its_replication() -> None:
    async with inspected() as (double, client):
        federated(double, 1)
        await findings(client)
        assert len(double.requests("/v1/acl/replication")) == 1


async def test_federated_datacenters_without_acls_are_in_order() -> None:
    async with inspected() as (double, client):
        datacenter(double, ACLsEnabled=False)
        federated(double, 1)
        double.set("/v1/acl/replication?dc=dc2", "ACL support disabled", status=401, index=None)
        found = await findings(client)
        assert found["primary of dc2"].status is OK, found["primary of dc2"]
        assert "ACL replication to dc2" not in found


async def test_replication_that_cannot_be_asked_for_says_nothing_of_the_primary() -> None:
    async with inspected() as (double, client):
        federated(double, 1)
        double.set("/v1/acl/replication?dc=dc2", "rpc error", status=500, index=None)
        found = await findings(client)
        assert found["primary of dc2"].status is OK, found["primary of dc2"]
        assert found["ACL replication to dc2"].status is WARNING


async def test_a_token_that_sees_no_nodes_elsewhere_is_warned_of() -> None:
    async with inspected() as (double, client):
        federated(double, 1)
        may(double, node_read=False)
        found = (await findings(client))["token in dc2"]
        assert found.status is WARNING
        assert found.advice == 'add node_prefix "" { policy = "read" } to its policy'


async def test_an_unhealthy_gateway_elsewhere_that_answers_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with inspected() as (double, client):
            federated(double, listener.getsockname()[1])
            (found,) = double.resources["/v1/health/service/mesh-gateway?dc=dc2"].body
            found["Checks"] = [{"CheckID": "c", "Status": "critical"}]
            assert (await findings(client))["gateways of dc2"].status is WARNING


async def test_a_datacenter_that_cannot_be_asked_does_not_end_the_examination() -> None:
    async with inspected() as (double, client):
        federated(double, free_ports(1)[0])
        for path in list(double.resources):
            if path.endswith("?dc=dc2"):
                double.set(path, b"No path to datacenter", status=500)
        found = await findings(client)
        for name in ("primary of dc2", "token in dc2", "gateways of dc2"):
            assert found[name].status is FAILED
        assert found["agent connections"].status is OK


async def test_an_own_wan_address_that_does_not_answer_is_a_warning_while_the_gateway_runs() -> None:
    async def admin(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    async with inspected() as (_, client), trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, admin, listeners)
        bind = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        found = await findings(client, ADMIN_BIND=bind, WAN_ADDRESS=f"127.0.0.1:{free_ports(1)[0]}")
        assert "a meshgate is running" in found["admin port"].detail
        assert found["WAN address answers"].status is WARNING
        nursery.cancel_scope.cancel()


async def test_without_an_agent_this_machine_is_examined_all_the_same() -> None:
    async with inspected() as (double, client):
        double.drop_connections()
        double.set("/v1/status/leader", None, cut=True)
        found = await findings(client)
        assert next(iter(found)) == "agent"
        assert found["agent"].status is FAILED
        assert "CONSUL_HTTP_ADDR" in found["agent"].advice
        assert found["port default"].status is OK


async def test_a_token_that_sees_no_service_fails() -> None:
    async with inspected() as (double, client):
        may(double, service_read=False)
        double.set("/v1/catalog/services", {})
        found = (await findings(client))["token: service:read"]
        assert (found.status, found.advice) == (FAILED, 'add service_prefix "" { policy = "read" } to its policy')
        assert "none of them gets a route" in found.detail


async def test_what_the_agent_blocks_is_told_and_no_rule_is_advised_for_it() -> None:
    async with inspected() as (double, client):
        datacenter(double, HTTPBlockEndpoints=["/v1/internal", "/v1/agent/connect/ca/leaf"])
        blocked = b"Endpoint is blocked by agent configuration"
        double.on_put = lambda _: None
        for path in [RIGHTS, "/v1/internal/federation-states/mesh-gateways"]:
            double.set(path, blocked, status=403, index=None)
        examined = await Examination(client, settings_of()).run()
        stops = [finding.detail for finding in examined if finding.check == "blocked endpoints"]
        assert len(stops) == 3
        assert "gateways of another name than this one's are not found" in stops[0]
        found = {finding.check: finding for finding in examined}
        assert found["keys of services"].status is OK
        assert (found["token"].status, found["token"].advice) == (WARNING, "")
        assert "http_config.block_endpoints" in found["token"].detail


async def test_no_leaf_is_asked_for() -> None:
    async with inspected() as (double, client):
        assert (await findings(client))["keys of services"].status is WARNING
        assert not any("leaf" in path for path in double.paths())


async def without_consul(**values: str) -> dict[str, Finding]:
    async with ConsulClient(ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": "127.0.0.1:1"})) as client:
        return await findings(client, **values)


async def test_files_are_looked_at_also_where_the_agent_does_not_answer(tmp_path: Path) -> None:
    found = await without_consul(STATE_DIR=str(tmp_path / "a" / "b"), ACCESS_LOG=str(tmp_path / "access.log"))
    assert found["agent"].status is FAILED
    assert (found["state folder"].status, found["access log"].status) == (OK, OK)


def files(**values: str) -> list[tuple[Status, str]]:
    return [(finding.status, finding.detail) for finding in doctor_machine.files(settings_of(**values))]


def test_files_that_cannot_be_had_are_told_and_none_is_made(tmp_path: Path) -> None:
    state, log = tmp_path / "a" / "b", tmp_path / "access.log"
    assert files(STATE_DIR=str(state), ACCESS_LOG=str(log)) == [(OK, f"{it} can be made") for it in (state, log)]
    assert not list(tmp_path.iterdir())
    log.touch()
    assert files(ACCESS_LOG=str(log)) == [(OK, f"{log} can be written")]
    assert files(ACCESS_LOG=str(state)) == [(FAILED, f"there is no folder {tmp_path}/a")]
    assert files(ACCESS_LOG=str(tmp_path)) == [(FAILED, f"{tmp_path} is a folder")]
    assert files(STATE_DIR=str(log)) == [(FAILED, f"{log} is no folder")]
    assert files(ACCESS_LOG="stdout") == []


def test_a_path_that_cannot_be_looked_at_is_a_finding_and_ends_no_other(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300) / "file"
    assert files(STATE_DIR=str(path), ACCESS_LOG=str(path)) == [(FAILED, f"{path}: File name too long")] * 2


def test_a_state_file_that_would_not_be_used_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert files(STATE_DIR=str(tmp_path)) == [(OK, f"{tmp_path}, without a catalog yet")]
    write(tmp_path, Kept(Snapshot("dc1", "td.consul"), "mesh-gateway", time.time() - 90, {}))
    ((status, detail),) = files(STATE_DIR=str(tmp_path))
    assert status is OK
    assert "holds a catalog of dc1, last known to be right 1m3" in detail
    for each in tmp_path.iterdir():
        each.write_text("damaged")
    ((status, detail),) = files(STATE_DIR=str(tmp_path))
    assert status is FAILED
    assert "is no state file of meshgate" in detail


async def test_names_that_are_registered_must_resolve() -> None:
    found = await without_consul(ADDRESS="localhost:8443", WAN_ADDRESS="nosuch.invalid:443")
    assert (found["LAN name"].status, "127.0.0.1" in found["LAN name"].detail) == (OK, True)
    assert found["WAN name"].detail == "nosuch.invalid does not resolve on this machine"
    assert "WAN name" not in await without_consul(WAN_ADDRESS="192.0.2.1:443")
