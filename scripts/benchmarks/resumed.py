"""The ClientHello of a real sidecar that resumes a session.

Nearly all hellos of a sidecar do: Envoy keeps a ticket for each destination, and uses it from its second connection on.
`python -m benchmarks.resumed` records it anew, and that of OpenSSL, into `tests/data/hellos/resumed.jsonl`.
"""

import contextlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.harness.ports import free_ports

from .certificates import client_context, make_certificates, server_context
from .peers import sni
from .processes import accepts, start, wait_until

RECORDED: Final = Path(__file__).parents[2] / "tests" / "data" / "hellos" / "resumed.jsonl"
SERVICE: Final = "web"
_ENVOY: Final = "Envoy"


def sidecar_hello() -> bytes:
    """The recorded hello of Envoy, for `sni(SERVICE)`."""
    return bytes.fromhex(next(row["hex"] for row in _rows() if row["client"].startswith(_ENVOY)))


def main() -> None:
    """Record, and write what was recorded."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_certificates(folder)
        recorded = [
            {"client": client, "server_name": sni(SERVICE), "alpn": [], "hex": resumed_hello(folder, calls).hex()}
            for client, calls in ((_envoy_title(), _envoy), (_openssl_title(), _openssl))
        ]
    # That of Go, which takes a program of its own, stays.
    kept = [row for row in _rows() if not row["client"].startswith((_ENVOY, "OpenSSL"))]
    RECORDED.write_text("".join(json.dumps(row) + "\n" for row in (*recorded, *kept)), encoding="ascii")


def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDED.read_text(encoding="ascii").splitlines()]


def resumed_hello(folder: Path, calls: Callable[[Path, int], None]) -> bytes:
    """The hello of the first resumed session among the connections that `calls` makes to a port."""
    found: list[bytes] = []
    context = server_context(folder)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # Envoy offers no more to its upstreams unless it is told to.
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while not found:
                sock, _ = listener.accept()
                with sock, contextlib.suppress(OSError):
                    hello = sock.recv(1 << 14, socket.MSG_PEEK)
                    with context.wrap_socket(sock, server_side=True) as stream:
                        if stream.session_reused:
                            found.append(hello)
                        stream.sendall(stream.recv(64))
                        stream.recv(1)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        calls(folder, listener.getsockname()[1])
        server.join(5)
    if not found:
        raise SystemExit("no session was resumed")
    return found[0]


def _openssl(folder: Path, port: int) -> None:
    context, session = client_context(folder), None
    for _ in range(2):
        with (
            socket.create_connection(("127.0.0.1", port)) as sock,
            context.wrap_socket(sock, server_hostname=sni(SERVICE), session=session) as stream,
        ):
            stream.sendall(b"hello")
            stream.recv(64)
            session = stream.session


def _envoy_title() -> str:
    told = subprocess.run([_envoy_program(), "--version"], capture_output=True, text=True, check=True).stdout
    number = re.search(r"/(\d+\.\d+)\.\d+/", told)
    return f"{_ENVOY} {number[1] if number else ''} (upstream TLS, resumes)"


def _openssl_title() -> str:
    return f"{' '.join(ssl.OPENSSL_VERSION.split()[:2])} (resumes)"


def _envoy_program() -> Path:
    found = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if found is None:
        raise SystemExit("there is no envoy (its wheel is in the development dependencies)")
    return Path(found)


def _envoy(folder: Path, port: int) -> None:
    """Two connections through an Envoy that originates mTLS, as a sidecar's upstream does."""
    own = free_ports(1)[0]
    (folder / "sidecar.json").write_text(json.dumps(_sidecar(folder, own, port)))
    command: list[str | Path] = [_envoy_program(), "-c", folder / "sidecar.json", "--concurrency", "1"]
    envoy = start([*command, "--disable-hot-restart", "-l", "warn"], 0, folder, "sidecar")
    try:
        wait_until(lambda: accepts(own), "listening", envoy)
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", own)) as sock:
                sock.sendall(b"hello")
                sock.recv(64)
    finally:
        envoy.stop()


def _sidecar(folder: Path, own: int, port: int) -> dict[str, object]:
    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    leaf = {"filename": str(folder / "leaf.pem")}
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": sni(SERVICE),
        "common_tls_context": {
            "tls_params": {},
            "tls_certificates": [{"certificate_chain": leaf, "private_key": leaf}],
            "validation_context": {"trusted_ca": {"filename": str(folder / "ca.pem")}},
        },
    }
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "upstream",
        "cluster": "upstream",
    }
    cluster = {
        "name": "upstream",
        "transport_socket": {"name": "tls", "typed_config": tls},
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}],
        },
    }
    filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
    listener = {"name": "upstream", "address": address(own), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


if __name__ == "__main__":
    main()
