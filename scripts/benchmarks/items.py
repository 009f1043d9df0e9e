"""The work items: what is done, by whom, how much of it, and which numbers come of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from . import control, live_upgrade, rest, traffic
from .catalog import large_catalog
from .handshakes import handshakes
from .peers import Place, Subject

ROUTES = 10  # in every peer's table while streams flow


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a work item. `digits` behind the point; `more_is_better` where a ratio above 1 is good."""

    key: str
    title: str
    digits: int = 1
    more_is_better: bool = False


CPU = Metric("cpu_us", "CPU µs")
PER_SECOND = Metric("per_s", "per s", 0, more_is_better=True)
P50 = Metric("p50_us", "p50 µs", 0)
P99 = Metric("p99_us", "p99 µs", 0)
CPU_PER_GB = Metric("cpu_s_per_gb", "CPU s/GB", 3)
GB_PER_SECOND = Metric("gb_per_s", "GB/s", 2, more_is_better=True)
OPERATION = (CPU, PER_SECOND, P50, P99)
UNDISTURBED = (
    Metric("silence_ms", "longest silence, ms", 0),
    Metric("calm_silence_ms", "otherwise, ms", 0),
    Metric("slow_s", "s below 90 % of the rate"),
    Metric("lowest_percent", "least in 0.1 s, %", 0),
    Metric("memory_ratio", "memory, most to before", 2),
    Metric("took_s", "s in all", 2),
)

