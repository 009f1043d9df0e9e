"""Each request is built by the method that python-consul2 has for it; what it lacks, by an endpoint group of ours.

Nothing is sent: in place of the transport stands one that keeps the requests.
"""

import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from consul import base

from meshgate.adapters.consul.api import ConsulAddress, ConsulClient, ConsulError, Cursor, Login, client, endpoints
from meshgate.adapters.consul.api.endpoints import CONSUL, Request
from meshgate.adapters.consul.api.transport import Answer

# Each method of our client, what it is called with, and the methods that build its requests: those of python-consul2
# begin with `Consul`.
CALLS: Final[list[tuple[str, tuple[Any, ...], str]]] = [
    ("acl_replication", (), "Consul.ACL.replication"),
    ("agent_checks", ("gw",), "Consul.Agent.checks"),
    ("agent_clock", (), "Consul.Status.leader"),
    ("agent_facts", (), "Consul.Agent.self"),
    ("agent_registration", ("gw",), "Consul.Agent.services"),
    ("agent_self", (), "Consul.Agent.self"),
    ("agent_service", ("gw",), "AgentService.get"),
    ("allowed", ([],), "Internal.authorize"),
    ("ca_roots", (), "Consul.Connect.Certificates.list"),
    ("confirm_readable", ("web",), "DiscoveryChain.get"),
    ("connect_instances", ("web",), "Health.connect"),
    ("datacenters", (), "Consul.Catalog.datacenters"),
    ("deregister", ("gw",), "Consul.Agent.Service.deregister"),
    ("deregister_check", ("service:gw",), "Consul.Agent.Check.deregister"),
    ("destination_limits", ("gw",), "Consul.Config.list"),
    ("discovery_chain", ("web",), "DiscoveryChain.get"),
    ("exported_entry", (Cursor(), "default"), "Consul.Config.list"),
    ("exported_services", (), "Listing.list"),
    ("federated_gateways", (), "Internal.federation_states"),
    ("gateway_names", (), "Internal.ui_services"),
    ("gateway_names_by_catalog", (), "Consul.Catalog.services"),
    ("instances", ("gw",), "Consul.Health.service"),
    ("intention", ("web", "api"), "Consul.Connect.Intentions.check Consul.Connect.Intentions.list_match"),
    ("leaf", ("web",), "Consul.Agent.Connect.leaf_certificates"),
    ("namespaces", (), "Listing.list"),
    ("node_checks", ("n1",), "Consul.Health.node"),
    ("own_instances", ("gw", "gw-1"), "Consul.Health.service"),
    ("partitions", (), "Listing.list"),
    ("peer_through", (), "Consul.Config.list"),
    ("peering_roots", ("east",), "Peerings.get"),
    ("peerings", (), "Peerings.options Internal.authorize Listing.list"),
    ("proxy_defaults_mode", (), "Consul.Config.list"),
    ("register", ({"Name": "gw"},), "AgentService.register_definition"),
    ("resolvers", (), "Consul.Config.list"),
    ("sameness_group", ("all",), "Consul.Config.list"),
    ("service_defaults", ("web",), "Consul.Config.get"),
    ("service_names", (), "Consul.Catalog.services"),
    ("sidecars", (), "Consul.Agent.services"),
    ("summaries", (), "Internal.ui_services"),
    ("token_expiry", (), "Consul.ACL.Tokens.self"),
    ("visible_nodes", (), "Consul.Catalog.nodes"),
]
# Where python-consul2 has a method, but none that will do; the reason stands at the line.
OUR_OWN: Final = {"AgentService.register_definition"}
# What a call has to read in order to go on to its next request.
ANSWERS: Final = {
    "/v1/acl/login": b'{"SecretID": "s"}',
    "/v1/connect/intentions/check": b'{"Allowed": false}',
    "/v1/internal/acl/authorize": b'[{"Allow": true}]',
}


