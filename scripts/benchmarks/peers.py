"""What is measured, and how it is started: our relay alone, and the floor under all relays.

The whole product is in `product`, the others are in `rivals`.
"""

import json
import os
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.harness.ports import free_ports

from .load import Load
from .processes import START_SECONDS, Cores, Running, accepts, start, tree, wait_until

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
SCRIPTS = Path(__file__).parents[1]
# Of the processes that run modules of this package.
PYTHONPATH = os.pathsep.join(map(str, (SCRIPTS, SCRIPTS.parent / "src", SCRIPTS.parent)))
# Streams a relay may hold at once. Each takes two descriptors, and the limit of many machines is 20,000.
MAX_STREAMS = 9500


def sni(service: str) -> str:
    """The server name of a service, as Consul spells it."""
    return f"{service}.default.dc1.internal.{TRUST_DOMAIN}"


@dataclass(frozen=True, slots=True)
class Target:
    """A server name, and the port of 127.0.0.1 that its streams go to."""

    server_name: str
    port: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where peers are started: a folder for configurations and logs, the cores, and the load with its backend."""

    folder: Path
    cores: Cores
    load: Load


class Helper(Protocol):
    """What a peer needs beside itself."""

    def stop(self) -> None:
        """It is not needed any more."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A peer that runs. `own_backend`: whether the load has to bring the backend along. `helpers` end with it."""

    running: Running
    port: int
    own_backend: bool = True
    helpers: tuple[Helper, ...] = ()

    def stop(self) -> None:
        """End it and its helpers."""
        self.running.stop()
        for helper in self.helpers:
            helper.stop()


class Peer(ABC):
    """Something that carries streams by server name. `name` is its key in results, `title` what people read."""

    name: str
    title: str

    @abstractmethod
    def start(self, place: Place, targets: Sequence[Target]) -> Subject:
        """Start it on the relay's core and wait until it listens."""


class Direct(Peer):
    """No relay: the backend on the relay's core. Its CPU time is the kernel's cost of one end of a stream."""

    name = "direct"
    title = "direct (floor)"

    def start(self, place: Place, targets: Sequence[Target]) -> Subject:
        """Start the backend alone; there is nothing to route."""
        del targets
        port = free_ports(1)[0]
        running = place.load.serve(port)
        wait_until(lambda: accepts(port), "listening", running)
        return Subject(running, port, own_backend=False)


class Relay(Peer):
    """Our relay alone, with one worker process and without a Consul: to see what the rest of the product costs."""

    name = "meshgate-relay"
    title = "meshgate's relay alone"

    def start(self, place: Place, targets: Sequence[Target]) -> Subject:
        """Start it; it tells its port."""
        running = start(
            [sys.executable, "-m", "benchmarks.gateway"],
            place.cores.relay,
            place.folder,
            self.name,
            environment={"PYTHONPATH": PYTHONPATH},
            talks=True,
        )
        routes = {target.server_name: target.port for target in targets}
        port = ask(running, {"routes": routes, "max_connections": MAX_STREAMS, "workers": 1})
        # The parent listens before its workers have started.
        wait_until(lambda: len(tree(running.child.pid)) > 1 and _serves(port), "serving", running)
        return Subject(running, port)


def _serves(port: int) -> bool:
    """Whether a stream without a hello is accepted and answered with its end."""
    with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as sock:
        sock.shutdown(socket.SHUT_WR)
        return sock.recv(1) == b""


def ask(running: Running, message: object) -> Any:  # noqa: ANN401  (JSON)
    """Send our process a line of JSON, and take the line that it answers with."""
    assert running.child.stdin is not None
    assert running.child.stdout is not None
    running.child.stdin.write(json.dumps(message) + "\n")
    line = running.child.stdout.readline()
    if not line:
        running.child.wait()
        raise running.failure("ended")
    return json.loads(line)
