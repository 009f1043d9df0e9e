"""What the admin address says about core's types: pure functions to the shapes of `answers`.

`/clusters` is the route table as Envoy's admin page shows clusters, for scripts that read that of a gateway. A route is
a cluster under the name that Consul gives it: the SNI, without `*.` for a whole datacenter. What Envoy counts for each
host and this product does not is left out, not made up; what only this product knows has names that Envoy does not use.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, get_args

from msgspec.structs import asdict

from meshgate.adapters.relay import FIRST_BYTE_BUCKETS, Counters, Destination, Refused, Sender, StreamRecord
from meshgate.adapters.relay.pool import WorkerLoss
from meshgate.app.admin import answers
from meshgate.app.admin.answers import DestinationFacts, Ejection, EndpointFacts
from meshgate.app.gateway.stream_observer import KEPT
from meshgate.app.gateway.upgrade_record import Upgrade
from meshgate.app.logs.logs import rfc3339
from meshgate.core.addresses import host_of, host_port
from meshgate.core.durations import format_duration
from meshgate.core.explain import Explanation
from meshgate.core.hello import TlsVersion
from meshgate.core.outlier_detection import Address
from meshgate.core.reasons import Alert, StreamEnd
from meshgate.core.routes import Endpoint, Route, RouteTable
from meshgate.core.text import counted, printable

_MOST_TEXT: Final = 200

Facts = Callable[[Address], EndpointFacts]
"""What the gateway has met of the endpoint at an address."""


def routes_view(table: RouteTable) -> answers.Routes:
    """The answer to `/routes`: all routes with all known endpoints, exact names first, and exports without a route."""
    return answers.Routes(
        datacenter=table.datacenter,
        partition=table.partition,
        trust_domain=table.trust_domain,
        routes=[
            answers.Route(
                sni=route.sni,
                match="suffix" if route.suffix else "exact",
                kind=route.kind,
                destination=route.destination,
                endpoints=[endpoint_view(endpoint) for endpoint in route.endpoints],
            )
            for route in table
        ],
        unroutable=[answers.Unroutable(name, printable(why)) for name, why in sorted(table.unroutable.items())],
    )


def explain_view(explanation: Explanation) -> answers.Explanation:
    """The answer to `/explain`. Without a route, `route` and `kind` are null and `endpoints` is empty."""
    return answers.Explanation(
        sni=explanation.sni,
        decision=explanation.decision,
        reason=explanation.reason,
        route=explanation.route.sni if explanation.route else None,
        kind=explanation.kind,
        endpoints=[endpoint_view(endpoint) for endpoint in explanation.endpoints],
        steps=[answers.Step(step.rule, step.outcome) for step in explanation.steps],
    )


def endpoint_view(it: Endpoint) -> answers.Endpoint:
    return answers.Endpoint(it.address, it.port, it.healthy, it.cause or None, it.weight, it.node, it.instance)


def destination_facts(counters: Counters) -> Callable[[Destination], DestinationFacts]:
    """What became of the streams of a destination, by totals that are not to change meanwhile."""
    refused: Counter[Destination] = Counter()
    for (kind, name, _), count in counters.failed.items():
        refused[kind, name] += count

    def of(key: Destination) -> DestinationFacts:
        slots = counters.first_bytes.get(key, [])[:-1]
        return DestinationFacts(
            streams=counters.connections.get(key, 0),
            open=counters.open.get(key, 0),
            refused=refused[key],
            connect_failures=counters.connect_failures.get(key, 0),
            answered=sum(slots),
            unanswered=counters.unanswered.get(key, 0),
            first_byte_p50=_bound(slots, 0.5),
            first_byte_p99=_bound(slots, 0.99),
        )

    return of


def _bound(slots: Sequence[int], share: float) -> float | None:
    wanted, below = sum(slots) * share, 0
    for bound, count in zip(FIRST_BYTE_BUCKETS, slots, strict=False):
        below += count
        if wanted and below >= wanted:
            return bound
    return None


def one_line(text: str) -> str:
    """A text from outside on one line of printable ASCII, cut."""
    flat = " ".join(text.split())
    escaped = ascii(flat[: _MOST_TEXT + 1])[1:-1]
    return escaped if len(escaped) <= _MOST_TEXT else f"{escaped[: _MOST_TEXT - 3]}..."


def streams_words(became: DestinationFacts) -> str:
    """What became of the streams of a destination; "" where none ended or was answered."""
    ended = became.answered + became.unanswered
    if not ended:
        return ""
    share = f"{100 * became.unanswered / ended:.3g}% ended without a byte from an endpoint"
    said = [counted(ended, "stream") + " since the start", share]
    if became.first_byte_p50 is not None:
        said.append(f"half had their first byte within {format_duration(became.first_byte_p50)}")
    if became.first_byte_p99 is not None:
        said.append(f"99 of 100 within {format_duration(became.first_byte_p99)}")
    return ", ".join(said)


def tls_words(counters: Counters, key: Destination) -> str:
    """What clients offered a destination, and what either side said in the clear; "" where there was no hello."""
    hellos = {
        (version, resumption): counters.hellos.get((*key, version, resumption), 0)
        for version in get_args(TlsVersion)
        for resumption in (True, False)
    }
    offers = sum(hellos.values())
    if not offers:
        return ""
    versions = {name: hellos[name, True] + hellos[name, False] for name, _ in hellos}
    offered = ", ".join(f"{name} {100 * number / offers:.3g}%" for name, number in versions.items() if number)
    resumed = sum(number for (_, resumption), number in hellos.items() if resumption)
    said = [f"clients offer {offered}", f"{100 * resumed / offers:.3g}% offer to resume a session"]
    alerts = [
        (number, f"{number} {alert} from {sender}s")
        for sender in get_args(Sender)
        for alert in Alert
        if (number := counters.alerts.get((*key, sender, alert), 0))
    ]
    if alerts:
        alerts.sort(key=lambda each: -each[0])
        said.append(f"alerts in the clear: {', '.join(words for _, words in alerts)}")
    return "; ".join(said)


def ejection_words(out: Ejection) -> str:
    """For how long an endpoint gets no streams while others are left, and why."""
    why = f", the first: {one_line(out.why)}" if out.why else ""
    return f"for {_ago(out.since)}: {counted(out.failures, 'failed connection')} in a row{why}"


def record_words(facts: EndpointFacts) -> str:
    """What became of the streams of an endpoint; "" where it had none."""
    if not facts.streams + facts.unanswered + facts.failures:
        return ""
    said = [counted(facts.streams + facts.unanswered, "stream")]
    if facts.unanswered:
        said.append(f"{facts.unanswered} without a byte from it")
    if facts.first_byte_seconds is not None:
        said.append(f"first byte in {facts.first_byte_seconds * 1000:.3g} ms lately")
    if facts.last_success is not None:
        said.append(f"last answered {_ago(facts.last_success)} ago")
    if facts.failures:
        said.append(counted(facts.failures, "failed connection"))
    if facts.last_failure is not None:
        said.append(f"the last {_ago(facts.last_failure)} ago: {one_line(facts.last_error or '')}")
    return ", ".join(said)


def _ago(unix: float) -> str:
    return format_duration(round(max(0.0, time.time() - unix)))


def upgrade_view(upgrade: Upgrade | None) -> answers.Upgrade | None:
    if upgrade is None:
        return None
    known = asdict(upgrade)
    return answers.Upgrade(**known | {"started": rfc3339(upgrade.started)})


def ended_view(
    since: float,
    counters: Counters,
    ended: Iterable[StreamRecord],
    refusals: Iterable[tuple[float, Refused]],
    losses: Iterable[WorkerLoss],
    names: Callable[[str], str],
) -> answers.EndedStreams:
    """How streams ended since the start, and the last of those that did not end in order, the newest first."""
    ends = {end: counters.ends.get(end, 0) for end in StreamEnd} | {StreamEnd.REFUSED: sum(counters.refused.values())}
    rows = [*(_ended(it, names) for it in ended), *(refusal_view(*it, names) for it in refusals)]
    rows.sort(key=lambda row: row.end_time, reverse=True)
    lost = [answers.WorkerLost(rfc3339(it.at), it.worker, it.cause, it.streams, it.known) for it in losses]
    return answers.EndedStreams(rfc3339(since), KEPT, ends, lost, rows)


def _ended(record: StreamRecord, names: Callable[[str], str]) -> answers.EndedStream:
    return answers.EndedStream(
        end_time=rfc3339(record.started + record.duration),
        end=record.end,
        reason=None,
        detail="",
        client=record.client,
        caller=names(host_of(record.client)) or None,
        sni=record.sni,
        route=record.route,
        endpoint=record.endpoint,
        duration_ms=round(record.duration * 1000),
        bytes_received=record.bytes_received,
        bytes_sent=record.bytes_sent,
        worker=record.worker,
    )


def refusal_view(at: float, it: Refused, names: Callable[[str], str]) -> answers.EndedStream:
    """What was refused has only a part of it: it went nowhere, and its client is known without a port."""
    caller, end, unknown = names(it.client) or None, StreamEnd.REFUSED, (None,) * 6
    return answers.EndedStream(rfc3339(at), end, it.reason, it.detail, it.client, caller, it.server_name, *unknown)


# --- /clusters -------------------------------------------------------------------------------------------------------

Active = Mapping[tuple[str, str], int]
"""Open streams by the `sni` of their route and their endpoint (`host_port`)."""


def clusters_view(table: RouteTable, active: Active, facts: Facts, counters: Counters) -> answers.Clusters:
    """`/clusters?format=json`, in the shape of Envoy's `envoy.admin.v3.Clusters`, with `meshgate` for what is ours."""
    of_all = destination_facts(counters)
    return answers.Clusters(
        [
            answers.ClusterStatus(
                name=route.name,
                observability_name=route.name,
                added_via_api=True,
                host_statuses=[_host(route, endpoint, active, facts) for endpoint in route.endpoints],
                meshgate=of_all((route.kind, route.destination)),
            )
            for route in table
        ]
    )


