"""Addresses: whether they are numeric, and which of them lead back to this gateway.

A gateway decides by the server name alone, so a stream that it sends to itself comes to the same decision again, and
again, until a limit ends it. Nothing in the protocol notices that. An endpoint with such an address is a mistake in the
catalog: a service that was registered with the gateway's address, a gateway elsewhere that was given ours.

What always holds: an address counts as this gateway's only where that is certain. The address that other datacenters
dial may belong to a balancer that sends each datacenter's names to that one's gateways, so it is no proof for them.
"""

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

PORTS: Final = 1 << 16
LEADS_BACK: Final = "this is the gateway itself: the stream would come back to it without end"

_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  (compared with, never bound)
_LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}


@lru_cache(maxsize=1 << 16)
def is_numeric(address: str) -> bool:
    """Whether an address is an IP address; a host name otherwise."""
    try:
        ip_address(address)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """What is known of them. All are numeric.

    Attributes:
        listeners: where this process listens; `0.0.0.0` and `::` are all addresses of the machine.
        machine: the addresses of the machine's interfaces. Loopback addresses need not be among them.
        registered: what Consul tells others to dial.
    """

    listeners: frozenset[tuple[str, int]] = frozenset()
    machine: frozenset[str] = frozenset()
    registered: frozenset[tuple[str, int]] = frozenset()

    def leads_back(self, address: str, port: int, *, elsewhere: bool) -> bool:
        """Whether who dials a numeric address meets this gateway; `elsewhere`: it is said to be of another one."""
        if not elsewhere and (address, port) in self.registered:
            return True
        hosts = [host for host, listening in self.listeners if listening == port]
        return bool(hosts) and self._is_met_at(_plain(address), hosts)

    def _is_met_at(self, address: IPv4Address | IPv6Address, hosts: list[str]) -> bool:
        if address.is_unspecified:  # The kernel dials loopback for it.
            address = ip_address(_LOOPBACK[address.version])
        if str(address) in hosts:
            return True
        if not any(host in _EVERYWHERE[address.version == 6 :] for host in hosts):
            return False
        return address.is_loopback or str(address) in self.machine


UNKNOWN: Final = OwnAddresses()


def _plain(address: str) -> IPv4Address | IPv6Address:
    """An address without its zone, and an IPv4 address that is written as an IPv6 one."""
    parsed = ip_address(address.partition("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed
