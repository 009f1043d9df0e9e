"""Addresses: how they are written, which are numeric, which lead back to this gateway, which no stream is to reach.

A gateway decides by the server name alone, so a stream that it sends to itself comes to the same decision again, and
again, until a limit ends it. Nothing in the protocol notices that. An endpoint with such an address is a mistake in the
catalog: a service that was registered with the gateway's address, a gateway elsewhere that was given ours.

What always holds: an address counts as this gateway's only where that is certain. The address that other datacenters
dial may belong to a balancer that sends each datacenter's names to that one's gateways, so it is no proof for them.

Whoever may register a service chooses an address that the gateway dials. An address that means something on one machine
or one link alone (127.0.0.1, 169.254.169.254) is the gateway's own there, not the one of the node that was named, so it
leads strangers into this machine. Only an instance of the gateway's own node can mean it.
"""

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple

PORTS: Final = 1 << 16
LEADS_BACK: Final = "this is the gateway itself: the stream would come back to it without end"
IS_ADMIN: Final = "this is the gateway's admin address, and no service"
DENY_SETTING: Final = "MESHGATE_DENY_ENDPOINTS"

_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  (compared with, never bound)
_LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}


def host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(address: str) -> str:
    """The host in what `host_port` has written, without brackets."""
    return address.rpartition(":")[0].strip("[]")


class HostPort(NamedTuple):
    """A host (an IP address without brackets, a name, or "" for none) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return host_port(*self)


@lru_cache(maxsize=1 << 16)
def is_numeric(address: str) -> bool:
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
        admin: where the admin address listens.
    """

    listeners: frozenset[tuple[str, int]] = frozenset()
    machine: frozenset[str] = frozenset()
    registered: frozenset[tuple[str, int]] = frozenset()
    admin: frozenset[tuple[str, int]] = frozenset()

    def is_admin(self, address: str, port: int) -> bool:
        return self._is_met_at(address, port, self.admin)

    def leads_back(self, address: str, port: int, *, elsewhere: bool) -> bool:
        """Whether who dials a numeric address meets this gateway; `elsewhere`: it is said to be of another one."""
        if not elsewhere and (address, port) in self.registered:
            return True
        return self._is_met_at(address, port, self.listeners)

    def _is_met_at(self, dialed: str, port: int, listeners: frozenset[tuple[str, int]]) -> bool:
        hosts = [host for host, listening in listeners if listening == port]
        if not hosts:
            return False
        address = plain(dialed)
        if address.is_unspecified:  # The kernel dials loopback for it.
            address = ip_address(_LOOPBACK[address.version])
        if str(address) in hosts:
            return True
        if not any(host in _EVERYWHERE[address.version == 6 :] for host in hosts):
            return False
        return address.is_loopback or str(address) in self.machine


UNKNOWN: Final = OwnAddresses()

Network = IPv4Network | IPv6Network

# What means something on one machine or one link alone. Linux dials loopback for 0.0.0.0.
LOCAL_CLASSES: Final[dict[str, tuple[Network, ...]]] = {
    "loopback": (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
    "link-local": (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10")),
    "unspecified": (IPv4Network("0.0.0.0/8"), IPv6Network("::/128")),
    "multicast": (IPv4Network("224.0.0.0/4"), IPv6Network("ff00::/8")),
}
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address that is met.


@dataclass(frozen=True, slots=True)
class DeniedAddresses:
    """Addresses that no endpoint may have: those in `networks`, and on other nodes those of `LOCAL_CLASSES`."""

    classes: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    def why(self, address: str, *, own_node: bool) -> str:
        """Why no stream goes to a numeric address, "" where one may; `own_node`: the instance is of this node."""
        if self.classes and not own_node and (found := _local_class(address)) in self.classes:
            return f"a {found} address on another node, which {DENY_SETTING} refuses"
        for network in self.networks:
            if any(each in network for each in _meanings(address)):
                return f"an address in {network}, which {DENY_SETTING} refuses"
        return ""


NOTHING_DENIED: Final = DeniedAddresses()


def plain_network(text: str) -> Network:
    """A CIDR block, or ValueError; one of IPv4 addresses that are written as IPv6 ones as the IPv4 block that it is."""
    network = ip_network(text)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    return network if mapped is None else ip_network(f"{mapped}/{max(0, network.prefixlen - 96)}")


@lru_cache(maxsize=1 << 16)
def _local_class(address: str) -> str:
    meanings = _meanings(address)
    return next(
        (name for name, blocks in LOCAL_CLASSES.items() for block in blocks if any(it in block for it in meanings)), ""
    )


def _meanings(address: str) -> tuple[IPv4Address | IPv6Address, ...]:
    """The addresses that are met at one: itself, and the one that a translator makes of it."""
    met = plain(address)
    translated = isinstance(met, IPv6Address) and met in _NAT64
    return (met, IPv4Address(int(met) & 0xFFFFFFFF)) if translated else (met,)


@lru_cache(maxsize=1 << 16)
def plain(address: str) -> IPv4Address | IPv6Address:
    """An address without its zone, and an IPv4 address that is written as an IPv6 one."""
    parsed = ip_address(address.partition("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed
