"""This machine: addresses that the gateway takes, names that must resolve, files that it writes."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from meshgate.adapters.consul import RegistrationError
from meshgate.adapters.error_words import words_of
from meshgate.adapters.mesh_tls import RefusedError, connect
from meshgate.adapters.relay.sandbox import Mode, support
from meshgate.adapters.relay.sockets import bind
from meshgate.adapters.state import StateFileError, read
from meshgate.app.admin_client import response_to
from meshgate.app.errors import CommandError
from meshgate.app.gateway.from_settings import definition_of, listen_addresses
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import HostPort, is_numeric
from meshgate.core.durations import format_duration
from meshgate.core.prerequisites import Finding, failed, ok, wan_address, warning

_RESOLVE_SECONDS: Final = 3.0
_OWNER: Final = "run this as the user of the gateway; if that is who you are, make it the owner"


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
    elif running:
        found.append(ok("admin socket", f"{settings.admin_bind}, and a meshgate answers there"))
    elif settings.admin_bind is not None:
        found.append(_looked_at("admin socket", settings.admin_bind, _admin_socket))
    if running and settings.wan_address is not None:
        found.append(await _through_wan(settings.wan_address, settings.connect_timeout))
    return found


async def names(settings: Settings) -> list[Finding]:
    """Whether host names that are registered resolve, here at least."""
    hosts = {"LAN name": settings.address.host, "WAN name": settings.wan_address.host if settings.wan_address else ""}
    return [await _name(check, host) for check, host in hosts.items() if host and not is_numeric(host)]


async def _name(check: str, host: str) -> Finding:
    advice = "correct it, or the DNS of this machine; who dials the gateway must resolve it too"
    with trio.move_on_after(_RESOLVE_SECONDS):
        try:
            found = await trio.socket.getaddrinfo(host, None, type=trio.socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return failed(check, f"{host} does not resolve on this machine", advice)
        return ok(check, f"{host} is {', '.join(dict.fromkeys(str(each[4][0]) for each in found))}")
    return failed(check, f"{host} did not resolve within {_RESOLVE_SECONDS:g} s", advice)


def files(settings: Settings) -> list[Finding]:
    """Whether the files of the settings can be written by this user. None of them is."""
    found = []
    if settings.state_dir is not None:
        found.append(_looked_at("state folder", settings.state_dir, _state_folder))
    if settings.access_log not in ("off", "stdout", "stderr"):
        found.append(_looked_at("access log", Path(settings.access_log), _access_log))
    return found


def _looked_at(check: str, path: Path, look: Callable[[Path], Finding]) -> Finding:
    """What `look` finds; a folder on the way may not let this user pass."""
    try:
        return look(path)
    except OSError as error:
        return failed(check, f"{path}: {words_of(error)}", _OWNER)


def _state_folder(folder: Path) -> Finding:
    check = "state folder"
    if not folder.exists():
        return _may_be_made(check, folder, with_parents=True)
    if not folder.is_dir():
        return failed(check, f"{folder} is no folder", "set MESHGATE_STATE_DIR to one")
    if not os.access(folder, os.W_OK | os.X_OK):
        return failed(check, f"this user may not write to {folder}", _OWNER)
    try:
        kept = read(folder)
    except StateFileError as error:
        return failed(
            check, str(error), "remove the file, or set its owner and mode right: until then it is as good as none"
        )
    if kept is None:
        return ok(check, f"{folder}, without a catalog yet")
    age = format_duration(max(0, round(time.time() - kept.saved)))
    return ok(check, f"{folder} holds a catalog of {kept.snapshot.datacenter}, last known to be right {age} ago")


def _access_log(path: Path) -> Finding:
    check = "access log"
    if path.is_dir():
        return failed(check, f"{path} is a folder", "set MESHGATE_ACCESS_LOG to a file in it")
    if not path.exists():
        return _may_be_made(check, path)
    if not os.access(path, os.W_OK):
        return failed(check, f"this user may not write to {path}", _OWNER)
    return ok(check, f"{path} can be written")


def _may_be_made(check: str, path: Path, *, with_parents: bool = False) -> Finding:
    parent = next(each for each in path.absolute().parents if each.exists())
    if not with_parents and parent != path.absolute().parent:
        return failed(check, f"there is no folder {path.parent}", "make it")
    if not os.access(parent, os.W_OK | os.X_OK):
        return failed(check, f"this user may not make {path}", _OWNER)
    return ok(check, f"{path} can be made")


async def _running(settings: Settings) -> bool:
    """Whether a meshgate answers at the admin address."""
    if settings.admin_bind is None:
        return False
    try:
        await trio.to_thread.run_sync(response_to, settings.admin_bind, "/livez")
    except CommandError:
        return False
    return True


def _port(check: str, address: HostPort, running: bool) -> Finding:
    shown = str(address) if address.host else f"*:{address.port}"
    try:
        # Listen, too: somebody else may have bound the port and not listen yet.
        with bind(address.host, address.port, 0) as sock:
            sock.listen(1)
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
    if problem == errno.EADDRNOTAVAIL:
        return failed(check, f"{shown} is no address of this machine", "ip address lists those that are")
    return failed(check, f"{shown}: {os.strerror(problem).lower()}", "ip address lists the addresses of this machine")


def _admin_socket(path: Path) -> Finding:
    if path.exists() and not path.is_socket():
        return failed("admin socket", f"{path} is there, and no socket", "remove it, or set another --admin-bind")
    return _may_be_made("admin socket", path)


async def _through_wan(address: HostPort, seconds: float) -> Finding:
    """A gateway behind address translation may not reach its own WAN address although others do."""
    try:
        await (await connect(address.host, address.port, seconds=seconds)).aclose()
    except RefusedError as error:
        reason = str(error).removeprefix("connect: ")
        advice = "try it from another datacenter: some networks do not let a machine reach its own public address"
        return warning("WAN address answers", f"{address}: {reason}", advice)
    return ok("WAN address answers", str(address))
