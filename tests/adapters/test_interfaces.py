"""The interfaces of the machine that runs the tests, which has a loopback one at least."""

import ctypes
from ipaddress import ip_interface
from pathlib import Path

import pytest

from meshgate.adapters.interfaces import default_interface, interfaces


def test_loopback_is_found_with_its_network_and_flags() -> None:
    (found,) = [each for each in interfaces() if each.address == ip_interface("127.0.0.1/8")]
    assert found.name == "lo"
    assert (found.up, found.loopback, found.point_to_point) == (True, True, False)


def test_system_that_tells_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def getifaddrs(self, _: object) -> int:
            ctypes.set_errno(97)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library())
    with pytest.raises(OSError, match="Address family not supported"):
        interfaces()


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
