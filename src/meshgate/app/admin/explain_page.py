"""`/explain`: the decision about a name, and what Consul knows about it and the route table does not, a line each.

Everything that comes from outside is shown as printable ASCII and cut: the output of a check is anybody's text.
"""

import dataclasses
import re
import time
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Final

import trio

from meshgate.adapters.admin.http_server import Lane, Request, Response, error_response, json_response
from meshgate.adapters.consul import Checks, WatchState
from meshgate.adapters.relay.pool import LOOKUP_SECONDS
from meshgate.app.admin import answers
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.admin.views import (
    destination_facts,
    ejection_words,
    explain_view,
    one_line,
    record_words,
    streams_words,
    tls_words,
)
from meshgate.core.catalog import in_namespace
from meshgate.core.durations import format_duration
from meshgate.core.explain import Explanation, Step, explain
from meshgate.core.reasons import Reason
from meshgate.core.routes import KINDS, Endpoint, Route, RouteKind
from meshgate.core.sni import DEFAULT, ServiceSni, parse
from meshgate.core.text import counted

# Seconds for which a name that was refused is one that somebody may want to know about.
_LATELY: Final = 3600.0
_MOST_NAMES: Final = 50
_SERVICE: Final = re.compile(r"([\w-]+/)?[\w.-]+", re.ASCII)
_OUT: Final = "others are tried first until this gateway itself has connected to it again"
_SWEPT: Final = "no blocking query is open for lack of connections: asked every few seconds, or before the next stream"
_MOST_ENDPOINTS: Final = 5
_MOST_CHECKS: Final = 3


