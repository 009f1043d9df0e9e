"""The interfaces of the machine that runs the tests, which has a loopback one at least."""

import socket
from ipaddress import ip_interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshgate.adapters.machine import default_interface, interfaces


def test_loopback_is_found_with_its_network_and_flags() -> None:
    (found,) = [each for each in interfaces() if each.address == ip_interface("127.0.0.1/8")]
    assert found.name == "lo"
    assert (found.up, found.loopback, found.point_to_point) == (True, True, False)


def test_link_local_addresses_have_no_zone_and_masks_become_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    def address(family: int, text: str, mask: str | None) -> Any:
        return SimpleNamespace(family=family, address=text, netmask=mask)

    addresses = {
        "eth0": [
            address(socket.AF_INET6, "fe80::1%eth0", "ffff:ffff:ffff:ffff::"),
            address(socket.AF_PACKET, "", None),
        ],
        "tun0": [address(socket.AF_INET, "10.8.0.1", None)],
    }
    stats = {"eth0": SimpleNamespace(flags="up,broadcast,running,multicast")}
    monkeypatch.setattr("psutil.net_if_addrs", lambda: addresses)
    monkeypatch.setattr("psutil.net_if_stats", lambda: stats)
    eth0, tun0 = interfaces()
    assert (eth0.name, eth0.address) == ("eth0", ip_interface("fe80::1/64"))
    assert (eth0.up, eth0.broadcast, eth0.multicast, eth0.loopback) == (True, True, True, False)
    assert (tun0.name, tun0.address, tun0.up) == ("tun0", ip_interface("10.8.0.1/0"), False)


HEADER = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"


@pytest.mark.parametrize(
    ("routes", "name"),
    [
        ("eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n", "eth0"),
        (
            "eth1\t00000000\t0101A8C0\t0003\t0\t0\t200\t00000000\t0\t0\t0\neth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n",
            "eth0",
        ),
        ("eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", ""),
        ("", ""),
    ],
)
def test_interface_of_the_default_route_with_the_lowest_metric(tmp_path: Path, routes: str, name: str) -> None:
    path = tmp_path / "route"
    path.write_text(HEADER + routes)
    assert default_interface(path) == name


def test_without_a_routing_table_there_is_no_default(tmp_path: Path) -> None:
    assert default_interface(tmp_path / "missing") == ""
