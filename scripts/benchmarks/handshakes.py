"""Real TLS 1.3 handshakes with certificates on both sides, through a peer: what a sidecar's connection feels of it.

Clients and servers are processes of Python's `ssl`, all on the load's core, so their rate is bounded by the
cryptography there and not by a relay; the relay's share is its CPU time, and the latency that it adds.
"""

import contextlib
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from .load import SETTLE_SECONDS
from .peers import SCRIPTS, Place, Subject
from .processes import Running, accepts, start, wait_until

CLIENTS = 2
SERVERS = 4  # One of them may still be busy with the end of a stream.


def start_server(place: Place, port: int) -> Running:
    """A server that takes `SERVERS` streams at a time."""
    make_certificates(place.folder)
    running = _start(place, "tls-server", "serve", port)
    wait_until(lambda: accepts(port), "listening", running)
    return running


def handshakes(place: Place, subject: Subject, *, server_name: str, port: int, seconds: float) -> Mapping[str, float]:
    """Connect, handshake, one round trip, close, from `CLIENTS` processes. `port` is that of who listens to them."""
    clients = [_start(place, f"tls-client-{n}", "call", port, server_name, seconds) for n in range(CLIENTS)]
    try:
        for client in clients:
            _line(client)
        before = subject.running.cpu()
        begun = time.perf_counter()
        for client in clients:
            assert client.child.stdin is not None
            client.child.stdin.write("\n")
        took = sorted(each for client in clients for each in json.loads(_line(client)))
        elapsed = time.perf_counter() - begun
        time.sleep(SETTLE_SECONDS)
        cpu = subject.running.cpu() - before
    finally:
        for client in clients:
            client.stop()
    return {
        "cpu_us": cpu / len(took) / 1e3,
        "per_s": len(took) / elapsed,
        "p50_us": took[len(took) // 2],
        "p99_us": took[len(took) * 99 // 100],
    }


def _start(place: Place, name: str, *words: object) -> Running:
    command = [sys.executable, "-m", "benchmarks.handshakes", *map(str, words)]
    return start(
        command,
        place.cores.load,
        place.folder,
        name,
        environment={"PYTHONPATH": str(SCRIPTS)},
        talks=words[0] == "call",
    )


def _line(client: Running) -> str:
    assert client.child.stdout is not None
    line = client.child.stdout.readline()
    if not line:
        client.child.wait()
        raise client.failure("ended")
    return line


# --- in processes of their own ---------------------------------------------------------------------------------------


def serve(port: int) -> None:
    """Answer 64 bytes with 64 bytes, a stream at a time in each of the threads, until killed."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)

    def answer() -> None:
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Whoever only connects, to see whether somebody listens, is no failure.
            with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as stream:
                stream.sendall(stream.recv(64))
                stream.recv(1)

    threads = [threading.Thread(target=answer) for _ in range(SERVERS)]
    for thread in threads:
        thread.start()


def call(port: int, server_name: str, seconds: float) -> None:
    """Handshakes one after another; prints what each took up to the first answer, in µs."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    message = bytes(range(64))
    print("ready", flush=True)
    sys.stdin.readline()
    took = []
    deadline = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < deadline:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(sock, server_hostname=server_name) as stream:
                stream.sendall(message)
                if stream.recv(64) != message:
                    sys.exit("wrong bytes came back")
                took.append(round((time.perf_counter() - begun) * 1e6))
    print(json.dumps(took), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        call(int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