def _host(route: Route, endpoint: Endpoint, active: Active, facts: Facts) -> answers.HostStatus:
    met = facts((endpoint.address, endpoint.port))
    health: dict[str, str | bool] = {"eds_health_status": "HEALTHY" if endpoint.healthy else "UNHEALTHY"}
    health |= {} if endpoint.healthy else {"failed_eds_health": True}
    health |= {"failed_outlier_check": True} if met.ejected else {}
    stats = (
        ("cx_active", active.get((route.sni, host_port(endpoint.address, endpoint.port)), 0)),
        ("cx_connect_fail", met.failures),
        # As in Envoy, an attempt that failed is a connection, too.
        ("cx_total", met.streams + met.unanswered + met.failures),
    )
    return answers.HostStatus(
        address={"socket_address": answers.SocketAddress(endpoint.address, endpoint.port)},
        stats=[
            {"name": name, "value": str(value), "type": "GAUGE" if name == "cx_active" else "COUNTER"}
            for name, value in stats
        ],
        health_status=health,
        weight=endpoint.weight,
        hostname=endpoint.node,
        meshgate=met,
    )


def clusters_text(clusters: answers.Clusters) -> str:
    """`/clusters`: the same in lines of `name::metric::value` and `name::address::metric::value`."""
    return "".join(f"{line}\n" for cluster in clusters.cluster_statuses for line in _lines(cluster))


