"""Addresses of the settings may be go-sockaddr templates, which this machine answers."""

import pytest

from meshgate.adapters import machine
from meshgate.app.errors import ConfigError
from meshgate.app.settings.settings import Settings

LOOPBACK = (
    '{{ GetAllInterfaces | include "flags" "loopback" | include "type" "ipv4" | sort "type,size" | attr "address" }}'
)


def load(**values: str) -> Settings:
    return Settings.load(environ={f"MESHGATE_{name}": value for name, value in values.items()})


def test_every_address_of_the_registration_may_be_one() -> None:
    settings = load(
        ADDRESS=f"{LOOPBACK}:8443", WAN_ADDRESS=f"{LOOPBACK}:443", BIND_ADDRESS=f"a={LOOPBACK}:1,b={LOOPBACK}:2"
    )
    assert str(settings.address) == "127.0.0.1:8443"
    assert str(settings.wan_address) == "127.0.0.1:443"
    assert [(bind.name, bind.address, bind.port) for bind in settings.bind_address] == [
        ("a", "127.0.0.1", 1),
        ("b", "127.0.0.1", 2),
    ]


def test_one_that_is_not_understood_is_a_wrong_setting() -> None:
    with pytest.raises(
        ConfigError, match=r"MESHGATE_ADDRESS=.* is not supported here, only GetInterfaceIP NAME, GetPri"
    ):
        load(ADDRESS="{{ GetSomething }}:8443")


def test_system_that_does_not_tell_its_addresses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(machine, "interfaces", refuse)
    with pytest.raises(ConfigError, match="the addresses of this machine cannot be listed: Address family"):
        load(ADDRESS="{{ GetPrivateIP }}:8443")
