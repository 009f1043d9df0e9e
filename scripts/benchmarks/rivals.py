"""The other products, configured for the same job: read the server name, forward the stream, terminate nothing.

Each has one thread that carries streams, logs nothing per stream, and is given room for as many streams as the
descriptor limit of 20,000 allows. Where a default would cost a rival something here (Envoy's limit of 1,024 connections
to a cluster, nginx's short listen queue), the default is raised.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.harness.ports import free_ports

from .peers import Peer, Place, Subject, Target
from .processes import accepts, start, wait_until


class Rival(Peer):
    """A program with a configuration file.

    Args:
        program: its path.
        libraries: where it has libraries that the system does not have.
    """

    label: str
    version_flag = "-v"

    def __init__(self, program: Path, libraries: Path | None = None) -> None:
        self.program = program
        self.environment = {} if libraries is None else {"LD_LIBRARY_PATH": str(libraries)}
        told = subprocess.run(
            [program, self.version_flag],
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        ).stdout
        number = re.search(r"(\d+\.\d+)\.\d+", told)
        self.title = f"{self.label} {number[1] if number else ''}".strip()

    def start(self, place: Place, targets: Sequence[Target]) -> Subject:
        """Write the configuration, start the program, wait until it listens."""
        port = free_ports(1)[0]
        file = place.folder / f"{self.name}.conf"
        file.write_text(self.configuration(port, targets, place.folder))
        running = start(
            self.command(file, place.folder), place.cores.relay, place.folder, self.name, environment=self.environment
        )
        wait_until(lambda: accepts(port), "listening", running)
        return Subject(running, port)

    def configuration(self, port: int, targets: Sequence[Target], folder: Path) -> str:
        """The configuration file."""
        raise NotImplementedError

    def command(self, file: Path, folder: Path) -> list[str | Path]:
        """The command line, in the foreground."""
        raise NotImplementedError


class Envoy(Rival):
    """tls_inspector, a filter chain for each server name, tcp_proxy: what Consul configures for a mesh gateway."""

    name = "envoy"
    label = "Envoy"
    version_flag = "--version"

    def configuration(self, port: int, targets: Sequence[Target], folder: Path) -> str:
        """JSON is YAML."""
        del folder
        inspector = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
        return json.dumps(
            {
                "admin": {"address": _address(free_ports(1)[0])},
                "static_resources": {
                    "listeners": [
                        {
                            "name": "gateway",
                            "address": _address(port),
                            "listener_filters": [
                                {"name": "envoy.filters.listener.tls_inspector", "typed_config": {"@type": inspector}}
                            ],
                            "filter_chains": [_chain(target) for target in targets],
                        }
                    ],
                    "clusters": [_cluster(target) for target in targets],
                },
            }
        )

    def command(self, file: Path, folder: Path) -> list[str | Path]:
        """One worker."""
        del folder
        # With its own suffix the file would be taken for something else.
        named = file.with_suffix(".json")
        file.rename(named)
        return [self.program, "-c", named, "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _chain(target: Target) -> dict[str, object]:
    proxy = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    name = target.server_name
    config = {"@type": proxy, "stat_prefix": name, "cluster": name}
    return {
        "filter_chain_match": {"server_names": [name]},
        "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": config}],
    }


def _cluster(target: Target) -> dict[str, object]:
    endpoint = {"endpoint": {"address": _address(target.port)}}
    return {
        "name": target.server_name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": target.server_name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [{"max_connections": 100000, "max_pending_requests": 100000}]},
    }


class Haproxy(Rival):
    """The hello is inspected, the backend looked up in a map, heavy streams are spliced."""

    name = "haproxy"
    label = "HAProxy"

    def configuration(self, port: int, targets: Sequence[Target], folder: Path) -> str:
        """`maxconn` keeps streams and splice pipes together under the descriptor limit."""
        names = folder / "haproxy.map"
        names.write_text("".join(f"{target.server_name} b{number}\n" for number, target in enumerate(targets)))
        backends = "".join(
            f"backend b{number}\n    server s 127.0.0.1:{target.port}\n" for number, target in enumerate(targets)
        )
        return f"""
global
    nbthread 1
    maxconn 7000
    maxpipes 1000
defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend gateway
    bind 127.0.0.1:{port} backlog 4096
    tcp-request inspect-delay 15s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    tcp-request content reject
    use_backend %[req.ssl_sni,lower,map({names})]
{backends}"""

    def command(self, file: Path, folder: Path) -> list[str | Path]:
        """In the foreground, without a master."""
        del folder
        return [self.program, "-db", "-f", file]


class Nginx(Rival):
    """stream with ssl_preread, and a map from the server name to an upstream. Half-closed streams live on."""

    name = "nginx"
    label = "nginx"

    def __init__(self, program: Path, libraries: Path | None, modules: Path) -> None:
        super().__init__(program, libraries)
        self.modules = modules

    def configuration(self, port: int, targets: Sequence[Target], folder: Path) -> str:
        """Nothing of it lies outside the folder."""
        dynamic = self.modules / "ngx_stream_module.so"
        numbered = list(enumerate(targets))
        names = "".join(f"        {t.server_name} u{number};\n" for number, t in numbered)
        upstreams = "".join(f"upstream u{number} {{ server 127.0.0.1:{t.port}; }}\n" for number, t in numbered)
        return f"""
{f"load_module {dynamic};" if dynamic.exists() else ""}
{"user root;" if os.geteuid() == 0 else ""}
worker_processes 1;
worker_rlimit_nofile 20000;
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 19900; }}
stream {{
    map_hash_bucket_size 256;
    map_hash_max_size 65536;
    map $ssl_preread_server_name $target {{
{names}    }}
{upstreams}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        ssl_preread on;
        proxy_pass $target;
        proxy_half_close on;
        proxy_connect_timeout 5s;
        proxy_timeout 1h;
    }}
}}
"""

    def command(self, file: Path, folder: Path) -> list[str | Path]:
        """`-e` and `-p` keep it from the system's own folders."""
        return [self.program, "-e", "stderr", "-p", folder, "-c", file]


def find_peers(unpacked: Path) -> tuple[list[Peer], list[str]]:
    """Everything that can be measured here, and a line for each rival that is not installed.

    Args:
        unpacked: where `scripts/bench --install` unpacked Debian's packages.
    """
    libraries = next(iter(unpacked.glob("usr/lib/*-linux-gnu*")), None)
    peers: list[Peer] = []
    missing = []
    envoy = shutil.which("envoy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if envoy is not None:
        peers.append(Envoy(Path(envoy)))
    else:
        missing.append("Envoy is not installed (its wheel is in the development dependencies)")
    haproxy, own = _find("haproxy", unpacked)
    if haproxy is not None:
        peers.append(Haproxy(haproxy, libraries if own else None))
    else:
        missing.append("HAProxy is not installed (--install gets it)")
    nginx, own = _find("nginx", unpacked)
    if nginx is not None:
        root = unpacked if own else Path("/")
        peers.append(Nginx(nginx, libraries if own else None, root / "usr/lib/nginx/modules"))
    else:
        missing.append("nginx is not installed (--install gets it)")
    return peers, missing


def _find(program: str, unpacked: Path) -> tuple[Path | None, bool]:
    """Where a program is, and whether it is an unpacked one."""
    system = shutil.which(program, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    if system is not None:
        return Path(system), False
    own = unpacked / "usr/sbin" / program
    return (own, True) if own.exists() else (None, False)
