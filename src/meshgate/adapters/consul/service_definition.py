"""The gateway's definition as `consul connect envoy -gateway=mesh -register` sends it to the agent.

Source: Consul's `command/connect/envoy/envoy.go` (`Register`, `canBind`). The opaque keys of `Proxy.Config` keep their
`envoy_` names, under which operators and Consul's documentation know them.
"""

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from meshgate.adapters.error_words import words_of
from meshgate.core.addresses import host_port
from meshgate.core.durations import format_duration
from meshgate.core.federation_routes import WAN_FEDERATION
from meshgate.core.proxy_config import BindAddress, ListenPlan, listen_plan

from .api import GATEWAY_KIND

CHECK_INTERVAL: Final = "10s"
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class RegistrationError(ValueError):
    """The definition cannot work on this machine. One line, which says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayDefinition:
    """What the gateway registers.

    `proxy_id` is the service name where it is empty. An empty `address` means the agent's, an empty `wan_address` that
    there is no `wan` tag. With `bind_addresses` the gateway listens there and nowhere else. `expose_servers` offers
    Consul's own servers to other datacenters. `deregister_after_critical` is in seconds.
    """

    service: str = GATEWAY_KIND
    proxy_id: str = ""
    address: str = ""
    port: int = 8443
    wan_address: str = ""
    wan_port: int = 0
    bind_addresses: tuple[BindAddress, ...] = ()
    expose_servers: bool = False
    deregister_after_critical: float = 21600.0
    namespace: str = ""
    partition: str = ""

    @property
    def id(self) -> str:
        """The ID of the registration, unique with the agent."""
        return self.proxy_id or self.service

    def payload(self) -> dict[str, Any]:
        """The body of the registration.

        Raises:
            RegistrationError: the LAN address is none of this machine and no bind address says where to listen.
        """
        body: dict[str, Any] = {
            "Kind": GATEWAY_KIND,
            "Name": self.service,
            "ID": self.id,
            "Port": self.port,
            "Weights": {"Passing": 1, "Warning": 1},
            "Check": self._check(),
        }
        optional: dict[str, Any] = {
            "Address": self.address,
            "TaggedAddresses": dict(self._tagged()),
            "Meta": dict([WAN_FEDERATION]) if self.expose_servers else {},
            "Proxy": self._proxy(),
            "Namespace": self.namespace,
            "Partition": self.partition,
        }
        return body | {key: value for key, value in optional.items() if value}

    def listen_plan(self) -> ListenPlan:
        """Where the gateway listens by this definition, whether or not this machine has the LAN address."""
        tagged = (BindAddress(tag, place["Address"], place["Port"]) for tag, place in self._tagged())
        return listen_plan(self.address, self.port, tagged, self._listeners())

    def _tagged(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.address:
            yield "lan", {"Address": self.address, "Port": self.port}
        if self.wan_address:
            yield "wan", {"Address": self.wan_address, "Port": self.wan_port or self.port}

    def _check(self) -> dict[str, Any]:
        # Without an address the gateway is on the agent's machine. The gateway listens before it registers, so the
        # check may start out as passing: else others shun a gateway for up to 10 s each time its agent has lost it.
        return {
            "Name": f"{GATEWAY_KIND} listening",
            "TCP": host_port(self.address or "127.0.0.1", self.port),
            "Interval": CHECK_INTERVAL,
            "DeregisterCriticalServiceAfter": format_duration(self.deregister_after_critical),
            "Status": "passing",
        }

    def _proxy(self) -> dict[str, Any]:
        if self.address and not self.bind_addresses and not can_bind(self.address):
            raise RegistrationError(
                f"the LAN address {self.address!r} cannot be bound here: set one that can, or name bind addresses"
            )
        listeners = self._listeners()
        return {"Config": listeners} if listeners else {}

    def _listeners(self) -> dict[str, Any]:
        """The opaque keys that say where to listen; none where the default does."""
        if self.bind_addresses:
            listeners = {bind.name: {"Address": bind.address, "Port": bind.port} for bind in self.bind_addresses}
            return {"envoy_gateway_no_default_bind": True, "envoy_gateway_bind_addresses": listeners}
        if self.address and self.wan_address and can_bind(self.wan_address):
            return {"envoy_gateway_no_default_bind": True, "envoy_gateway_bind_tagged_addresses": True}
        return {}


def can_bind(address: str) -> bool:
    """Whether this machine has the IP address; a host name never counts (Consul's `canBind`).

    Raises:
        RegistrationError: that cannot be found out now.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.inet_pton(family, address)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise RegistrationError(f"cannot try to bind {address!r}: {words_of(error)}") from None
        return False
    return True
