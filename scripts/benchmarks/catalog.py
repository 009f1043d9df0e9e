"""The control plane with a large catalog: `meshgate run` itself beside a double of Consul, in processes of their own.

Measured are the processor time of all its processes while services change, how long a change takes to the route table,
how long the first stream to a service without traffic takes, and the memory that a service costs.
"""

import json
import random
import socket
import ssl
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.harness.ports import free_ports

from .large_consul import GREETING
from .peers import PYTHONPATH, SCRIPTS, Place, ask, sni
from .processes import BenchError, Running, start

DATACENTERS = 50
EACH = 4  # instances of a service
PATIENCE = 90.0
LATENCIES = 20  # measured changes
# Seconds after the start from which on it is measured: a gateway that is younger asks its agent more often.
SETTLED = 60.0


class _Product:
    """`meshgate run`, and the admin address that tells what it knows."""

    def __init__(self, place: Place, folder: Path, port: int, consul_port: int, workers: int) -> None:
        self.port, self._admin = port, free_ports(1)[0]
        self.start_seconds = 0.0
        environment = {
            "CONSUL_HTTP_ADDR": f"127.0.0.1:{consul_port}",
            "MESHGATE_ADDRESS": f"127.0.0.1:{self.port}",
            "MESHGATE_ADMIN_BIND": f"127.0.0.1:{self._admin}",
            "MESHGATE_REGISTER": "false",
            "MESHGATE_STATE_DIR": str(folder / "state"),
            "MESHGATE_WORKERS": str(workers),
            "MESHGATE_DRAIN_TIMEOUT": "1s",
            "MESHGATE_DENY_ENDPOINTS": "none",  # Everything is on this machine, whatever node it is registered for.
            "PYTHONPATH": str(SCRIPTS.parent / "src"),
        }
        command = [sys.executable, "-m", "meshgate", "run"]
        self.running = start(command, place.cores.relay, folder, "meshgate", environment=environment)

    def ask(self, path: str) -> Any:  # noqa: ANN401  (JSON)
        """An answer of the admin address."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._admin}{path}", timeout=20) as answer:
            return json.load(answer)

    def ready(self) -> bool:
        """Whether it serves."""
        try:
            return bool(self.ask("/readyz")["ready"])
        except OSError:
            return False

    def ports(self, service: int) -> set[int]:
        """To which ports a stream of a service would be sent now; none where it would be sent nowhere.

        A service that is not in use is learned of when this is asked, as it is when a stream comes.
        """
        explanation = self.ask(f"/explain?sni={sni(f'service-{service}')}")
        return {int(endpoint["port"]) for endpoint in explanation["endpoints"]}

    def listed(self, service: int) -> set[int]:
        """The ports of a service in the table as it is."""
        rows = (row for row in self.ask("/routes")["routes"] if row["sni"] == sni(f"service-{service}"))
        return {int(endpoint["port"]) for row in rows for endpoint in row["endpoints"]}

    def stream(self, service: int) -> float:
        """Begin a stream to a service; the seconds until its instance has answered.

        Raises:
            BenchError: it was refused.
        """
        outgoing = ssl.MemoryBIO()
        context = ssl.create_default_context()
        connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=sni(f"service-{service}"))
        with suppress(ssl.SSLWantReadError):
            connection.do_handshake()
        hello = outgoing.read()
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
            sock.sendall(hello)
            answer = sock.recv(100)
            if answer == GREETING:
                return time.perf_counter() - began
        raise BenchError(f"the first stream to service-{service} was refused: {answer!r}")


def large_catalog(place: Place, *, services: int, seconds: float, workers: int = 2) -> Mapping[str, float]:
    """Numbers of a gateway that follows so many services, of which one changes each second."""
    with TemporaryDirectory(dir=place.folder) as name, ExitStack() as stack:
        folder = Path(name)
        empty = stack.enter_context(_product(place, folder / "small", 1, workers))
        time.sleep(1)
        base = empty[0].running.memory()
        stack.close()
        product, consul = stack.enter_context(_product(place, folder / "large", services, workers))
        time.sleep(2)
        memory = product.running.memory()
        in_use = random.Random(1).sample(range(services), min(40, services // 2))
        for service in in_use:
            product.stream(service)
        time.sleep(SETTLED)
        busy = _cpu_while_changing(product, consul, range(services), seconds)
        used = _cpu_while_changing(product, consul, in_use, seconds)
        quiet = _cpu(product, seconds / 2)
        cold = [service for service in range(services) if service not in in_use]
        random.Random(2).shuffle(cold)
        watched = [_seconds_to_table(consul, service, product.ports, 0.005) for service in in_use[:LATENCIES]]
        swept = [_seconds_to_table(consul, service, product.listed, 0.25) for service in cold[:3]]
        again = [product.stream(service) for service in in_use]
        first = [product.stream(service) for service in cold[10:50]]
        _, connections = ask(consul, {"do": "count"})
        return {
            "cpu_percent": 100 * busy,
            "used_percent": 100 * used,
            "quiet_percent": 100 * quiet,
            "table_ms": 1e3 * statistics.median(watched),
            "table_max_ms": 1e3 * max(watched),
            "cold_s": max(swept),
            "again_ms": 1e3 * statistics.median(again),
            "first_ms": 1e3 * statistics.median(first),
            "first_max_ms": 1e3 * max(first),
            "kb_per_service": (memory - base) / services / 1e3,
            "mb": memory / 1e6,
            "start_s": product.start_seconds,
            "connections": connections,
        }


@contextmanager
def _product(place: Place, folder: Path, services: int, workers: int) -> Iterator[tuple[_Product, Running]]:
    folder.mkdir()
    module = [sys.executable, "-m", f"{__package__}.large_consul"]
    consul = start(module, place.cores.load, folder, "consul", environment={"PYTHONPATH": PYTHONPATH}, talks=True)
    try:
        port = free_ports(1)[0]
        size = {"services": services, "instances": EACH * services, "datacenters": DATACENTERS, "gateway": port}
        product = _Product(place, folder, port, ask(consul, size), workers)
        began = time.perf_counter()
        try:
            while not product.ready():
                product.running.check()
                if time.perf_counter() - began > PATIENCE:
                    raise product.running.failure("is not ready")
                time.sleep(0.1)
            product.start_seconds = time.perf_counter() - began
            yield product, consul
        finally:
            product.running.stop()
    finally:
        consul.stop()


def _cpu(product: _Product, seconds: float) -> float:
    """The share of a core that all processes use."""
    before, began = product.running.cpu(), time.perf_counter()
    time.sleep(seconds)
    return (product.running.cpu() - before) / 1e9 / (time.perf_counter() - began)


def _cpu_while_changing(product: _Product, consul: Running, services: Sequence[int], seconds: float) -> float:
    drawn = random.Random(3)
    before, began = product.running.cpu(), time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        ask(consul, {"do": "change", "service": drawn.choice(services)})
        time.sleep(max(0.0, 1 - (time.perf_counter() - now)))
    return (product.running.cpu() - before) / 1e9 / (time.perf_counter() - began)


def _seconds_to_table(consul: Running, service: int, ports: Callable[[int], set[int]], pause: float) -> float:
    port = ask(consul, {"do": "change", "service": service})
    began = time.perf_counter()
    while ports(service) != {port}:
        if time.perf_counter() - began > PATIENCE:
            raise BenchError(f"a change of service-{service} did not reach the table")
        time.sleep(pause)
    return time.perf_counter() - began
