"""Every setting there is, as one table.

The flags of the commands, `.env.example`, `meshgate config` and the reference page are all made from it. A row's name
is its environment variable; a `MESHGATE_` row's value is the field of `Settings` with the rest of that name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meshgate.adapters import machine
from meshgate.app.settings import setting_types
from meshgate.core.weak_decode import parse_bool

PREFIX: Final = "MESHGATE_"

CONSUL: Final = "Consul"
REGISTRATION: Final = "Registration"
RELAY: Final = "Streams"
OPERATION: Final = "Operation"


@dataclass(frozen=True, slots=True)
class Setting:
    """A row.

    Attributes:
        name: the environment variable.
        flag: its twin on the command line; "" where there is none.
        section: under which heading users find it.
        help: what it does, one sentence.
        default: its default as a user would write it, or a function that finds it on this machine; "" for none.
        default_note: the default in words, where it depends on something.
        parse: from text to value; raises ValueError with what is allowed.
        metavar: the shape of the value.
        secret: never to be shown.
    """

    name: str
    flag: str
    section: str
    help: str
    default: str | Callable[[], str] = ""
    default_note: str = ""
    parse: Callable[[str], object] = str
    metavar: str = "TEXT"
    secret: bool = False

    @property
    def is_boolean(self) -> bool:
        """Whether its flag takes no value: `--name`, `--no-name`, `--name=true`."""
        return self.parse is parse_bool

    @property
    def is_repeatable(self) -> bool:
        """Whether its flag may come several times."""
        return self.parse is setting_types.bind_addresses

    @property
    def field(self) -> str:
        """Its field in `Settings`; "" for Consul's own variables."""
        return self.name.removeprefix(PREFIX).lower() if self.name.startswith(PREFIX) else ""

    def default_text(self) -> str:
        """The default on this machine, as a user would write it."""
        return self.default if isinstance(self.default, str) else self.default()


def _boolean(name: str, flag: str, section: str, help_: str, default: str) -> Setting:
    return Setting(name, flag, section, help_, default, parse=parse_bool, metavar="BOOL")


def _duration(name: str, section: str, help_: str, default: str, parse: Callable[[str], float]) -> Setting:
    """A setting in seconds, written as Consul writes durations; `name` is without the prefix."""
    flag = "--" + name.lower().replace("_", "-")
    return Setting(f"{PREFIX}{name}", flag, section, help_, default, parse=parse, metavar="DURATION")


def _max_connections() -> str:
    return str(machine.streams_for(machine.reachable_descriptors()))


def _workers() -> str:
    return str(machine.usable_cores())


_CONSUL_ROWS: Final = (
    Setting(
        "CONSUL_HTTP_ADDR",
        "--http-addr",
        CONSUL,
        "Address of the local Consul agent: host:port, http://, https:// or unix:///path.",
        "127.0.0.1:8500",
        metavar="ADDRESS",
    ),
    Setting("CONSUL_HTTP_SSL", "", CONSUL, "Speak HTTPS to the agent.", "false", metavar="BOOL"),
    Setting(
        "CONSUL_HTTP_SSL_VERIFY",
        "",
        CONSUL,
        "Verify the agent's certificate when HTTPS is used.",
        "true",
        metavar="BOOL",
    ),
    Setting("CONSUL_HTTP_TOKEN", "--token", CONSUL, "ACL token.", metavar="TOKEN", secret=True),
    Setting(
        "CONSUL_HTTP_TOKEN_FILE",
        "--token-file",
        CONSUL,
        "File that holds the ACL token; beats a token from the same source and is read again when it changes.",
        metavar="PATH",
    ),
    Setting("CONSUL_HTTP_AUTH", "", CONSUL, "HTTP basic authentication, user:password.", metavar="TEXT", secret=True),
    Setting("CONSUL_CACERT", "--ca-file", CONSUL, "CA certificates to verify the agent with.", metavar="PATH"),
    Setting("CONSUL_CAPATH", "--ca-path", CONSUL, "Directory of such CA certificates.", metavar="PATH"),
    Setting("CONSUL_CLIENT_CERT", "--client-cert", CONSUL, "Client certificate for the agent.", metavar="PATH"),
    Setting("CONSUL_CLIENT_KEY", "--client-key", CONSUL, "Key of the client certificate.", metavar="PATH"),
    Setting(
        "CONSUL_TLS_SERVER_NAME", "--tls-server-name", CONSUL, "Server name to verify the agent's certificate against."
    ),
    Setting("CONSUL_NAMESPACE", "--namespace", CONSUL, "Namespace (Consul Enterprise).", metavar="NAME"),
    Setting("CONSUL_PARTITION", "--partition", CONSUL, "Admin partition (Consul Enterprise).", metavar="NAME"),
)

