import re
from pathlib import Path
from typing import Any

import pytest

from meshgate.app.settings import setting_types
from meshgate.core.addresses import DeniedAddresses, HostPort, plain_network
from meshgate.core.proxy_config import BindAddress


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (setting_types.name, "mesh-gateway", "mesh-gateway"),
        (setting_types.duration(), "0", 0.0),
        (setting_types.duration(), "1h30m", 5400.0),
        (setting_types.duration(1, zero=True), "0s", 0.0),
        (setting_types.duration(1, high=10), "10s", 10.0),
        (setting_types.whole(1, 5), "1", 1),
        (setting_types.whole(1, 5), "5", 5),
        (setting_types.size(64 << 20), "0", 0),
        (setting_types.size(64 << 20), "64M", 64 << 20),
        (setting_types.size(64 << 20), "100000000", 100_000_000),
        (setting_types.size(64 << 20), "512Mi", 512 << 20),
        (setting_types.size(64 << 20), "2G", 2 << 30),
        (setting_types.lan_address, ":8443", HostPort("", 8443)),
        (setting_types.lan_address, "10.0.0.1:1", HostPort("10.0.0.1", 1)),
        (setting_types.lan_address, "[fd00::1]:65535", HostPort("fd00::1", 65535)),
        (setting_types.lan_address, "gw-1.example_x.com:443", HostPort("gw-1.example_x.com", 443)),
        (setting_types.wan_address, "198.51.100.7:443", HostPort("198.51.100.7", 443)),
        (setting_types.wan_address, "gateway:443", HostPort("gateway", 443)),
        (setting_types.bind_addresses, "a=0.0.0.0:1", (BindAddress("a", "0.0.0.0", 1),)),
        (
            setting_types.bind_addresses,
            "lan=10.0.0.1:8443, wan=[::]:8444",
            (BindAddress("lan", "10.0.0.1", 8443), BindAddress("wan", "::", 8444)),
        ),
        (setting_types.admin_bind, "127.0.0.1:0", HostPort("127.0.0.1", 0)),
        (setting_types.admin_bind, "localhost:19000", HostPort("127.0.0.1", 19000)),
        (setting_types.admin_bind, "[::1]:19000", HostPort("::1", 19000)),
        (setting_types.admin_bind, "unix:///run/meshgate/admin.sock", Path("/run/meshgate/admin.sock")),
        (setting_types.admin_bind, "off", None),
        (setting_types.denied_addresses, "none", DeniedAddresses()),
        (
            setting_types.denied_addresses,
            "loopback, 10.0.0.0/8,::ffff:192.0.2.1,fd00:ec2::254,multicast",
            DeniedAddresses(
                frozenset({"loopback", "multicast"}),
                (plain_network("10.0.0.0/8"), plain_network("192.0.2.1"), plain_network("fd00:ec2::254/128")),
            ),
        ),
        (setting_types.path, "~/x", Path.home() / "x"),
        (setting_types.access_log, "stdout", "stdout"),
        (setting_types.access_log, "/var/log/x", "/var/log/x"),
        (setting_types.one_of(setting_types.LOG_LEVELS), "WARN", "warn"),
    ],
)
def test_reads(parse: Any, text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "allowed"),
    [
        (setting_types.size(64 << 20), "512", "must be 0 (off), or a size such as 512M or 2G of at least 64M"),
        (setting_types.size(64 << 20), "63M", "of at least 64M"),
        (setting_types.size(64 << 20), "-1", "such as 512M"),
        (setting_types.size(64 << 20), "1.5G", "such as 512M"),
        (setting_types.size(64 << 20), "512MB", "such as 512M"),
        (setting_types.size(64 << 20), "\uff19M", "such as 512M"),
        (setting_types.size(64 << 20), "9999999G", "such as 512M"),
        (setting_types.name, " x", "without spaces"),
        (setting_types.name, "a b", "without spaces"),
        (setting_types.name, 'a"b', "without spaces, quotes"),
        (setting_types.name, "${x}", "braces"),
        (setting_types.name, "a\nb", "control characters"),
        (setting_types.duration(), "15", "500ms, 15s or 1h"),
        (setting_types.duration(), "-1s", "500ms, 15s or 1h"),
        (setting_types.duration(0.001), "0", "at least 1ms"),
        (setting_types.duration(1, zero=True), "500ms", "0 (off), or at least 1s"),
        (setting_types.duration(1, high=60, zero=True), "61s", "0 (off), or from 1s to 1m"),
        (setting_types.whole(1, 5), "0", "from 1 to 5"),
        (setting_types.whole(1, 5), "6", "from 1 to 5"),
        (setting_types.whole(1, 5), "+3", "from 1 to 5"),
        (setting_types.whole(1, 50), "1_0", "from 1 to 50"),
        (setting_types.whole(1, 5), "٣", "from 1 to 5"),
        (setting_types.whole(1, 5), "9" * 5000, "from 1 to 5"),
        (setting_types.lan_address, "8443", ":port"),
        (setting_types.lan_address, ":0", "1 to 65535"),
        (setting_types.lan_address, ":65536", "1 to 65535"),
        (setting_types.lan_address, "::1:8443", "[IPv6]:port"),
        (setting_types.lan_address, "[10.0.0.1]:8443", "[IPv6]:port"),
        (setting_types.lan_address, "10.0.0.300:8443", "host:port"),
        (setting_types.lan_address, "a b:8443", "host:port"),
        (setting_types.lan_address, "http://x:8443", "host:port"),
        (setting_types.lan_address, "[fe80::1%eth0]:8443", "host:port"),
        (setting_types.lan_address, "0.0.0.0:8443", ":8443 registers the node's address"),
        (setting_types.lan_address, "[::]:8443", ":8443 registers the node's address"),
        (setting_types.wan_address, ":443", "host:port"),
        (setting_types.wan_address, "0.0.0.0:443", "can dial"),
        (setting_types.bind_addresses, "10.0.0.1:8443", "name=ip:port"),
        (setting_types.bind_addresses, "a=gateway:8443", "has no IP address"),
        (setting_types.bind_addresses, "a=:8443", "has no IP address"),
        (setting_types.bind_addresses, "a=1.2.3.4:0", "name=ip:port"),
        (setting_types.bind_addresses, "a=1.2.3.4:1,a=1.2.3.4:2", "a listener twice"),
        (setting_types.bind_addresses, "a=1.2.3.4:1,b=1.2.3.4:1", "an address twice"),
        (setting_types.bind_addresses, "a=1.2.3.4:1,", "name=ip:port"),
        (setting_types.admin_bind, ":19000", "ip:port, unix:///path or off"),
        (setting_types.admin_bind, "example.com:19000", "ip:port, unix:///path or off"),
        (setting_types.admin_bind, "unix://relative", "ip:port, unix:///path or off"),
        (setting_types.admin_bind, "unix:///", "ip:port, unix:///path or off"),
        (setting_types.admin_bind, "unix:///" + "x" * 120, "at most 103 bytes"),
        (setting_types.denied_addresses, "loopback,none", "or none"),
        (setting_types.denied_addresses, "Loopback", "loopback, link-local, unspecified, multicast"),
        (setting_types.denied_addresses, "10.0.0.1/8", "has host bits set"),
        (setting_types.denied_addresses, "10.0.0.0/8,", "separated by commas"),
        (setting_types.path, "a\0b", "a path"),
        (setting_types.path, "~nobody-has-this-name/x", "home directory"),
        (setting_types.access_log, "~nobody-has-this-name/x", "home directory"),
        (setting_types.one_of(setting_types.LOG_LEVELS), "warning", "trace, debug, info, warn, error"),
    ],
)
def test_refuses_and_says_what_is_allowed(parse: Any, text: str, allowed: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(allowed)):
        parse(text)


@pytest.mark.parametrize("text", ["10.0.0.1:8443", "[fd00::1]:8443", "gateway:8443"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(setting_types.wan_address(text)) == text
