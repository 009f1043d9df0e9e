"""This machine: the addresses that the gateway is going to take, or has taken already."""

import errno
from pathlib import Path

import trio

from meshgate.adapters.consul import RegistrationError
from meshgate.adapters.mesh_tls import RefusedError, connect
from meshgate.adapters.relay.sandbox import Mode, support
from meshgate.adapters.relay.sockets import bind
from meshgate.app.admin_client import ask
from meshgate.app.errors import CommandError
from meshgate.app.gateway.from_settings import definition_of, listen_addresses
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import HostPort
from meshgate.core.prerequisites import Finding, failed, ok, wan_address, warning


def addresses(settings: Settings, *, federated: bool, reached: bool) -> list[Finding]:
    """What is registered: the LAN address has to be one of this machine, the WAN address one of somewhere.

    `reached` is whether the agent answers, whose address stands in for one that is not set.
    """
    found = []
    try:
        definition_of(settings).payload()
    except RegistrationError as error:
        found.append(failed("LAN address", str(error), "set --address or --bind-address"))
    else:
        address = settings.address
        if address.host:
            found.append(ok("LAN address", str(address)))
        elif reached:
            found.append(ok("LAN address", f"that of the agent, port {address.port}"))
        else:
            found.append(
                warning("LAN address", "that of the agent, which does not answer", "set --address, or start the agent")
            )
    wan = settings.wan_address
    found.append(wan_address(wan.host if wan else "", federated=federated))
    return found


def sandbox(settings: Settings) -> Finding:
    """Whether relay workers can be confined as wanted."""
    found = support()
    if settings.sandbox == Mode.OFF:
        return warning("sandbox", "off: relay workers keep all rights of this user", "MESHGATE_SANDBOX=auto")
    if not found.missing:
        return ok("sandbox", f"relay workers are confined: seccomp, Landlock {found.landlock}")
    advice = "a newer kernel, or a container runtime that allows seccomp and Landlock"
    wanting = failed if settings.sandbox == Mode.REQUIRE else warning
    return wanting("sandbox", "; ".join(found.missing), advice)


async def ports(settings: Settings) -> list[Finding]:
    """Whether each address can be bound, or is by the gateway that answers at the admin address."""
    running = await _running(settings)
    found = [
        _port(f"port {bind.name}", HostPort(bind.address, bind.port), running) for bind in listen_addresses(settings)
    ]
    if isinstance(settings.admin_bind, HostPort):
        found.append(_port("admin port", settings.admin_bind, running=running))
    elif isinstance(settings.admin_bind, Path):
        found.append(_admin_socket(settings.admin_bind, running=running))
    if running and settings.wan_address is not None:
        found.append(await _through_wan(settings.wan_address, settings.connect_timeout))
    return found


async def _running(settings: Settings) -> bool:
    """Whether a meshgate answers at the admin address."""
    if settings.admin_bind is None:
        return False
    try:
        await trio.to_thread.run_sync(ask, settings.admin_bind, "/livez")
    except CommandError:
        return False
    return True


def _port(check: str, address: HostPort, running: bool) -> Finding:
    shown = str(address) if address.host else f"*:{address.port}"
    try:
        _bind(address)
    except OSError as error:
        problem = error.errno or errno.EINVAL
    else:
        return ok(check, f"{shown} is free")
    if problem == errno.EADDRINUSE and running:
        return ok(check, f"{shown} is taken, and a meshgate is running")
    if problem == errno.EADDRINUSE:
        return failed(check, f"{shown} is taken by another process", f"ss -ltnp 'sport = {address.port}'")
    if problem == errno.EACCES:
        advice = "allow it: AmbientCapabilities=CAP_NET_BIND_SERVICE, or use a port from 1024"
        return failed(check, f"{shown}: this user may not bind it", advice)
    return failed(check, f"{shown}: {errno.errorcode.get(problem, problem)}", "is it this machine's?")


def _bind(address: HostPort) -> None:
    """Bind as the gateway does, and listen: somebody else may have bound the port and not listen yet."""
    with bind(address.host, address.port, 0) as sock:
        sock.listen(1)


def _admin_socket(path: Path, *, running: bool) -> Finding:
    if running:
        return ok("admin socket", f"{path}, and a meshgate answers there")
    if path.parent.is_dir():
        return ok("admin socket", f"{path} can be made")
    return failed("admin socket", f"there is no directory {path.parent}", "make it")


async def _through_wan(address: HostPort, seconds: float) -> Finding:
    """A gateway behind address translation may not reach its own WAN address although others do."""
    try:
        await (await connect(address.host, address.port, seconds=seconds)).aclose()
    except RefusedError as error:
        reason = str(error).removeprefix("connect: ")
        advice = "try it from another datacenter: some networks do not let a machine reach its own public address"
        return warning("WAN address answers", f"{address}: {reason}", advice)
    return ok("WAN address answers", str(address))