_REGISTRATION_ROWS: Final = (
    Setting(
        "MESHGATE_SERVICE",
        "--service",
        REGISTRATION,
        "Service name of the gateway in Consul.",
        "mesh-gateway",
        parse=setting_types.name,
        metavar="NAME",
    ),
    Setting(
        "MESHGATE_PROXY_ID",
        "--proxy-id",
        REGISTRATION,
        "Service ID of the gateway on its agent.",
        default_note="the service name",
        parse=setting_types.name,
        metavar="ID",
    ),
    Setting(
        "MESHGATE_ADDRESS",
        "--address",
        REGISTRATION,
        "LAN address that is registered, and bound unless bind addresses say otherwise; no host: the node's.",
        ":8443",
        parse=setting_types.lan_address,
        metavar="[HOST]:PORT",
    ),
    Setting(
        "MESHGATE_WAN_ADDRESS",
        "--wan-address",
        REGISTRATION,
        "Address that other datacenters dial, registered as the tagged address wan.",
        parse=setting_types.wan_address,
        metavar="HOST:PORT",
    ),
    Setting(
        "MESHGATE_BIND_ADDRESS",
        "--bind-address",
        REGISTRATION,
        "Listeners to open instead of the LAN address: name=ip:port, comma-separated; the flag may be repeated.",
        parse=setting_types.bind_addresses,
        metavar="NAME=IP:PORT",
    ),
    _boolean(
        "MESHGATE_EXPOSE_SERVERS",
        "--expose-servers",
        REGISTRATION,
        "Register with the meta consul-wan-federation=1, for WAN federation through mesh gateways.",
        "false",
    ),
    _boolean(
        "MESHGATE_REGISTER",
        "--register",
        REGISTRATION,
        "Register the gateway with the agent; false: the registration exists already and is read.",
        "true",
    ),
    Setting(
        "MESHGATE_LOGIN_AUTH_METHOD",
        "--login-auth-method",
        REGISTRATION,
        "Log in to Consul with this auth method at the start, and out at the end, instead of a token.",
        metavar="NAME",
    ),
    Setting(
        "MESHGATE_LOGIN_BEARER_TOKEN_FILE",
        "--login-bearer-token-file",
        REGISTRATION,
        "File that holds the bearer token of the login; it is read anew for each.",
        parse=setting_types.path,
        metavar="PATH",
    ),
    Setting(
        "MESHGATE_NODE_NAME",
        "--node-name",
        REGISTRATION,
        "Catalog node of a registration that somebody else makes and that no agent holds (agentless).",
        metavar="NAME",
    ),
    _duration(
        "DEREGISTER_AFTER_CRITICAL",
        REGISTRATION,
        "How long the gateway may be critical before its agent deregisters it.",
        "6h",
        setting_types.duration(),
    ),
)

_RELAY_ROWS: Final = (
    _duration(
        "HELLO_TIMEOUT",
        RELAY,
        "How long a client may take to send its ClientHello.",
        "15s",
        setting_types.duration(0.001),
    ),
    _duration(
        "CONNECT_TIMEOUT",
        RELAY,
        "How long connecting may take, all attempts together, unless the service's resolver says otherwise.",
        "5s",
        setting_types.duration(0.001),
    ),
    _duration(
        "PER_TRY_TIMEOUT",
        RELAY,
        "How long one attempt may take while another endpoint is left; 0: as long as all of them together.",
        "1s",
        setting_types.duration(),
    ),
    _duration(
        "IDLE_TIMEOUT",
        RELAY,
        "A stream without a byte for that long is closed; 0: never.",
        "1h",
        setting_types.duration(0.001, zero=True),
    ),
    _duration(
        "KEEPALIVE",
        RELAY,
        "Idle time before TCP keepalive probes, on both legs; 0: none.",
        "60s",
        # The kernel takes whole seconds up to MAX_TCP_KEEPIDLE.
        setting_types.duration(1, high=32767, zero=True),
    ),
    _duration(
        "DRAIN_TIMEOUT",
        RELAY,
        "How long a stop waits for streams to end by themselves.",
        "30s",
        setting_types.duration(),
    ),
    _duration(
        "DRAIN_QUIET",
        RELAY,
        "During a stop a stream is ended when it has been quiet for so long since its endpoint's last byte.",
        "200ms",
        setting_types.duration(),
    ),
    Setting(
        "MESHGATE_MAX_CONNECTIONS",
        "--max-connections",
        RELAY,
        "Streams at once; more are refused.",
        _max_connections,
        "from the limit of open files",
        parse=setting_types.whole(1, 10_000_000),
        metavar="NUMBER",
    ),
    Setting(
        "MESHGATE_MAX_CONNECTIONS_PER_CLIENT",
        "--max-connections-per-client",
        RELAY,
        "Streams at once from one client (an IPv4 address or an IPv6 /64); 0: no limit.",
        "0",
        parse=setting_types.whole(0, 10_000_000),
        metavar="NUMBER",
    ),
    Setting(
        "MESHGATE_MAX_PENDING_PER_ENDPOINT",
        "--max-pending-per-endpoint",
        RELAY,
        "Connections a worker may be opening to one endpoint; more go elsewhere or are refused; 0: no limit.",
        "1024",
        parse=setting_types.whole(0, 10_000_000),
        metavar="NUMBER",
    ),
    Setting(
        "MESHGATE_MAX_HELLO_BYTES",
        "--max-hello-bytes",
        RELAY,
        "Largest ClientHello that is read.",
        "16384",
        parse=setting_types.whole(512, 1 << 20, "a number of bytes"),
        metavar="BYTES",
    ),
    Setting(
        "MESHGATE_PANIC_THRESHOLD",
        "--panic-threshold",
        RELAY,
        "Percent of healthy endpoints under which all are tried, as Envoy does at 50; 0: never.",
        "0",
        parse=setting_types.whole(0, 100, "a percentage"),
        metavar="PERCENT",
    ),
    _boolean(
        "MESHGATE_ENFORCE_EXPORTS",
        "--enforce-exports",
        RELAY,
        "Route only services that an exported-services entry opens to another partition (Enterprise).",
        "false",
    ),
    _boolean(
        "MESHGATE_PASS_HTTP_EXPORTS",
        "--pass-http-exports",
        RELAY,
        "Pass streams of peers to exported http, http2 and grpc services on unterminated, instead of refusing them.",
        "false",
    ),
    Setting(
        "MESHGATE_WORKERS",
        "--workers",
        RELAY,
        "Relay processes.",
        _workers,
        "the usable cores",
        parse=setting_types.whole(1, 1024),
        metavar="NUMBER",
    ),
)

