"""Keeps track of the addresses that lead back to this gateway."""

import time
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from meshgate.adapters.machine import machine_addresses
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import OwnAddresses, is_numeric
from meshgate.core.host_port import HostPort
from meshgate.core.proxy_config import BindAddress

_KEPT_SECONDS: Final = 10.0  # The kernel's list can be long on a machine that routes for others.


class OwnAddressKeeper:
    """Puts together where the gateway listens, what it is registered with, and what the machine has."""

    def __init__(self, settings: Settings) -> None:
        self._registered = frozenset(_numeric((settings.address, settings.wan_address)))
        self._machine: frozenset[str] = frozenset()
        self._looked_at = float("-inf")

    def now(self, listeners: Iterable[tuple[str, int]]) -> OwnAddresses:
        """The addresses of this moment; those of the machine are up to ten seconds old.

        Args:
            listeners: where the relay is bound.
        """
        if time.monotonic() - self._looked_at > _KEPT_SECONDS:
            self._machine, self._looked_at = machine_addresses(), time.monotonic()
        return OwnAddresses(frozenset(listeners), self._machine, self._registered)

    def is_own(self, bound: Iterable[BindAddress], host: str, port: int) -> bool:
        """Whether who dials an address meets this process, which is bound to these; False for a host name."""
        listeners = ((bind.address or "0.0.0.0", bind.port) for bind in bound)  # noqa: S104 - compared, never bound
        return is_numeric(host) and self.now(listeners).leads_back(host, port, elsewhere=False)


def _numeric(addresses: Iterable[HostPort | None]) -> Iterable[tuple[str, int]]:
    for address in addresses:
        if address is None:
            continue
        try:
            ip_address(address.host)
        except ValueError:
            continue  # a host name, or none
        yield address.host, address.port
