"""Mesh gateway modes: which one an upstream of a sidecar has, where it was set, and where its traffic goes first.

The precedence is Consul's (`agent/structs/connect_proxy_config.go`, `agent/configentry/resolve.go`,
`agent/consul/discoverychain/compile.go`): the caller's configuration overrules that of the destination, and within it
what is more specific overrules what is more general. A mode matters only where the target is in another datacenter,
another partition or another cluster; within one, a gateway is never used.
"""

from collections.abc import Collection, Iterator
from dataclasses import astuple, dataclass, replace
from enum import StrEnum

from .sni import DEFAULT

NONE = "none"
LOCAL = "local"
REMOTE = "remote"


class SetBy(StrEnum):
    """Where a mode can be set, the lowest precedence first. The text is what an operator looks for."""

    DESTINATION = "service-defaults of the destination"
    PROXY_DEFAULTS = "proxy-defaults"
    SERVICE_DEFAULTS = "service-defaults"
    UPSTREAM_DEFAULTS = "service-defaults UpstreamConfig.Defaults"
    REGISTRATION = "registration Proxy.MeshGateway"
    OVERRIDE = "service-defaults UpstreamConfig.Overrides"
    UPSTREAM = "registration Proxy.Upstreams"


# The places that are listened to where the agent merges no central configuration, the lowest precedence first.
_WITHOUT_CENTRAL = (SetBy.PROXY_DEFAULTS, SetBy.DESTINATION, SetBy.REGISTRATION, SetBy.UPSTREAM)


@dataclass(frozen=True, slots=True)
class Modes:
    """The mode that each place of `SetBy`, in its order, sets for one upstream; "" where it sets none.

    `destination` is the destination's own service-defaults, all else is the caller's.
    """

    destination: str = ""
    proxy_defaults: str = ""
    service_defaults: str = ""
    upstream_defaults: str = ""
    registration: str = ""
    override: str = ""
    upstream: str = ""

    def layers(self, *, central: bool = True) -> Iterator[tuple[SetBy, str]]:
        """Places that set a mode and are listened to, the lowest precedence first.

        `central` says whether the agent merges central configuration into registrations. Where it does not, the
        caller's service-defaults have no effect; proxy-defaults still have one, by the discovery chain, and there the
        destination's service-defaults overrule them.
        """
        set_by = {place: mode for place, mode in zip(SetBy, astuple(self), strict=True) if mode}
        for place in SetBy if central else _WITHOUT_CENTRAL:
            if place in set_by:
                yield place, set_by[place]

    def unheard(self) -> tuple[SetBy, ...]:
        """Places whose mode is lost where central configuration is off."""
        heard = dict(self.layers(central=False))
        return tuple(place for place, _ in self.layers() if place not in heard)


@dataclass(frozen=True, slots=True)
class Effective:
    """The mode in force, `none` where no place sets one, and the places that set another and are overruled."""

    mode: str
    set_by: SetBy | None
    overruled: tuple[tuple[SetBy, str], ...] = ()


def effective_mode(modes: Modes, *, central: bool = True) -> Effective:
    layers = tuple(modes.layers(central=central))
    if not layers:
        return Effective(NONE, None)
    set_by, mode = layers[-1]
    return Effective(mode, set_by, tuple(layer for layer in layers[:-1] if layer[1] != mode))


def told_apart(configured: Modes, merged_registration: str, merged_upstream: str, *, central: bool = True) -> Modes:
    """`configured` with what the registration itself sets, from the form of it that the agent shows.

    An agent with central configuration shows registrations merged with it. A mode that is what that gives anyway is
    therefore taken to come from there; which place sets it makes no difference as long as nobody changes one.
    """
    if not central:
        return replace(configured, registration=merged_registration, upstream=merged_upstream)
    given = configured.service_defaults or configured.proxy_defaults
    known = replace(configured, registration="" if merged_registration == given else merged_registration)
    inherited = effective_mode(replace(known, destination=""))
    return replace(known, upstream="" if inherited.set_by and merged_upstream == inherited.mode else merged_upstream)


@dataclass(frozen=True, slots=True)
class Place:
    datacenter: str
    partition: str = DEFAULT


@dataclass(frozen=True, slots=True)
class Target:
    """One place that the discovery chain of an upstream leads to. `peer` is a peering's name, "" for none."""

    service: str
    datacenter: str
    sni: str
    namespace: str = DEFAULT
    partition: str = DEFAULT
    subset: str = ""
    peer: str = ""
    external: bool = False