class ExplainPage:
    """Answers, also with what only Consul can say: it is asked then."""

    def __init__(self, gateway: GatewayView) -> None:
        self._gateway = gateway
        self._checks = Checks(gateway.node_checks)
        self._lane = Lane()

    async def of_sni(self, request: Request) -> Response:
        """The explanation of `?sni=`, a name as a client sends it."""
        sni = request.query.get("sni")
        return error_response(400, "say which name: /explain?sni=NAME") if sni is None else await self._answer(sni)

    async def of_name(self, request: Request) -> Response:
        """The explanation of `?name=`, which may be a service's, in the datacenter `dc`."""
        name = request.query.get("name")
        if name is None:
            return error_response(400, "say which name: /explain/name?name=SERVICE&dc=DATACENTER")
        if not self._gateway.table().trust_domain and _SERVICE.fullmatch(name):
            return await self._answer(name, (Step("service", "server names are not known before the catalog is"),))
        sni = self._meant(name, request.query.get("dc", ""))
        said = f"{one_line(name)} stands for {one_line(sni)}; a client that sends {one_line(name)} is refused"
        return await self._answer(sni, () if sni == name else (Step("service", said),))

    async def _answer(self, sni: str, notes: tuple[Step, ...] = ()) -> Response:
        # What a stream of this name would wait for: it is the answer that such a stream would get.
        with trio.move_on_after(LOOKUP_SECONDS):
            await self._gateway.look_up(sni)
        # Looking for similar names among thousands takes a tenth of a second, which others should not wait for.
        described = partial(explain, notes=notes, domain=self._gateway.domain)
        explanation = await self._lane.share(
            (sni, notes), lambda: trio.to_thread.run_sync(described, self._gateway.table(), sni)
        )
        return json_response(explain_view(await self.completed(explanation)))

    async def names(self, request: Request) -> Response:
        """Names in which `?text=` occurs and that may be asked about: what was refused in the last hour comes first."""
        text, since = request.query.get("text", "").lower(), time.time() - _LATELY
        refused = [it.server_name for at, it in self._gateway.recent_refusals() if at > since and it.server_name]
        table = self._gateway.table()

        def found() -> Response:
            routes, services, others = list(table), RouteKind.SERVICE, RouteKind.DATACENTER
            return json_response(
                answers.Names(
                    refused=_first(refused, text),
                    services=_first((route.destination for route in routes if route.kind is services), text),
                    datacenters=_first((route.destination for route in routes if route.kind is others), text),
                    snis=_first((route.sni for route in routes if not route.suffix), text),
                )
            )

        return await trio.to_thread.run_sync(found)

    def _meant(self, name: str, datacenter: str) -> str:
        """The SNI of a service, where `name` is one; else the name itself: no SNI of the mesh is without a dot."""
        table = self._gateway.table()
        if not _SERVICE.fullmatch(name) or (not datacenter and ("." in name or table.find(name) is not None)):
            return name
        namespace, _, service = name.rpartition("/")
        here = datacenter or table.datacenter
        partition = table.partition if here.lower() == table.datacenter.lower() else DEFAULT
        return str(ServiceSni(service, here, table.trust_domain, namespace or DEFAULT, partition)).lower()

    async def completed(self, explanation: Explanation) -> Explanation:
        """The explanation with what Consul says of it; asks Consul, for a few seconds at most."""
        gateway = self._gateway
        steps = list(explanation.steps)
        if explanation.reason is Reason.HELLO_MALFORMED:
            return explanation
        if (age := gateway.from_disk) is not None:
            steps.append(Step("catalog", f"from disk, {age:.0f} s old: Consul has not answered yet"))
        elif not gateway.consul_found:
            steps.append(Step("catalog", "not known yet: Consul has not answered"))
        else:
            route = explanation.route
            if route is not None:
                steps += await self._why_unhealthy(route)
                totals, key = gateway.totals(), (route.kind, route.destination)
                told = {"streams": streams_words(destination_facts(totals)(key)), "tls": tls_words(totals, key)}
                steps += [Step(rule, words) for rule, words in told.items() if words]
                steps += self._met(route)
                steps += _age_of(route, gateway.watches())
            elif explanation.reason is Reason.UNKNOWN_SNI:
                steps += await self._why_missing(explanation.sni)
            steps += _failing(gateway.watches())
        steps += _next(explanation)
        return dataclasses.replace(explanation, steps=tuple(steps))

    async def _why_missing(self, sni: str) -> list[Step]:
        table = self._gateway.table()
        asked = parse(sni.lower(), trust_domain=table.trust_domain)
        here = table.datacenter.lower(), table.partition.lower()
        if not isinstance(asked, ServiceSni) or (asked.datacenter, asked.partition) != here:
            return []
        why = await self._gateway.why_missing(in_namespace(asked.namespace, asked.service))
        return [] if why is None else [Step("consul", why)]

    async def _why_unhealthy(self, route: Route) -> list[Step]:
        unhealthy = [endpoint for endpoint in route.endpoints if not endpoint.healthy]
        datacenter = route.destination if route.kind is RouteKind.DATACENTER else ""
        told = unhealthy[:_MOST_ENDPOINTS]
        steps = [Step("why unhealthy", await self._why(route, endpoint, datacenter)) for endpoint in told]
        more = len(unhealthy) - len(told)
        return [*steps, Step("why unhealthy", f"{more} more endpoints are not asked about")] if more else steps

    def _met(self, route: Route) -> list[Step]:
        """What this gateway has met of the endpoints, those that fail first."""
        met = [(each, self._gateway.endpoint_facts((each.address, each.port))) for each in route.endpoints]
        met.sort(key=lambda pair: (pair[1].ejected is None, -pair[1].failures, -pair[1].unanswered))
        ejected = [(each, facts.ejected) for each, facts in met if facts.ejected][:_MOST_ENDPOINTS]
        used = [pair for pair in met if pair[1].streams or pair[1].unanswered or pair[1].failures]
        steps = [Step("ejected", f"{_who(each)} {ejection_words(out)}; {_OUT}") for each, out in ejected]
        steps += [Step("endpoint", f"{_who(each)}: {record_words(facts)}") for each, facts in used[:_MOST_ENDPOINTS]]
        more = len(used) - _MOST_ENDPOINTS
        return [*steps, Step("endpoint", f"{counted(more, 'more endpoint')}: /clusters has all")] if more > 0 else steps

    async def _why(self, route: Route, endpoint: Endpoint, datacenter: str) -> str:
        who = f"{_who(endpoint)}{self._since(route, endpoint)}"
        if not KINDS[route.kind].nodes_known or not endpoint.weight:
            return f"{who}: {one_line(endpoint.cause)}"
        checks = await self._checks.of(endpoint.node, endpoint.instance, datacenter=datacenter)
        if isinstance(checks, str):
            return f"{who}: its checks are not known: {one_line(checks)}"
        failing = sorted(
            (check for check in checks if check.status != "passing"), key=lambda check: check.status != "critical"
        )
        if not failing:
            return f"{who}: {one_line(endpoint.cause)}; Consul shows no failing check at this moment"
        said = [
            f"check {one_line(check.id)} ({one_line(check.name)}) is {one_line(check.status)}"
            + (f', it says "{one_line(check.output)}"' if check.output.strip() else ", it says nothing")
            for check in failing[:_MOST_CHECKS]
        ]
        more = [f"{len(failing) - _MOST_CHECKS} more checks fail"] if len(failing) > _MOST_CHECKS else []
        return f"{who}: {'; '.join([*said, *more])}"

    def _since(self, route: Route, endpoint: Endpoint) -> str:
        since = self._gateway.unhealthy_since(route, endpoint)
        if since is None:
            return ""
        seconds = format_duration(round(trio.current_time() - since.time))
        return (
            f" for {seconds}"
            if since.seen
            else f" for {seconds} or longer (it already was when this gateway first saw it)"
        )


