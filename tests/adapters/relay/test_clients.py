"""Who counts as one client."""

import pytest

from meshgate.adapters.relay.sockets import client_key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::9"),  # a /64 is one client's
        ("fe80::1%eth0", "fe80::2%eth1"),
        ("10.0.0.1", "::ffff:10.0.0.1"),  # as a listener on all IPv6 addresses calls it
    ],
)
def test_one_client(one: str, other: str) -> None:
    assert client_key(one) == client_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:2::1"),
        ("10.0.0.1", "10.0.0.2"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2"),
        ("::1", "::ffff:10.0.0.1"),
    ],
)
def test_two_clients(one: str, other: str) -> None:
    assert client_key(one) != client_key(other)
