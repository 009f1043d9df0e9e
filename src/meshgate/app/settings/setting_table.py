"""Every setting there is, as one table.

The flags of the commands, `.env.example`, `meshgate config` and the reference page are all made from it. A row's name
is its environment variable; a `MESHGATE_` row's value is the field of `Settings` with the rest of that name, and its
flag is that rest too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from meshgate.adapters import machine
from meshgate.app.settings import setting_types as types
from meshgate.core.addresses import LOCAL_CLASSES
from meshgate.core.weak_decode import parse_bool

PREFIX: Final = "MESHGATE_"

CONSUL: Final = "Consul"


@dataclass(frozen=True, slots=True)
class Setting:
    """A row: an environment variable, and its flag on the command line, "" where there is none.

    `help` is one sentence, and `metavar` the shape of the value. `default` is as a user would write it, "" for none, or
    a function that finds it on this machine; `default_note` says it in words, where it depends on something. `parse`
    raises ValueError with what is allowed. `values` are what it may be, where that is few words.
    """

    name: str
    help: str
    default: str | Callable[[], str] = ""
    parse: Callable[[str], object] = str
    metavar: str = "TEXT"
    flag: str = ""
    default_note: str = ""
    secret: bool = False
    values: tuple[str, ...] = ()
    section: str = ""

    @property
    def is_boolean(self) -> bool:
        """Whether its flag takes no value: `--name`, `--no-name`, `--name=true`."""
        return self.parse is parse_bool

    @property
    def is_repeatable(self) -> bool:
        return self.parse is types.bind_addresses

    @property
    def wants_path(self) -> bool:
        return self.metavar in ("PATH", "TARGET")

    @property
    def field(self) -> str:
        """Its field in `Settings`; "" for Consul's own variables."""
        return self.name.removeprefix(PREFIX).lower() if self.name.startswith(PREFIX) else ""

    def default_text(self) -> str:
        return self.default if isinstance(self.default, str) else self.default()


def _consul(name: str, help_: str, flag: str = "", metavar: str = "TEXT", default: str = "") -> Setting:
    secret = name in ("CONSUL_HTTP_TOKEN", "CONSUL_HTTP_AUTH")
    return Setting(name, help_, default, metavar=metavar, flag=flag, secret=secret)


def _ours(
    name: str,
    help_: str,
    default: str | Callable[[], str],
    parse: Callable[[str], object],
    metavar: str,
    note: str = "",
    values: tuple[str, ...] = (),
) -> Setting:
    flag = "--" + name.removeprefix(PREFIX).lower().replace("_", "-")
    return Setting(name, help_, default, parse, metavar, flag, note, values=values)


def _boolean(name: str, help_: str, default: str) -> Setting:
    return _ours(name, help_, default, parse_bool, "BOOL")


def _duration(name: str, help_: str, default: str, parse: Callable[[str], float]) -> Setting:
    return _ours(name, help_, default, parse, "DURATION")


def _number(name: str, help_: str, default: str | Callable[[], str], low: int, high: int, note: str = "") -> Setting:
    return _ours(name, help_, default, types.whole(low, high), "NUMBER", note)


def _choice(name: str, help_: str, default: str, words: tuple[str, ...], metavar: str) -> Setting:
    return _ours(name, help_, default, types.one_of(words), metavar, values=words)


def _path(name: str, help_: str) -> Setting:
    return _ours(name, help_, "", types.path, "PATH")


_CONSUL_ROWS: Final = (
    _consul(
        "CONSUL_HTTP_ADDR",
        "Address of the local Consul agent: host:port, http://, https:// or unix:///path.",
        "--http-addr",
        "ADDRESS",
        "127.0.0.1:8500",
    ),
    _consul("CONSUL_HTTP_SSL", "Speak HTTPS to the agent.", metavar="BOOL", default="false"),
    _consul(
        "CONSUL_HTTP_SSL_VERIFY", "Verify the agent's certificate when HTTPS is used.", metavar="BOOL", default="true"
    ),
    _consul("CONSUL_HTTP_TOKEN", "ACL token.", "--token", "TOKEN"),
    _consul(
        "CONSUL_HTTP_TOKEN_FILE",
        "File with the ACL token; overrides a token from the same source, and is read again when it changes.",
        "--token-file",
        "PATH",
    ),
    _consul("CONSUL_HTTP_AUTH", "HTTP basic authentication, user:password."),
    _consul("CONSUL_CACERT", "CA certificates to verify the agent with.", "--ca-file", "PATH"),
    _consul("CONSUL_CAPATH", "Directory of CA certificates to verify the agent with.", "--ca-path", "PATH"),
    _consul("CONSUL_CLIENT_CERT", "Client certificate for the agent.", "--client-cert", "PATH"),
    _consul("CONSUL_CLIENT_KEY", "Key of the client certificate.", "--client-key", "PATH"),
    _consul("CONSUL_TLS_SERVER_NAME", "Server name to verify the agent's certificate against.", "--tls-server-name"),
    _consul("CONSUL_NAMESPACE", "Namespace (Consul Enterprise).", "--namespace", "NAME"),
    _consul("CONSUL_PARTITION", "Admin partition (Consul Enterprise).", "--partition", "NAME"),
)

