"""A network of its own for a run, where this machine allows it: each process an address, and links that can be cut.

The whole run moves into a network namespace that it makes (as root, or in a user namespace where the kernel lets
anybody make one), with a bridge. Each place is a namespace with one link to that bridge. None has a name: they end with
the processes in them, and nothing of this machine's own network is touched. Two places are cut from each other by
neighbour entries that lead nowhere, on both sides: packets vanish without a word, connections stay as they are.

Without the right or the tools all is on 127.0.0.1 and nothing can be cut.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness.instance import HOST
from tests.harness.process import Child
from tests.harness.waiting import until

_INSIDE: Final = "SOAKING_NETWORK"
_TOOLS: Final = ("ip", "nsenter", "unshare")
_NOWHERE: Final = "02:ff:ff:ff:ff:ff"
_NET: Final = "10.77"


def enter() -> str:
    """Starts this program anew in a network namespace of its own; comes back in there, or where that cannot be.

    Gives what stands against it, empty where nothing does.
    """
    if _INSIDE in os.environ:
        return os.environ[_INSIDE]
    why = ""
    command = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    if lacking := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        why = f"no {', '.join(lacking)} here"
    else:
        trial = "ip link set lo up && ip link add br0 type bridge && ip link add v0 type veth peer name v1"
        tried = subprocess.run([*command, "sh", "-c", trial], capture_output=True, text=True, check=False)
        if tried.returncode:
            why = (tried.stderr.strip().splitlines() or ["not permitted"])[-1]
    os.environ[_INSIDE] = why
    if not why:
        os.execvp(command[0], [*command, sys.executable, *sys.orig_argv[1:]])
    return why


@dataclass(frozen=True)
class Place:
    """Where processes run: their address, and what to put before a command so that it runs there."""

    address: str = HOST
    prefix: tuple[str, ...] = ()


class Network:
    """The places of a run. `why_not` says why nothing can be cut, empty where it can."""

    def __init__(self, why_not: str, folder: Path) -> None:
        self.why_not = why_not
        self._folder = folder
        self._holders: list[Child] = []
        if not why_not:
            _ip(
                "link set lo up",
                "link add br0 type bridge",
                f"addr add {_NET}.0.1/16 dev br0",
                "link set br0 up",
            )
            _forget_soon(Place())

    async def place(self) -> Place:
        """A new place, linked to all others."""
        if self.why_not:
            return Place()
        number = len(self._holders) + 2
        address, link = f"{_NET}.{number >> 8}.{number & 255}", f"p{number}"
        holder = Child(["unshare", "--net", "sleep", "infinity"], name=link, log=self._folder / "network.log")
        self._holders.append(holder)
        theirs = f"/proc/{holder.pid}/ns/net"

        async def missing() -> str | None:
            return "no namespace" if os.path.samefile("/proc/self/ns/net", theirs) else None  # noqa: ASYNC240, PTH121

        await until("a place of its own", missing)
        _ip(f"link add {link} type veth peer name eth0 netns {holder.pid}", f"link set {link} master br0 up")
        place = Place(address, ("nsenter", f"--net={theirs}", "--"))
        _ip("link set lo up", f"addr add {address}/16 dev eth0", "link set eth0 up", at=place)
        _forget_soon(place)
        return place

    def cut(self, some: Iterable[Place], others: Iterable[Place]) -> None:
        """From now on nothing that the ones send reaches the others, nor back."""
        others = list(others)
        for one in some:
            _ip(*(_neighbour("replace", other, f"lladdr {_NOWHERE} nud permanent") for other in others), at=one)
            for other in others:
                _ip(_neighbour("replace", one, f"lladdr {_NOWHERE} nud permanent"), at=other)

    def heal(self, some: Iterable[Place], others: Iterable[Place]) -> None:
        """Undoes `cut`."""
        others = list(others)
        for one in some:
            _ip(*(_neighbour("del", other) for other in others), at=one)
            for other in others:
                _ip(_neighbour("del", one), at=other)

    async def close(self) -> None:
        """Ends what holds the places."""
        for holder in self._holders:
            await holder.kill()


def _forget_soon(place: Place) -> None:
    """Let the kernel remember few connections that are over: millions of streams need their ports again."""
    folder = "/proc/sys/net/ipv4"
    command = f"echo 1000 > {folder}/tcp_max_tw_buckets; echo 1100 65000 > {folder}/ip_local_port_range"
    subprocess.run([*place.prefix, "sh", "-c", command], capture_output=True, check=False)


def _neighbour(action: str, place: Place, more: str = "") -> str:
    return f"neigh {action} {place.address} dev eth0 {more}"


def _ip(*lines: str, at: Place = Place(HOST)) -> None:
    command: Sequence[str] = (*at.prefix, "ip", "-batch", "-")
    subprocess.run(command, input="\n".join(lines), text=True, capture_output=True, check=True)