def _lines(cluster: answers.ClusterStatus) -> Iterator[str]:
    name, all_ = printable(cluster.name), cluster.meshgate
    yield f"{name}::observability_name::{name}"
    yield f"{name}::added_via_api::true"
    yield f"{name}::cx_active::{all_.open}"
    yield f"{name}::cx_connect_fail::{all_.connect_failures}"
    yield f"{name}::cx_total::{all_.streams}"
    yield f"{name}::refused::{all_.refused}"
    yield f"{name}::unanswered::{all_.unanswered}"
    for part, seconds in (("p50", all_.first_byte_p50), ("p99", all_.first_byte_p99)):
        if seconds is not None:
            yield f"{name}::first_byte_{part}_ms::{seconds * 1000:g}"
    for status in cluster.host_statuses:
        address, met = status.address["socket_address"], status.meshgate
        host = f"{name}::{printable(host_port(address.address, address.port_value))}"
        for stat in status.stats:
            yield f"{host}::{stat['name']}::{stat['value']}"
        yield f"{host}::hostname::{printable(status.hostname)}"
        flags = "".join(f"/{flag}" for flag, value in status.health_status.items() if value is True)
        yield f"{host}::health_flags::{flags or 'healthy'}"
        yield f"{host}::weight::{status.weight}"
        yield f"{host}::unanswered::{met.unanswered}"
        if met.first_byte_seconds is not None:
            yield f"{host}::first_byte_ms::{met.first_byte_seconds * 1000:.3f}"
        if met.last_success is not None:
            yield f"{host}::last_success::{rfc3339(met.last_success, 'seconds')}"
        if met.last_failure is not None:
            yield f"{host}::last_failure::{rfc3339(met.last_failure, 'seconds')} {printable(met.last_error or '')}"
        if met.ejected:
            yield f"{host}::ejected_since::{rfc3339(met.ejected.since, 'seconds')} {printable(met.ejected.why or '')}"