def _who(endpoint: Endpoint) -> str:
    return f"{one_line(endpoint.instance)} on {one_line(endpoint.node)}"


def _first(names: Iterable[str], text: str) -> list[str]:
    """The first few that hold `text`, each once and in order; what a stranger made up may not be fit to be shown."""
    fit = (name for name in dict.fromkeys(names) if text in name.lower() and name.isascii() and name.isprintable())
    return list(islice(fit, _MOST_NAMES))


def _age_of(route: Route, states: list[WatchState]) -> list[Step]:
    """How old what is known of a route is: the age of the answers of the watches that it is made from."""
    kind = KINDS[route.kind].watch
    found = [state for state in states if state.key.kind == kind and _is_of(state, route)]
    if not found:
        return []
    now = trio.current_time()
    oldest = max(found, key=lambda state: state.age(now))
    age = now - (oldest.started if oldest.last_success is None else oldest.last_success)
    if oldest.error:
        kept = f"Consul has not answered since: {one_line(oldest.error)}"
    else:
        kept = _SWEPT if oldest.swept else "a blocking query is open, changes arrive at once"
    return [Step("data age", f"{format_duration(round(age))}; {kept}")]


def _is_of(state: WatchState, route: Route) -> bool:
    if route.kind is RouteKind.DATACENTER:
        return state.key.place == route.destination
    return str(state.key) == route.destination.lower()


def _failing(states: list[WatchState]) -> list[Step]:
    ages = [state.age(trio.current_time()) for state in states if state.error]
    if not ages:
        return []
    return [Step("failing watches", f"{len(ages)}, the oldest answer is {max(ages):.0f} s old")]


def _next(explanation: Explanation) -> list[Step]:
    """Where the answer goes on: a gateway elsewhere decides for itself."""
    route = explanation.route
    if route is None or not KINDS[route.kind].elsewhere:
        return []
    there = f"{KINDS[route.kind].elsewhere} {one_line(route.destination)}"
    return [Step("next", f"ask a gateway of {there}, which decides for itself: meshgate explain there")]
