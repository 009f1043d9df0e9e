"""Real TLS 1.3 handshakes with certificates on both sides, through a peer: what a sidecar's connection feels of it.

Clients and servers are processes of Python's `ssl`, all on the load's core, so their rate is bounded by the
cryptography there and not by a relay; the relay's share is its CPU time, and the latency that it adds.
"""

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from .certificates import client_context, make_certificates, server_context
from .load import SETTLE_SECONDS
from .peers import PYTHONPATH, Place, Subject
from .processes import Running, accepts, start, wait_until

PROCESSES = 8  # More clients than that share processes: the cryptography runs beside Python's lock.
SERVERS = 80  # More than there are clients: some may still be busy with the end of a stream.


def start_server(place: Place, port: int) -> Running:
    """A server that takes `SERVERS` streams at a time."""
    make_certificates(place.folder)
    running = _start(place, "tls-server", "serve", port)
    wait_until(lambda: accepts(port), "listening", running)
    return running


def handshakes(
    place: Place, subject: Subject, *, server_name: str, port: int, clients: int, seconds: float
) -> Mapping[str, float]:
    """Connect, handshake, one round trip, close, by `clients` at a time. `port` is that of who listens to them."""
    shares = [len(range(number, clients, PROCESSES)) for number in range(min(clients, PROCESSES))]
    callers = [
        _start(place, f"tls-client-{number}", "call", port, server_name, seconds, share)
        for number, share in enumerate(shares)
    ]
    try:
        for caller in callers:
            _line(caller)
        before = subject.running.cpu()
        begun = time.perf_counter()
        for caller in callers:
            assert caller.child.stdin is not None
            caller.child.stdin.write("\n")
        took = sorted(each for caller in callers for each in json.loads(_line(caller)))
        elapsed = time.perf_counter() - begun
        time.sleep(SETTLE_SECONDS)
        cpu = subject.running.cpu() - before
    finally:
        for caller in callers:
            caller.stop()
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
        environment={"PYTHONPATH": PYTHONPATH},
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
    context = server_context(Path())
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)

    def answer() -> None:
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Whoever only connects, to see whether somebody listens, is no failure.
            with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as stream:
                stream.sendall(stream.recv(64))
                stream.recv(1)

    for _ in range(SERVERS):
        threading.Thread(target=answer).start()


def call(port: int, server_name: str, seconds: float, clients: int) -> None:
    """Handshakes, `clients` at a time; prints what each took up to the first answer, in µs."""
    context = client_context(Path())
    message = bytes(range(64))
    took: list[int] = []
    wrong: list[Exception] = []

    def shake_hands() -> None:
        while (begun := time.perf_counter()) < deadline:
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with context.wrap_socket(sock, server_hostname=server_name) as stream:
                    stream.sendall(message)
                    if stream.recv(64) != message:
                        raise ValueError("wrong bytes came back")
                    took.append(round((time.perf_counter() - begun) * 1e6))

    def guarded() -> None:
        try:
            shake_hands()
        except Exception as error:  # noqa: BLE001 (told below)
            wrong.append(error)

    print("ready", flush=True)
    sys.stdin.readline()
    deadline = time.perf_counter() + seconds
    threads = [threading.Thread(target=guarded) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        sys.exit(repr(wrong[0]))
    print(json.dumps(took), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        call(int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), int(sys.argv[5]))