_REGISTRATION_ROWS: Final = (
    _ours("MESHGATE_SERVICE", "Service name of the gateway in Consul.", "mesh-gateway", types.name, "NAME"),
    _ours("MESHGATE_PROXY_ID", "Service ID of the gateway on its agent.", "", types.name, "ID", "the service name"),
    _ours(
        "MESHGATE_ADDRESS",
        "LAN address to register, and to listen on unless there are bind addresses; without a host, the node's.",
        ":8443",
        types.lan_address,
        "[HOST]:PORT",
    ),
    _ours(
        "MESHGATE_WAN_ADDRESS",
        "Address that other datacenters dial, registered as the tagged address wan.",
        "",
        types.wan_address,
        "HOST:PORT",
    ),
    _ours(
        "MESHGATE_BIND_ADDRESS",
        "Listeners to open instead of the LAN address: name=ip:port, comma-separated; the flag may be repeated.",
        "",
        types.bind_addresses,
        "NAME=IP:PORT",
    ),
    _boolean(
        "MESHGATE_EXPOSE_SERVERS",
        "Register with the meta consul-wan-federation=1, for WAN federation through mesh gateways.",
        "false",
    ),
    _boolean(
        "MESHGATE_REGISTER",
        "Register the gateway with the agent; false: use an existing registration.",
        "true",
    ),
    _ours(
        "MESHGATE_LOGIN_AUTH_METHOD",
        "Log in to Consul with this auth method, instead of a token; the gateway logs out at the end.",
        "",
        str,
        "NAME",
    ),
    _path("MESHGATE_LOGIN_BEARER_TOKEN_FILE", "File with the bearer token for the login; read at each login."),
    _ours(
        "MESHGATE_NODE_NAME",
        "Catalog node of a registration that others make, without an agent.",
        "",
        str,
        "NAME",
    ),
    _duration(
        "MESHGATE_DEREGISTER_AFTER_CRITICAL",
        "How long the gateway may be critical before its agent deregisters it.",
        "6h",
        types.duration(),
    ),
)

_STREAM_ROWS: Final = (
    _duration(
        "MESHGATE_HELLO_TIMEOUT", "How long a client may take to send its ClientHello.", "15s", types.duration(0.001)
    ),
    _duration(
        "MESHGATE_CONNECT_TIMEOUT",
        "How long connecting may take, all attempts together, unless the service's resolver sets it.",
        "5s",
        types.duration(0.001),
    ),
    _duration(
        "MESHGATE_PER_TRY_TIMEOUT",
        "How long one attempt may take while another endpoint is left; 0: the connect timeout.",
        "1s",
        types.duration(),
    ),
    _duration(
        "MESHGATE_HANDSHAKE_TIMEOUT",
        "How long a client may take to continue the handshake after the endpoint's answer; 0: no limit.",
        "15s",
        types.duration(0.001, zero=True),
    ),
    _duration(
        "MESHGATE_IDLE_TIMEOUT",
        "Close a stream after this long without a byte; 0: never.",
        "1h",
        types.duration(0.001, zero=True),
    ),
    _duration(
        "MESHGATE_HALF_CLOSE_TIMEOUT",
        "Idle timeout of half-closed streams; 0: the same as for all streams.",
        "0",
        types.duration(0.001, zero=True),
    ),
    _duration(
        "MESHGATE_KEEPALIVE",
        "Idle time before TCP keepalive probes, on both connections of a stream; 0: none.",
        "60s",
        # The kernel takes whole seconds up to MAX_TCP_KEEPIDLE.
        types.duration(1, high=32767, zero=True),
    ),
    _duration(
        "MESHGATE_TCP_USER_TIMEOUT",
        "A peer that acknowledges or accepts nothing for this long counts as gone; 0: the system's default.",
        "0",
        types.duration(1, high=86400, zero=True),
    ),
    _duration(
        "MESHGATE_DRAIN_TIMEOUT",
        "How long the gateway waits for open streams to end before it stops.",
        "30s",
        types.duration(),
    ),
    _duration(
        "MESHGATE_DRAIN_QUIET",
        "While the gateway stops, end a stream that has been quiet for this long after its endpoint's last byte.",
        "200ms",
        types.duration(),
    ),
    _number(
        "MESHGATE_MAX_CONNECTIONS",
        "Maximum number of open streams; more are refused.",
        lambda: str(machine.streams_for(machine.reachable_descriptors())),
        1,
        10_000_000,
        "from the limit of open files",
    ),
    _number(
        "MESHGATE_MAX_CONNECTIONS_PER_CLIENT",
        "Maximum number of open streams per client (an IPv4 address or an IPv6 /64); 0: no limit.",
        "",
        0,
        10_000_000,
        "a quarter of all, once half are in use",
    ),
    _number(
        "MESHGATE_MAX_CONNECTION_RATE_PER_CLIENT",
        "Maximum number of new streams per second for each client; 0: no limit.",
        "0",
        0,
        10_000_000,
    ),
    _ours(
        "MESHGATE_EXEMPT_CLIENTS",
        "Addresses shared by many clients, such as load balancers: no limits per client.",
        "",
        types.networks,
        "CIDR,...",
    ),
    _number(
        "MESHGATE_MAX_PENDING_PER_ENDPOINT",
        "Maximum pending connections from a worker to one endpoint; more go elsewhere or are refused; 0: no limit.",
        "1024",
        0,
        10_000_000,
    ),
    _ours(
        "MESHGATE_MAX_HELLO_BYTES",
        "Largest ClientHello to accept.",
        "16384",
        types.whole(512, 1 << 20, "a number of bytes"),
        "BYTES",
    ),
    _ours(
        "MESHGATE_PANIC_THRESHOLD",
        "Percentage of healthy endpoints below which all are tried, as Envoy does at 50; 0: never.",
        "0",
        types.whole(0, 100, "a percentage"),
        "PERCENT",
    ),
    _ours(
        "MESHGATE_DENY_ENDPOINTS",
        "Addresses that get no stream, whoever registered them: CIDR blocks, and by name what only an instance of the "
        "gateway's own node may have; none: all get streams (datacenters that share one machine).",
        ",".join(LOCAL_CLASSES),
        types.denied_addresses,
        "CIDR,...",
    ),
    _boolean(
        "MESHGATE_ENFORCE_EXPORTS",
        "Route only services that an exported-services entry opens to another partition (Enterprise).",
        "false",
    ),
    _boolean(
        "MESHGATE_PASS_HTTP_EXPORTS",
        "Pass on streams of peers to exported http, http2 and grpc services as they are, instead of refusing them.",
        "false",
    ),
    _number(
        "MESHGATE_WORKERS",
        "Number of relay processes.",
        lambda: str(machine.usable_cores()),
        1,
        1024,
        "the usable cores",
    ),
    _ours(
        "MESHGATE_WORKER_MEMORY",
        "Replace a relay process whose resident memory exceeds this; its streams go on; 0: never.",
        "0",
        types.size(64 << 20),
        "BYTES",
    ),
)

