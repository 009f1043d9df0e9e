"""A catalog that leads streams back to the gateway: they must not go in circles."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import trio

from meshgate.adapters.machine import machine_addresses
from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.pool import RelayPool
from meshgate.app.gateway.listeners import OwnAddressKeeper
from meshgate.app.gateway.table_keeper import tell_table
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import OwnAddresses
from meshgate.core.catalog import Instance, Remote, Service, Snapshot, WanAddress
from meshgate.core.reasons import Reason
from meshgate.core.routes import RouteTable, difference
from tests.core.samples import plan

from ..adapters.relay.streams import TRUST_DOMAIN, WEB, Watcher, hello_for, receive_all

INTERNAL_ERROR = b"\x15\x03\x03\x00\x02\x02\x50"
MOST = 60
ELSEWHERE = WEB.replace("dc1", "dc2")


def catalog(port: int) -> Snapshot:
    """A service, and another datacenter's gateway, that were registered with 127.0.0.1 and a port."""
    web = Instance("n1", "dc1", "web-1", "web", "127.0.0.1", port, "")
    other = Instance("n2", "dc2", "gw", "mesh-gateway", "10.0.0.2", 8443, "", wan=WanAddress("127.0.0.1", port))
    return Snapshot("dc1", TRUST_DOMAIN, services=(Service("web", (web,)),), remotes=(Remote("dc2", (other,)),))


@asynccontextmanager
async def listening(host: str) -> AsyncIterator[tuple[RelayPool, int]]:
    pool = RelayPool(1, Limits(max_connections=MOST), Watcher(), drain_seconds=1.0)
    _, port = pool.bind("default", host, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        pool.listen()
        yield pool, port
        nursery.cancel_scope.cancel()


async def answer(port: int, name: str) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(hello_for(name))
        with trio.fail_after(30):
            try:
                return await receive_all(client)
            except trio.BrokenResourceError:
                return b"reset"


def own_addresses(pool: RelayPool) -> OwnAddresses:
    return OwnAddressKeeper(Settings.load({}, environ={})).now(pool.addresses)


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
@pytest.mark.parametrize("name", [WEB, ELSEWHERE])
async def test_stream_to_the_gateway_itself_is_refused_at_once(host: str, name: str) -> None:
    async with listening(host) as (pool, port):
        pool.install(plan(catalog(port), own=own_addresses(pool)))
        assert await answer(port, name) == INTERNAL_ERROR
        counters = await pool.counters()
        assert counters.accepted == 1
        assert counters.refused == {Reason.NO_HEALTHY_ENDPOINT: 1}


async def test_without_that_knowledge_it_goes_in_circles_until_the_limit() -> None:
    """What the test above prevents does happen."""
    async with listening("127.0.0.1") as (pool, port):
        pool.install(plan(catalog(port)))
        await answer(port, WEB)
        assert (await pool.counters()).accepted == MOST


def told_of(before: RouteTable, after: RouteTable) -> None:
    tell_table(before, after, difference(before, after))


def test_it_is_said_once() -> None:
    def names(host: str, port: int) -> RouteTable:
        return plan(catalog(port), own=OwnAddresses(frozenset({(host, 7000)})))

    before = plan(Snapshot("dc1", TRUST_DOMAIN))
    with structlog.testing.capture_logs() as logs:
        told_of(before, names("127.0.0.1", 7000))
    told = [entry for entry in logs if "itself" in entry.get("why", "")]
    assert sorted((entry["sni"], entry["endpoint"], entry["instance"]) for entry in told) == [
        (f"*.dc2.internal.{TRUST_DOMAIN}", "127.0.0.1:7000", "gw"),
        (WEB, "127.0.0.1:7000", "web-1"),
    ]
    with structlog.testing.capture_logs() as logs:
        known = names("127.0.0.1", 7000)
        grown = catalog(7000)
        another = replace(grown.services[0].instances[0], id="web-2", address="10.0.0.9")
        services = (replace(grown.services[0], instances=(*grown.services[0].instances, another)),)
        told_of(known, plan(replace(grown, services=services), own=OwnAddresses(frozenset({("127.0.0.1", 7000)}))))
        assert [entry["event"] for entry in logs] == ["routes changed"]
        told_of(before, names("127.0.0.1", 7001))
    assert [entry for entry in logs if "itself" in entry.get("why", "")] == []


@pytest.mark.parametrize(
    ("address", "wan_address", "registered"),
    [
        (":8443", "", set()),
        ("gateway.lan:8443", "gateway.example.com:443", set()),
        ("10.0.0.5:8443", "203.0.113.1:443", {("10.0.0.5", 8443), ("203.0.113.1", 443)}),
    ],
)
def test_registered_addresses_are_those_with_a_numeric_host(
    address: str, wan_address: str, registered: set[tuple[str, int]]
) -> None:
    settings = Settings.load({"MESHGATE_ADDRESS": address, "MESHGATE_WAN_ADDRESS": wan_address}, environ={})
    assert OwnAddressKeeper(settings).now([]).registered == registered


def test_machine_addresses_are_those_of_the_kernels_tables(tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text(
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n"
        "     |-- 10.0.0.0\n        /24 link UNICAST\n     |-- 10.0.0.5\n        /32 host LOCAL\n"
        "     |-- 10.0.0.255\n        /32 link BROADCAST\n"
    )
    (tmp_path / "if_inet6").write_text("fd000000000000000000000000000005 02 40 00 80     eth0\n")
    assert machine_addresses(tmp_path) == {"10.0.0.5", "fd00::5"}
    assert machine_addresses(tmp_path / "none") == frozenset()


def test_addresses_that_the_kernel_hands_to_other_machines_are_not_ours(tmp_path: Path) -> None:
    """With kube-proxy's IPVS mode each node has the cluster addresses of all services on an interface."""
    leaves = "".join(f"  |-- {address}\n     /32 host LOCAL\n" for address in ("10.0.0.5", "10.96.0.10"))
    (tmp_path / "fib_trie").write_text(leaves)
    six = ("fd000000000000000000000000000005", "fd960000000000000000000000000010")
    (tmp_path / "if_inet6").write_text("".join(f"{address} 02 40 00 80 eth0\n" for address in six))
    (tmp_path / "ip_vs").write_text(
        "IP Virtual Server version 1.2.1 (size=4096)\n"
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
        "TCP  0A60000A:01BB rr \n"
        "  -> 0A000005:20FB      Masq    1      0          0         \n"
        "TCP  [fd96:0000:0000:0000:0000:0000:0000:0010]:01BB rr \n"
        "  -> [fd00:0000:0000:0000:0000:0000:0000:0005]:20FB      Masq    1      0          0         \n"
        "FWM  00000001 rr \n"
    )
    assert machine_addresses(tmp_path) == {"10.0.0.5", "fd00::5"}


def test_machine_addresses_hold_the_one_that_this_machine_sends_from() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # Sends nothing: it only looks for a way.
        except OSError:
            pytest.skip("no way out of this machine")
        assert sock.getsockname()[0] in machine_addresses()