_OPERATION_ROWS: Final = (
    Setting(
        "MESHGATE_ENV_FILE",
        "--env-file",
        OPERATION,
        "File with settings that neither a flag nor the environment gives; none is read unless named here.",
        parse=setting_types.path,
        metavar="PATH",
    ),
    Setting(
        "MESHGATE_ADMIN_BIND",
        "--admin-bind",
        OPERATION,
        "Admin address: ip:port, unix:///path or off.",
        "127.0.0.1:19000",
        parse=setting_types.admin_bind,
        metavar="ADDRESS",
    ),
    Setting(
        "MESHGATE_CATALOG_WATCHES",
        "--catalog-watches",
        OPERATION,
        "Blocking queries held at once, of the 200 connections that an agent allows a client.",
        "100",
        parse=setting_types.whole(1, 10_000),
        metavar="NUMBER",
    ),
    Setting(
        "MESHGATE_STATE_DIR",
        "--state-dir",
        OPERATION,
        "Where the last known good catalog is kept for a start without Consul.",
        parse=setting_types.path,
        metavar="PATH",
    ),
    Setting(
        "MESHGATE_ACCESS_LOG",
        "--access-log",
        OPERATION,
        "One JSON line a stream: off, stdout, stderr or a path. Not set: what AccessLogs of proxy-defaults asks for.",
        "off",
        parse=setting_types.access_log,
        metavar="TARGET",
    ),
    Setting(
        "MESHGATE_LOG_LEVEL",
        "--log-level",
        OPERATION,
        "trace, debug, info, warn or error.",
        "info",
        parse=setting_types.log_level,
        metavar="LEVEL",
    ),
    _boolean("MESHGATE_LOG_JSON", "--log-json", OPERATION, "Log JSON lines instead of text.", "false"),
)

TABLE: Final = (*_CONSUL_ROWS, *_REGISTRATION_ROWS, *_RELAY_ROWS, *_OPERATION_ROWS)
BY_NAME: Final = {setting.name: setting for setting in TABLE}
# What takes effect in a gateway that runs, where its `.env` file has changed and it is told so.
AT_SIGHUP: Final = frozenset(
    (
        "CONSUL_HTTP_TOKEN",
        "MESHGATE_ADDRESS",
        "MESHGATE_BIND_ADDRESS",
        "MESHGATE_CONNECT_TIMEOUT",
        "MESHGATE_DEREGISTER_AFTER_CRITICAL",
        "MESHGATE_DRAIN_TIMEOUT",
        "MESHGATE_HELLO_TIMEOUT",
        "MESHGATE_IDLE_TIMEOUT",
        "MESHGATE_LOG_JSON",
        "MESHGATE_LOG_LEVEL",
        "MESHGATE_MAX_CONNECTIONS",
        "MESHGATE_MAX_CONNECTIONS_PER_CLIENT",
        "MESHGATE_MAX_HELLO_BYTES",
        "MESHGATE_MAX_PENDING_PER_ENDPOINT",
        "MESHGATE_PANIC_THRESHOLD",
        "MESHGATE_PASS_HTTP_EXPORTS",
        "MESHGATE_WAN_ADDRESS",
    )
)
