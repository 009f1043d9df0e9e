"""What the admin address answers, each shape declared once.

Pages make these, commands read them, and the description for tools is made from them (`openapi`), docstrings included.
Times are Unix time in seconds, or RFC 3339 in UTC where they are text; rates are per second, and null where there is
nothing to compare with. What has a default came later than the rest, so that a command can ask an older gateway.
"""

from typing import Any, Final, Literal

from msgspec import Struct, field

from meshgate.core.addresses import host_of, host_port
from meshgate.core.reasons import Reason, StreamEnd
from meshgate.core.routes import RouteKind

MOST_STREAMS: Final = 5000
"""With more open streams than that neither the dashboard nor `meshgate top` asks for a list of them."""


WORKERS_SILENT: Final = "meshgate-workers-silent"
"""The header in which `/connections`, a bare list, says whose streams it has not: numbers of workers, with commas."""


class Error(Struct):
    """One line that says what is wrong."""

    error: str


class Readiness(Struct, omit_defaults=True):
    """`catalog_stale`: the last known good catalog is served; `from_disk`: an earlier process's, `age_seconds` old."""

    ready: bool
    catalog_known: bool
    catalog_stale: bool
    from_disk: bool
    listening: bool
    draining: bool
    problems: list[str]
    age_seconds: float | None = None


# --- routing ---------------------------------------------------------------------------------------------------------


class Endpoint(Struct):
    """`cause` says why it gets no streams, null while it is healthy; `instance` is the service's ID in Consul."""

    address: str
    port: int
    healthy: bool
    cause: str | None
    weight: int
    node: str
    instance: str

    @property
    def where(self) -> str:
        return host_port(self.address, self.port)

    def __str__(self) -> str:
        return f"{self.where}{'' if self.healthy else ' unhealthy'}"


class Route(Struct):
    """`sni` has `*.` in front of a suffix; `destination` is what metrics call it; all known endpoints are listed."""

    sni: str
    match: Literal["exact", "suffix"]
    kind: RouteKind
    destination: str
    endpoints: list[Endpoint]

    @property
    def healthy(self) -> int:
        return sum(endpoint.healthy for endpoint in self.endpoints)


class Unroutable(Struct):
    """A name that somebody in Consul wants to have a route, and why it has none, in words."""

    sni: str
    reason: str


class Routes(Struct):
    datacenter: str
    partition: str
    trust_domain: str
    routes: list[Route]
    unroutable: list[Unroutable]


class Step(Struct):
    """What was looked at, and what was found there, on one line of printable text."""

    rule: str
    outcome: str


class Explanation(Struct):
    sni: str
    decision: Literal["routed", "refused"]
    reason: Reason | None
    route: str | None
    kind: RouteKind | None
    endpoints: list[Endpoint]
    steps: list[Step]


class Names(Struct):
    """Server names that were refused in the last hour, the newest first; services; other datacenters; server names."""

    refused: list[str]
    services: list[str]
    datacenters: list[str]
    snis: list[str]


# --- endpoints and destinations --------------------------------------------------------------------------------------


class Ejection(Struct):
    """How many connections failed in a row, since when it therefore gets no streams, and why the first one failed."""

    failures: int
    since: float
    why: str | None


class EndpointFacts(Struct, kw_only=True):
    """What the gateway has met of an endpoint, whatever routes it has.

    `streams` have got a byte of it, `unanswered` ended without one, `failures` are connections that could not be had,
    the last of them at `last_failure`, because of `last_error`. `first_byte_seconds` is how long it lately took to the
    first byte. Without values: an endpoint that no stream has had.
    """

    streams: int = 0
    unanswered: int = 0
    failures: int = 0
    first_byte_seconds: float | None = None
    last_success: float | None = None
    last_failure: float | None = None
    last_error: str | None = None
    ejected: Ejection | None = None


class DestinationFacts(Struct, kw_only=True):
    """What became of a destination's streams since the start, whichever endpoint they had.

    `streams` were routed, `open` of them still are, `refused` had the route and were not carried, `connect_failures`
    are endpoints that could not be reached, also where another one took the stream. Of the streams that ended or were
    answered, `answered` got a byte from their endpoint and `unanswered` none; half of the former had it within
    `first_byte_p50` seconds, 99 of 100 within `first_byte_p99`: upper bounds, null where that is not known.
    """

    streams: int
    open: int
    refused: int
    connect_failures: int
    answered: int
    unanswered: int
    first_byte_p50: float | None
    first_byte_p99: float | None


class SocketAddress(Struct):
    address: str
    port_value: int


class HostStatus(Struct):
    """`meshgate` is what the gateway has met of the endpoint; the rest is Envoy's."""

    address: dict[Literal["socket_address"], SocketAddress]
    stats: list[dict[str, str]]
    health_status: dict[str, str | bool]
    weight: int
    hostname: str
    meshgate: EndpointFacts


