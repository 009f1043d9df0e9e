"""The admin address's answers as the commands read them. Fields that are not used here may come and go."""

import msgspec

from meshgate.core.addresses import host_port


class Ejected(msgspec.Struct):
    failures: int
    since: float
    why: str | None


class Endpoint(msgspec.Struct):
    address: str
    port: int
    healthy: bool
    weight: int
    node: str
    instance: str
    cause: str | None = None

    def __str__(self) -> str:
        return f"{host_port(self.address, self.port)}{'' if self.healthy else ' unhealthy'}"


class Route(msgspec.Struct):
    sni: str
    match: str
    kind: str
    destination: str
    endpoints: list[Endpoint]

    @property
    def healthy(self) -> int:
        return sum(endpoint.healthy for endpoint in self.endpoints)


class Unroutable(msgspec.Struct):
    sni: str
    reason: str


class Routes(msgspec.Struct):
    """`/routes`."""

    datacenter: str
    partition: str
    trust_domain: str
    routes: list[Route]
    unroutable: list[Unroutable]


class Step(msgspec.Struct):
    rule: str
    outcome: str


class Explanation(msgspec.Struct):
    """`/explain`."""

    sni: str
    decision: str
    reason: str | None
    route: str | None
    kind: str | None
    endpoints: list[Endpoint]
    steps: list[Step]


class Stream(msgspec.Struct):
    """A row of `/connections`."""

    client: str
    route: str | None
    endpoint: str | None
    state: str
    age_seconds: float
    bytes_received: int = 0
    bytes_sent: int = 0
    caller: str | None = None

    @property
    def client_host(self) -> str:
        return self.client.rpartition(":")[0].strip("[]")


class RatedStream(Stream, kw_only=True):
    """A row of `/connections` whole, with what the stream carries in bytes per second."""

    id: int
    sni: str | None
    worker: int
    received_rate: float = 0.0
    sent_rate: float = 0.0

    def measure(self, before: "RatedStream | None") -> None:
        """Set the rates by an earlier look at the same stream; where there is none, by its life, of a second at least.

        A stream may have the id of one that ended, but it is younger.
        """
        received, sent, seconds = self.bytes_received, self.bytes_sent, max(1.0, self.age_seconds)
        if before is not None and before.client == self.client and before.age_seconds < self.age_seconds:
            received, sent = received - before.bytes_received, sent - before.bytes_sent
            seconds = self.age_seconds - before.age_seconds
        self.received_rate, self.sent_rate = (round(max(0, each) / seconds, 1) for each in (received, sent))


class EndedStream(msgspec.Struct):
    """A stream in `/connections/ended`. What is None is not known of one that was refused."""

    end_time: str
    end: str
    reason: str | None
    detail: str
    client: str
    sni: str | None
    route: str | None
    endpoint: str | None
    duration_ms: int | None
    bytes_received: int | None
    bytes_sent: int | None
    worker: int | None
    caller: str | None = None

    @property
    def client_host(self) -> str:
        return self.client if self.reason else self.client.rpartition(":")[0].strip("[]")


class WorkerLost(msgspec.Struct):
    time: str
    worker: int
    reason: str
    streams: int
    known: int


class Ended(msgspec.Struct):
    """`/connections/ended`."""

    since: str
    kept: int
    ends: dict[str, int]
    workers_lost: list[WorkerLost]
    streams: list[EndedStream]


class Draining(msgspec.Struct):
    """The answer to `POST /drain`."""

    timeout_seconds: float


class Upgrade(msgspec.Struct):
    """The answer to `POST /upgrade`, and `last_upgrade` of `/server_info`."""

    number: int
    python: str
    version_before: str
    version_after: str
    result: str
    reason: str
    seconds: float | None
    streams: int
    handed_over: int
    kept: int
    lost: int


class ServerInfo(msgspec.Struct):
    """`/server_info`."""

    version: str
    last_upgrade: Upgrade | None = None


class Names(msgspec.Struct):
    """`/names`."""

    refused: list[str]
    services: list[str]
    datacenters: list[str]
    snis: list[str]


class Met(Endpoint):
    """An endpoint with what the gateway has met of it."""

    streams: int = 0
    unanswered: int = 0
    failures: int = 0
    first_byte_seconds: float | None = None
    ejected: Ejected | None = None


class Tls(msgspec.Struct):
    """What is known of a destination's streams without their keys."""

    answered: int
    unanswered: int
    first_byte_p50: float | None


class Destination(msgspec.Struct):
    """A route as the dashboard lists it; rates are per second, None where there is nothing to compare with."""

    name: str
    kind: str
    healthy: int
    endpoints: int
    open: int | None
    rate: float | None
    received_rate: float | None
    sent_rate: float | None
    listed: list[Met] = []
    sni: str = ""
    tls: Tls | None = None


class Destinations(msgspec.Struct):
    total: int
    rows: list[Destination]


class Worker(msgspec.Struct):
    pid: int | None
    open: int


class Identity(msgspec.Struct):
    version: str
    state: str
    datacenter: str
    partition: str
    now: float
    started: float
    uptime_seconds: float
    stale: bool
    workers: list[Worker] = []


class Totals(msgspec.Struct):
    open: int
    streams_rate: float | None
    refused_rate: float | None
    received_rate: float | None
    sent_rate: float | None


class Refused(msgspec.Struct):
    reason: str
    total: int
    rate: float | None


class Refusal(msgspec.Struct):
    time: float
    reason: str
    sni: str | None
    client: str
    detail: str
    caller: str | None = None


class Refusals(msgspec.Struct):
    reasons: list[Refused]
    recent: list[Refusal] = []


class Watches(msgspec.Struct):
    kind: str
    age_seconds: float
    error: str | None = None


class Consul(msgspec.Struct):
    watches: list[Watches]
    ca_root_expiry: float | None
    ca_intermediate_expiry: float | None


class EndedLately(msgspec.Struct):
    recent: list[EndedStream] = []
    workers_lost: list[WorkerLost] = []


class DashboardState(msgspec.Struct):
    """`/dashboard/state`."""

    gateway: Identity
    problems: list[str]
    totals: Totals
    refused: Refusals
    consul: Consul
    destinations: Destinations
    ended: EndedLately = msgspec.field(default_factory=EndedLately)


class Concerned(msgspec.Struct):
    """A destination in `/whatif`; of one that would have fewer ways left, how many it has now."""

    sni: str
    kind: str
    destination: str
    now: int | None = None
    left: int | None = None


class Listing(msgspec.Struct):
    total: int
    rows: list[Concerned]


class Gone(msgspec.Struct):
    what: str
    name: str
    datacenter: str
    cut: Listing
    thinner: Listing


class OtherGateways(msgspec.Struct):
    total: int
    healthy: int


class GatewayGone(msgspec.Struct):
    streams: int
    others: OtherGateways | None
    cut: int | None


class NodeGone(msgspec.Struct):
    datacenter: str
    node: str
    cut: int


class ConsulGone(msgspec.Struct):
    stale: bool
    age_seconds: float | None
    restart: str | None
    cold: int


class End(msgspec.Struct):
    what: str
    known: bool
    expires: float | None
    seconds: float | None
    near: bool


class Limit(msgspec.Struct):
    what: str
    used: int
    limit: int | None
    near: bool


class WhatIf(msgspec.Struct):
    """`/whatif`."""

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