class Hop(StrEnum):
    """Whom somebody dials on the way to a target."""

    SIDECAR = "the destination's sidecar"
    REMOTE_SIDECAR = "the remote sidecar at its WAN address"
    LOCAL_GATEWAY = "a gateway of the caller's datacenter at its LAN address"
    REMOTE_GATEWAY = "a gateway of the target's datacenter at its WAN address"
    PEER_GATEWAY = "a gateway of the peer at its WAN address"
    EXTERNAL = "the external address"


def first_hop(mode: str, own: Place, target: Target) -> Hop:
    """Whom a sidecar at `own` dials for `target`, as Consul configures it (`makeLoadAssignmentEndpointGroup`)."""
    if target.external:
        return Hop.EXTERNAL
    if target.peer:
        return Hop.LOCAL_GATEWAY if mode == LOCAL else Hop.PEER_GATEWAY
    if same_place(own, target):
        return Hop.SIDECAR
    return {LOCAL: Hop.LOCAL_GATEWAY, REMOTE: Hop.REMOTE_GATEWAY}.get(mode, Hop.REMOTE_SIDECAR)


def path(mode: str, own: Place, target: Target) -> tuple[Hop, ...]:
    """All that is dialed on the way, the first hop by the caller's sidecar and each further one by the one before."""
    first = first_hop(mode, own, target)
    if first is Hop.LOCAL_GATEWAY:
        return first, Hop.PEER_GATEWAY if target.peer else Hop.REMOTE_GATEWAY, Hop.SIDECAR
    if first in (Hop.REMOTE_GATEWAY, Hop.PEER_GATEWAY):
        return first, Hop.SIDECAR
    return (first,)


def same_place(own: Place, target: Target) -> bool:
    """Whether a target is so near that no mode applies to it."""
    return not target.peer and (target.datacenter, target.partition or DEFAULT) == (own.datacenter, own.partition)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known around a target; None where the token may not see it or nobody can be asked.

    The numbers count healthy gateways: those of the caller, and those of the target's datacenter and partition.
    `instances` counts what answers for the target, `exported` says whether its partition exports it to the caller's.
    """

    local_gateways: int | None = None
    remote_gateways: int | None = None
    instances: int | None = None
    exported: bool | None = None


def without_effect(
    modes: Modes, effective: Effective, own: Place, targets: Collection[Target], *, central: bool
) -> Iterator[str]:
    """What whoever configured an upstream may expect of a mode and does not get: a line each."""
    if not central:
        for place in modes.unheard():
            yield f"{place} sets a mode, but central configuration is off in this agent: enable_central_service_config"
    if effective.mode not in (NONE, LOCAL, REMOTE):
        yield f"{effective.set_by} sets the mode {effective.mode!r}, which is none: none, local or remote"
    # proxy-defaults are for all services, so it means nothing that they reach one nearby. Of a failover's targets the
    # first is mostly nearby.
    meant = effective.mode != NONE and effective.set_by in (SetBy.OVERRIDE, SetBy.UPSTREAM)
    if meant and all(same_place(own, target) for target in targets):
        yield f"{effective.set_by} sets mode {effective.mode}, but within one datacenter a gateway is never used"
    if effective.mode != NONE and all(target.external for target in targets):
        yield f"mode {effective.mode} has no effect: an external destination is never reached by a gateway"


def obstacles(mode: str, own: Place, target: Target, around: Surroundings) -> Iterator[str]:
    """What keeps calls from reaching a target: a line each, with what to do."""
    hop = first_hop(mode, own, target)
    where = f"{target.datacenter}/{target.partition}" if target.partition not in ("", DEFAULT) else target.datacenter
    if hop is Hop.LOCAL_GATEWAY and around.local_gateways == 0:
        yield f"mode local, but {own.datacenter} has no healthy mesh gateway: start one, or use mode remote"
    if hop in (Hop.LOCAL_GATEWAY, Hop.REMOTE_GATEWAY) and around.remote_gateways == 0 and not target.peer:
        yield f"mode {mode}, but {where} has no healthy mesh gateway: start one there"
    if around.instances == 0:
        place = f"peer {target.peer}" if target.peer else where
        yield f"{place} has no instance of {target.service} in the mesh that the token can see"
    if around.exported is False:
        partition = target.partition or DEFAULT
        yield (
            f"partition {partition} does not export {target.service} to {own.partition}: "
            f"add it to exported-services/{partition}"
        )