class ClusterStatus(Struct):
    name: str
    observability_name: str
    added_via_api: bool
    host_statuses: list[HostStatus]
    meshgate: DestinationFacts


class Clusters(Struct):
    """Envoy's `envoy.admin.v3.Clusters`, as far as a gateway knows it; `meshgate` is what Envoy has no name for."""

    cluster_statuses: list[ClusterStatus]


# --- streams ---------------------------------------------------------------------------------------------------------


class Stream(Struct):
    """`sni` is as sent, a stranger's text; `caller` is who has the client's address in Consul's catalog.

    `state` is `hello`, `connecting`, `relaying` or `refused`.
    """

    id: int
    client: str
    caller: str | None
    sni: str | None
    route: str | None
    endpoint: str | None
    state: str
    age_seconds: float
    bytes_received: int
    bytes_sent: int
    worker: int

    @property
    def client_host(self) -> str:
        return host_of(self.client)


class EndedStream(Struct):
    """A stream that was refused or did not end in order.

    Of one that was refused, what is null is not known, and its client has no port.
    """

    end_time: str
    end: StreamEnd
    reason: Reason | None
    detail: str
    client: str
    caller: str | None
    sni: str | None
    route: str | None
    endpoint: str | None
    duration_ms: int | None
    bytes_received: int | None
    bytes_sent: int | None
    worker: int | None

    @property
    def client_host(self) -> str:
        return self.client if self.reason else host_of(self.client)


class WorkerLost(Struct):
    """A relay process that ended with its streams.

    So many are `known` and listed; the others were young, or there was no access log.
    """

    time: str
    worker: int
    reason: str
    streams: int
    known: int


class EndedStreams(Struct):
    """Since this process started: how many ended which way, and the last ones, of each end the last `kept`."""

    since: str
    kept: int
    ends: dict[StreamEnd, int]
    workers_lost: list[WorkerLost]
    streams: list[EndedStream]


# --- the process -----------------------------------------------------------------------------------------------------


class SettingValue(Struct):
    """A secret's value is masked."""

    value: str | None
    origin: Literal["flag", "environment", ".env", "default"]


class Watch(Struct):
    kind: str
    name: str
    age_seconds: float
    answered: bool
    index: int
    error: str | None
    status: str | None
    failures: int
    failing_seconds: float | None


class Table(Routes):
    conflicts: list[str]


class ConfigDump(Struct):
    version: str
    settings: dict[str, SettingValue]
    registration: dict[str, Any]
    limits: dict[str, Any]
    problems: list[str]
    catalog_stale: bool
    watches: list[Watch]
    table: Table


class Upgrade(Struct):
    """An upgrade and what came of it; `number` counts those of this process, refused ones too.

    `refused`: the version before went on, nothing was given up. `failed`: the next version gave all of it back.
    `reason` says why. Of the `streams` that were open then, some are `handed_over` to workers of the next version, some
    `kept` by those of the version before until they end, and some `lost`.
    """

    number: int
    started: str
    python: str
    version_before: str
    version_after: str
    result: Literal["under_way", "done", "failed", "refused"]
    reason: str
    seconds: float | None
    streams: int
    handed_over: int
    kept: int
    lost: int


class Node(Struct):
    id: str
    cluster: str


class Sandbox(Struct):
    """How relay workers are confined; `landlock` is the version of its interface, 0 where the kernel has none."""

    mode: str
    seccomp: bool
    landlock: int
    missing: list[str]


class ServerInfo(Struct):
    version: str
    state: Literal["LIVE", "DRAINING", "PRE_INITIALIZING"]
    uptime_seconds: float
    uptime_current_epoch: str
    uptime_all_epochs: str
    node: Node
    command_line_options: dict[str, str]
    sandbox: Sandbox
    problems: list[str]
    last_upgrade: Upgrade | None


class Logging(Struct):
    level: str


class Draining(Struct):
    state: Literal["DRAINING"]
    timeout_seconds: float


# --- the dashboard ---------------------------------------------------------------------------------------------------


class Listener(Struct):
    name: str
    address: str


class Worker(Struct):
    """`pid` is null while the process is being replaced."""

    pid: int | None
    open: int


class Identity(Struct):
    """The gateway itself. `started` tells one process from the next."""

    service: str
    id: str
    datacenter: str
    partition: str
    trust_domain: str
    version: str
    now: float
    started: float
    uptime_seconds: float
    state: Literal["draining", "ready", "starting"]
    listening: bool
    catalog_known: bool
    stale: bool
    catalog_seconds: float | None
    from_disk_seconds: float | None
    limit: int
    listeners: list[Listener]
    workers: list[Worker]
    last_upgrade: Upgrade | None = None


class Totals(Struct):
    open: int
    streams: int
    refused: int
    received: int
    sent: int
    streams_rate: float | None
    refused_rate: float | None
    received_rate: float | None
    sent_rate: float | None
    connects: list[int]