class Requests:
    """Keeps the requests of a client: what was built, by which method, and what was to be sent."""

    def __init__(self) -> None:
        self.built: list[tuple[str, Request]] = []
        self.sent: list[Request] = []

    def build(self, *args: Any) -> Request:
        request = Request(*args)
        self.built.append((builder(), request))
        return request

    async def send(self, request: Request) -> Answer:
        self.sent.append(request)
        return Answer(ANSWERS.get(request.path, b"null"), {"X-Consul-Index": "1"})

    async def aclose(self) -> None:
        pass

    @property
    def builders(self) -> list[str]:
        """The method that built each request that was sent; "" for one that was built elsewhere."""
        return [self._builder(request) for request in self.sent]

    def _builder(self, sent: Request) -> str:
        paths = sent.path, sent.path.removeprefix("/v1")  # See `AgentConnect.leaf_certificates`.
        found = (name for name, built in self.built if built.method == sent.method and built.path in paths)
        return next(found, "")


def builder() -> str:
    """The method of an endpoint group that a request is being built by; "" where it is none."""
    helpers = ("_Requests._request", "_Group._get")
    frame = inspect.currentframe()
    while frame is not None:
        name = frame.f_code.co_qualname
        if frame.f_globals["__name__"] in (base.__name__, endpoints.__name__) and name not in helpers:
            return name
        frame = frame.f_back
    return ""


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    kept = Requests()
    monkeypatch.setattr(endpoints, "Request", kept.build)
    monkeypatch.setattr(client, "Transport", lambda *_args, **_options: kept)
    return kept


def of_python_consul2(group: type = base.Consul) -> Iterator[tuple[str, str, str]]:
    """Its methods, with the method of HTTP and a pattern of the path that each asks for."""
    for name, member in vars(group).items():
        if inspect.isclass(member) and name != "Snapshot":  # That one opens files.
            yield from of_python_consul2(member)
        elif inspect.isfunction(member) and group is not base.Consul and not name.startswith("_"):
            endpoint: Any = object.__new__(group)
            endpoint.agent = CONSUL
            given = ["*" for it in inspect.signature(member).parameters.values() if it.default is it.empty][1:]
            with warnings.catch_warnings(), suppress(AssertionError, TypeError):  # It may need one of its options.
                warnings.simplefilter("ignore")
                request = member(endpoint, *given)
                yield member.__qualname__, request.method, re.escape(request.path).replace(r"\*", "[^/]+")


KNOWN: Final = list(of_python_consul2())


@pytest.mark.parametrize(("method", "arguments", "builders"), CALLS)
async def test_a_request_is_built_by_the_method_that_python_consul2_has_for_it(
    requests: Requests, method: str, arguments: tuple[Any, ...], builders: str
) -> None:
    async with ConsulClient(ConsulAddress()) as consul:
        with suppress(ConsulError):  # The answers are empty.
            await getattr(consul, method)(*arguments)
    assert requests.builders == builders.split()
    for name, request in requests.built:
        known = [theirs for theirs, verb, path in KNOWN if verb == request.method and re.fullmatch(path, request.path)]
        assert name in known or not known or name in OUR_OWN


async def test_login_and_logout_are_those_of_python_consul2(requests: Requests, tmp_path: Path) -> None:
    bearer = tmp_path / "bearer"
    bearer.write_text("jwt")
    async with ConsulClient(ConsulAddress(), login=Login("kubernetes", str(bearer))) as consul:
        await consul.datacenters()
    assert requests.builders == ["Consul.ACL.login", "Consul.Catalog.datacenters", "Consul.ACL.logout"]


def test_no_method_of_the_client_is_left_out() -> None:
    methods = {name for name, member in vars(ConsulClient).items() if inspect.iscoroutinefunction(member)}
    assert {name for name in methods if not name.startswith("_")} == {name for name, _, _ in CALLS}


def test_what_python_consul2_asks_for_is_found() -> None:
    assert ("Consul.Health.service", "GET", "/v1/health/service/[^/]+") in KNOWN
    assert ("Consul.ACL.logout", "POST", "/v1/acl/logout") in KNOWN
    assert {name.split(".")[1] for name, _, _ in KNOWN} >= {"ACL", "Agent", "Catalog", "Config", "Connect", "Status"}