Work = Callable[[Place, Subject], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Item:
    """A work item. The first metric is the one that ratios and charts are about.

    Args:
        name: for `--only` and in results; what comes before the last dash names a chart.
        work: one measurement of a running peer.
        alone: or one that needs no running peer and is about meshgate itself.
        peers: the names of those that take part; empty for all.
        relay: whether our relay alone takes part beside the whole product.
        routes: how many the peers have.
        workers: not the usual peers, but meshgate with so many workers.
        fresh: whether every round has a new process of the peer.
        once: whether one round is enough, whatever was asked for.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    work: Work | None = None
    alone: Callable[[Place], Mapping[str, float]] | None = None
    peers: frozenset[str] = frozenset()
    relay: bool = False
    routes: int = ROUTES
    workers: tuple[int, ...] = ()
    fresh: bool = False
    once: bool = False


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    `seconds` is the length of one measurement of a rate, `bulk` the bytes of one run, `pauses` are in ms, `control` is
    whether the control plane is measured too.
    """

    rounds: int
    seconds: float
    bulk: int
    round_trips: tuple[int, ...]
    bulk_streams: tuple[int, ...]
    clients: tuple[int, ...]
    pauses: tuple[int, ...]
    floods: tuple[int, ...]
    idle: int
    scale: int
    open_streams: int
    services: int
    lookups: tuple[int, ...]
    rest_routes: int
    control: bool = True


FULL = Sizes(
    rounds=5,
    seconds=1.0,
    bulk=1_000_000_000,
    round_trips=(1, 32, 512, 5000),
    bulk_streams=(1, 4, 32),
    clients=(1, 2, 8, 64),
    pauses=(1, 10, 100),
    floods=(5000, 0),
    idle=5000,
    scale=9000,
    open_streams=5000,
    services=5000,
    lookups=(10, 100_000),
    rest_routes=100,
)
QUICK = replace(FULL, rounds=2, seconds=0.3, bulk=200_000_000)
# Enough to see that everything works, and for no other conclusion.
SMOKE = Sizes(
    rounds=1,
    seconds=0.04,
    bulk=4_000_000,
    round_trips=(1, 8),
    bulk_streams=(2,),
    clients=(2,),
    pauses=(1,),
    floods=(500,),
    idle=50,
    scale=50,
    open_streams=50,
    services=50,
    lookups=(10, 100),
    rest_routes=12,
    control=False,
)


def work_items(sizes: Sizes, tls_name: str, tls_port: int) -> list[Item]:
    """All items in the order in which they are done.

    Args:
        tls_name: the server name that leads to a TLS server, and
        tls_port: its port.
    """
    seconds = sizes.seconds
    others = frozenset(("meshgate", "envoy", "haproxy", "nginx"))
    ours = frozenset(("meshgate",))

    def tls(place: Place, subject: Subject, clients: int) -> Mapping[str, float]:
        port = subject.port if subject.own_backend else tls_port
        numbers = handshakes(place, subject, server_name=tls_name, port=port, clients=clients, seconds=2 * seconds)
        # Without a relay there is no CPU time of one.
        return {key: value for key, value in numbers.items() if subject.own_backend or key != CPU.key}

    return [
        *(
            Item(
                f"roundtrip-{streams}",
                f"Round trip of 64 B, {streams:,} connection{'s' if streams > 1 else ''}",
                OPERATION,
                partial(traffic.round_trips, streams=streams, seconds=seconds),
                relay=streams <= 32,
            )
            for streams in sizes.round_trips
        ),
        Item(
            "connection-16",
            "Connect, hello, one round trip, close; 16 at a time",
            OPERATION,
            partial(traffic.connections, at_once=16, seconds=seconds),
            relay=True,
        ),
        *(
            Item(
                f"paced-{pause}",
                f"A stream of four messages, {pause} ms before each; 8 at a time",
                OPERATION,
                partial(traffic.paced, at_once=8, pause=pause / 1e3, seconds=seconds),
                relay=True,
            )
            for pause in sizes.pauses
        ),
        *(
            Item(
                f"{'bothways' if both else 'upload'}-{streams}",
                f"Bulk {'both ways' if both else 'one way'}, {streams} stream{'s' if streams > 1 else ''}",
                (CPU_PER_GB, GB_PER_SECOND),
                partial(traffic.bulk, streams=streams, total=sizes.bulk, both=both),
            )
            for both in (False, True)
            for streams in sizes.bulk_streams
        ),
        *(
            Item(
                f"handshake-{clients}",
                f"Real mTLS 1.3 handshake and one round trip, {clients} client{'s' if clients > 1 else ''}",
                OPERATION,
                partial(tls, clients=clients),
                relay=clients == 2,
            )
            for clients in sizes.clients
        ),
        Item(
            "fairness-4",
            "Round trip of 64 B, 32 connections, beside 4 bulk uploads",
            (P99, P50, Metric("gb_per_s", "bulk GB/s", 2, more_is_better=True)),
            partial(traffic.beside_bulk, streams=32, uploads=4, seconds=seconds),
        ),
        *(
            Item(
                f"flood-{rate or 'most'}",
                "Connections one at a time, beside an attacker who sends hellos in records of one byte, "
                + (f"{rate:,} a second" if rate else "as many as it can"),
                (
                    Metric("p90_ms", "p90 ms"),
                    Metric("p50_ms", "p50 ms"),
                    Metric("max_ms", "longest ms", 0),
                    Metric("attacks_per_s", "attacks per s", 0),
                ),
                partial(traffic.beside_flood, rate=rate, seconds=seconds),
                peers=frozenset(("meshgate", "envoy")),
            )
            for rate in sizes.floods
        ),
        Item(
            f"idle-{sizes.idle}",
            f"Memory of an idle connection, {sizes.idle:,} of them",
            (Metric("kb_per_stream", "kB each", 2), Metric("mb", "MB in all")),
            partial(traffic.idle, streams=sizes.idle),
            peers=others,
            fresh=True,
            once=True,
        ),
        Item(
            f"scale-{sizes.scale}",
            f"A connection, and a round trip, beside {sizes.scale:,} idle connections and beside 100",
            (
                Metric("ratio", "a connection, ratio", 2),
                Metric("few_us", "CPU µs connection, 100"),
                Metric("many_us", f"CPU µs connection, {sizes.scale:,}"),
                Metric("few_round_trip_us", "CPU µs round trip, 100"),
                Metric("many_round_trip_us", f"CPU µs round trip, {sizes.scale:,}"),
            ),
            partial(traffic.beside_idle, few=100, many=sizes.scale, at_once=16, seconds=2 * seconds),
            peers=ours,
        ),
        *(
            Item(
                f"scalememory-{streams}",
                f"Memory of an idle connection, {streams:,} of them",
                (Metric("kb_per_stream", "kB each", 2), Metric("mb", "MB in all")),
                partial(traffic.idle, streams=streams),
                peers=ours,
                fresh=True,
                once=True,
            )
            for streams in (100, sizes.scale)
        ),
        Item(
            "workers-2",
            "A connection, and a round trip, with two workers on one core",
            (Metric("connection_us", "CPU µs connection"), Metric("round_trip_us", "CPU µs round trip")),
            partial(traffic.two_kinds, at_once=16, seconds=seconds),
            workers=(1, 2),
        ),
        Item(
            "hello-read",
            "Reading a hello",
            (
                Metric("corpus_us", "µs, median of the corpus"),
                Metric("envoy_us", "µs, Envoy, resumed"),
                Metric("openssl_us", "µs, OpenSSL, resumed"),
                Metric("go_us", "µs, Go, resumed, hybrid"),
                Metric("flood_us", "µs, the flood's", 0),
            ),
            alone=control.hellos,
        ),
        *(
            Item(
                f"lookup-{routes}",
                f"Looking up a route among {routes:,}",
                (Metric("hit_ns", "ns a hit", 0), Metric("miss_ns", "ns a miss", 0)),
                alone=partial(control.lookup, routes=routes),
            )
            for routes in sizes.lookups
        ),
        Item(
            f"update-{sizes.services}",
            f"A new table with {sizes.services:,} services under load: the longest round trip",
            (
                Metric("whole_max_ms", "ms, all new"),
                Metric("one_max_ms", "ms, one changed"),
                Metric("calm_max_ms", "ms, no change"),
                Metric("plan_ms", "ms to plan"),
                Metric("install_ms", "ms to install"),
            ),
            alone=partial(control.update, services=sizes.services, seconds=seconds),
        ),
        Item(
            f"replace-{sizes.open_streams}",
            f"A worker with {sizes.open_streams:,} open streams, a hundredth in bulk, is replaced by another one",
            UNDISTURBED,
            alone=partial(live_upgrade.replacement, streams=sizes.open_streams, seconds=8 * seconds),
        ),
        *([_upgrade(sizes.open_streams, 16 * seconds)] if sizes.control else []),
        Item(
            f"rest-{sizes.rest_routes}",
            f"Memory at rest with {sizes.rest_routes} routes (meshgate: one worker)",
            (Metric("mb", "MB"),),
            rest.at_rest,
            peers=others,
            routes=sizes.rest_routes,
            once=True,
        ),
        _product(sizes.rest_routes),
        *([_catalog(sizes.services, seconds)] if sizes.control else []),
    ]


def _product(services: int) -> Item:
    return Item(
        f"product-{services}",
        f"Memory of `meshgate run` at rest, {services} services, 2 workers",
        (Metric("mb", "MB"),),
        alone=partial(rest.product_at_rest, services=services, workers=2),
        once=True,
    )


def _upgrade(streams: int, seconds: float) -> Item:
    return Item(
        f"upgrade-{streams}",
        f"`meshgate run` with 2 workers and {streams:,} open streams, a hundredth in bulk, is upgraded",
        UNDISTURBED,
        alone=partial(live_upgrade.upgrade, streams=streams, seconds=seconds, workers=2),
    )


def _catalog(services: int, seconds: float) -> Item:
    return Item(
        f"catalog-{services}",
        f"`meshgate run` beside a Consul with {services:,} services, of which one changes each second",
        (
            Metric("cpu_percent", "% of a core", 2),
            Metric("used_percent", "% where it is in use", 2),
            Metric("quiet_percent", "% at rest", 2),
            Metric("table_ms", "ms to the table, in use", 0),
            Metric("cold_s", "s, not in use"),
            Metric("first_ms", "ms, first stream"),
            Metric("first_max_ms", "ms, slowest of 40"),
            Metric("again_ms", "ms, a later stream"),
            Metric("kb_per_service", "kB a service"),
            Metric("start_s", "s to start"),
            Metric("connections", "connections", 0),
        ),
        alone=partial(large_catalog, services=services, seconds=60 * seconds),
        once=True,
    )