class Caller(Struct):
    """A client by its IP address, and who that is in Consul's catalog."""

    client: str
    caller: str | None
    open: int
    rate: float | None


class Callers(Struct):
    total: int
    rows: list[Caller]


class Refused(Struct):
    reason: Reason
    total: int
    rate: float | None


class Refusals(Struct):
    reasons: list[Refused]
    recent: list[EndedStream]


class WatchesOfKind(Struct):
    """All watches of a kind: the age of the oldest answer, and what is wrong with the first that fails."""

    kind: str
    count: int
    failing: int
    age_seconds: float
    error: str | None


class Consul(Struct):
    known: bool
    watches: list[WatchesOfKind]
    errors: dict[str, int]
    ca_root_expiry: float | None
    ca_intermediate_expiry: float | None


class Place(Struct):
    """Where streams go from here: own services, Consul's servers, a partition, a datacenter, a peer."""

    kind: str
    name: str
    destinations: int
    endpoints: int
    healthy: int
    down: int
    open: int
    streams: int
    rate: float | None
    received_rate: float | None
    sent_rate: float | None


class Places(Struct):
    shown: list[Place]
    left_out: int


class Met(Endpoint):
    """An endpoint with what the gateway has met of it; in words, why it gets no streams and what became of them."""

    met: EndpointFacts = field(default_factory=EndpointFacts)
    out: str = ""
    record: str = ""


class Destination(Struct):
    """A route. `served` says whether any endpoint may get streams.

    `words` say what is known of its streams without their keys.
    """

    sni: str
    kind: RouteKind
    name: str
    healthy: int
    endpoints: int
    served: bool
    open: int
    rate: float | None
    received_rate: float | None
    sent_rate: float | None
    facts: DestinationFacts
    words: list[str]
    listed: list[Met]


class Destinations(Struct):
    total: int
    matching: int
    rows: list[Destination]


class DashboardState(Struct):
    """What the dashboard shows; made for it, and may change with it."""

    gateway: Identity
    problems: list[str]
    totals: Totals
    connect_bounds: list[float]
    callers: Callers
    refused: Refusals
    ended: EndedStreams
    consul: Consul
    places: Places
    destinations: Destinations


class DestinationHistory(Struct):
    """`first_bytes` has how many waited so long for the first byte, in one slot more than there are bounds."""

    kind: RouteKind
    name: str
    streams: list[int]
    failed: list[int]
    success: float | None
    first_bytes: list[int]


class History(Struct):
    """By the minute, the oldest first: `failed` had a route and were refused, `refused` had none, or no slot.

    What had a route and was refused because the gateway drains is in neither.
    """

    ends: list[float]
    streams: list[int]
    failed: list[int]
    refused: list[int]
    first_byte_bounds: list[float]
    destinations: list[DestinationHistory]


# --- what if ---------------------------------------------------------------------------------------------------------


class Concerned(Struct, omit_defaults=True):
    """A destination; of one that would have fewer ways left, how many it has now."""

    sni: str
    kind: RouteKind
    destination: str
    now: int | None = None
    left: int | None = None


class Listing(Struct):
    """At most 100 of them."""

    total: int
    rows: list[Concerned]


class Gone(Struct):
    """Destinations that have no way left, and those that have fewer."""

    what: Literal["node", "gateways"]
    name: str
    datacenter: str
    cut: Listing
    thinner: Listing


class OtherGateways(Struct):
    total: int
    healthy: int


class GatewayGone(Struct):
    """`others` and `cut` are null where Consul did not tell."""

    streams: int
    others: OtherGateways | None
    cut: int | None


class NodeGone(Struct):
    datacenter: str
    node: str
    cut: int


class ConsulGone(Struct):
    """`stale`: it is away now; `age_seconds` is that of the oldest part of the catalog, null before it is known.

    `restart` says why a restart would have no catalog; `cold` destinations had no traffic, so theirs may be older.
    """

    stale: bool
    age_seconds: float | None
    restart: str | None
    cold: int


class End(Struct):
    """`expires` is null for what never ends or is not known. `near`: root 14 days, intermediate and token 3 days."""

    what: str
    known: bool
    expires: float | None
    seconds: int | None
    near: bool


class Limit(Struct):
    """`limit` is null where it is not known or there is none; `near`: 80 percent or more are used."""

    what: str
    used: int
    limit: int | None
    near: bool


class WhatIf(Struct):
    """Destinations with no way (`broken`) or one (`single`) now; the nodes that some destination needs, worst first.

    `gateway` is null where something else was asked about.
    """

    datacenter: str
    destinations: int
    consul: ConsulGone
    ends: list[End]
    limits: list[Limit]
    broken: Listing
    single: Listing
    gone: list[Gone]
    gateway: GatewayGone | None
    nodes: list[NodeGone]