_OPERATION_ROWS: Final = (
    _path(
        "MESHGATE_ENV_FILE",
        "File with further settings; no file is read unless this names it.",
    ),
    _ours(
        "MESHGATE_ADMIN_BIND",
        "Admin address: ip:port, unix:///path or off.",
        "127.0.0.1:19000",
        types.admin_bind,
        "ADDRESS",
        values=("off", "unix:///"),
    ),
    _number(
        "MESHGATE_CATALOG_WATCHES",
        "Maximum number of open blocking queries; an agent allows each client 200 connections.",
        "100",
        1,
        10_000,
    ),
    _path("MESHGATE_STATE_DIR", "Folder for the last known catalog, for a start without Consul."),
    _ours(
        "MESHGATE_ACCESS_LOG",
        "One JSON line per stream: off, stdout, stderr or a path. If not set, AccessLogs in proxy-defaults decides.",
        "off",
        types.access_log,
        "TARGET",
        values=("off", "stdout", "stderr"),
    ),
    _choice(
        "MESHGATE_SANDBOX",
        "Sandbox of the relay workers: require (or do not start), auto (what the kernel can do) or off.",
        "auto",
        types.SANDBOX_MODES,
        "MODE",
    ),
    _path(
        "MESHGATE_ACCESS_LOG_DIR",
        "Folder below which AccessLogs in proxy-defaults may name a file; if not set, nowhere.",
    ),
    _choice("MESHGATE_LOG_LEVEL", "Log level: trace, debug, info, warn or error.", "info", types.LOG_LEVELS, "LEVEL"),
    _boolean("MESHGATE_LOG_JSON", "Log JSON lines instead of text.", "false"),
)

_SECTIONS: Final = {
    CONSUL: _CONSUL_ROWS,
    "Registration": _REGISTRATION_ROWS,
    "Streams": _STREAM_ROWS,
    "Operation": _OPERATION_ROWS,
}
TABLE: Final = tuple(replace(row, section=section) for section, rows in _SECTIONS.items() for row in rows)
BY_NAME: Final = {setting.name: setting for setting in TABLE}
# What takes effect in a gateway that runs, where its `.env` file has changed and it is told so: all of how streams are
# treated, but for what listening sockets, workers and watches are made with.
AT_SIGHUP: Final = {row.name for row in _STREAM_ROWS}.difference(
    ("MESHGATE_DRAIN_QUIET", "MESHGATE_ENFORCE_EXPORTS", "MESHGATE_KEEPALIVE", "MESHGATE_TCP_USER_TIMEOUT")
) | {
    "CONSUL_HTTP_TOKEN",
    "MESHGATE_ADDRESS",
    "MESHGATE_BIND_ADDRESS",
    "MESHGATE_DEREGISTER_AFTER_CRITICAL",
    "MESHGATE_LOG_JSON",
    "MESHGATE_LOG_LEVEL",
    "MESHGATE_SANDBOX",
    "MESHGATE_WAN_ADDRESS",
}
