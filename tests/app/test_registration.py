"""What the agent makes of the gateway's registration takes effect: listeners, limits, names."""

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meshgate.adapters.consul import RegistrationError, WatchRegistry
from meshgate.adapters.consul.api import ConsulClient, ConsulError, HealthCheck, OwnInstance, OwnRegistration
from meshgate.adapters.relay import Limits
from meshgate.app.errors import CommandError
from meshgate.app.gateway.listeners import Listeners
from meshgate.app.gateway.registration import GatewayRegistration
from meshgate.app.settings.settings import Settings
from meshgate.core.catalog import NOWHERE, Locality
from meshgate.core.proxy_config import KEEPALIVE_UNSET, BindAddress, DestinationLimits, Keepalive, ListenPlan
from tests.adapters.consul.model import Model, unreachable

if TYPE_CHECKING:
    from meshgate.adapters.relay.pool import RelayPool

A, B, C = (BindAddress(name, f"127.0.0.{number}", 8443) for number, name in enumerate("abc", 1))
ANY = BindAddress("any", "", 8443)


@dataclass
class Pool:
    """A relay that is only told."""

    bound: list[tuple[str, int]] = field(default_factory=list)
    failing: dict[str, int] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    steps: list[str] = field(default_factory=list)

    def bind(self, _name: str, host: str, port: int) -> tuple[str, int]:
        code = self.failing.get(host)
        taken = any(port == other and "" in (host, place) for place, other in self.bound)
        if code or taken:
            code = code or errno.EADDRINUSE
            raise OSError(code, os.strerror(code))
        self.bound.append((host, port))
        self.steps.append(f"+{host}")
        return host, port

    def unbind(self, host: str, port: int) -> None:
        self.bound.remove((host, port))
        self.steps.append(f"-{host}")

    def limit(self, limits: Limits) -> None:
        self.limits = limits


def listeners_of(pool: Pool) -> Listeners:
    return Listeners(cast("RelayPool", pool))


@asynccontextmanager
async def following(pool: Pool, *bound: BindAddress) -> AsyncIterator[Listeners]:
    listeners = listeners_of(pool)
    listeners.bind(bound)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listeners.run)
        yield listeners
        nursery.cancel_scope.cancel()


async def test_what_stays_is_not_touched_and_new_comes_before_old_goes(autojump_clock: MockClock) -> None:
    pool = Pool()
    async with following(pool, A, B) as listeners:
        listeners.want(ListenPlan((B, C)))
        await trio.sleep(1)
        assert pool.steps == ["+127.0.0.1", "+127.0.0.2", "+127.0.0.3", "-127.0.0.1"]
        assert listeners.addresses == (B, C)


async def test_one_address_of_many_can_follow_the_one_that_stands_for_all(autojump_clock: MockClock) -> None:
    pool = Pool()
    async with following(pool, ANY) as listeners:
        listeners.want(ListenPlan((A,)))
        await trio.sleep(1)
        assert pool.bound == [("127.0.0.1", 8443)]
        assert listeners.problems() == []


async def test_old_address_stays_while_nothing_of_the_new_can_be_had(autojump_clock: MockClock) -> None:
    pool = Pool(failing={B.address: errno.EADDRNOTAVAIL})
    async with following(pool, A) as listeners:
        with capture_logs() as logs:
            listeners.want(ListenPlan((B,)))
            await trio.sleep(100)
        assert pool.bound == [("127.0.0.1", 8443)]
        assert listeners.problems() == ["cannot bind b=127.0.0.2:8443: Cannot assign requested address"]
        assert len(logs) == 1
        pool.failing.clear()
        await trio.sleep(10)
        assert pool.bound == [("127.0.0.2", 8443)]
        assert listeners.problems() == []


async def test_plan_without_an_address_changes_nothing_and_is_a_problem(autojump_clock: MockClock) -> None:
    pool = Pool()
    async with following(pool, A) as listeners:
        listeners.want(ListenPlan((), ("listener x: nonsense",)))
        await trio.sleep(1)
        assert pool.bound == [("127.0.0.1", 8443)]
        problems = ["listener x: nonsense", "the registration leaves no address to listen on, so nothing changes"]
        assert listeners.problems() == problems
        listeners.want(ListenPlan((A,)))
        await trio.sleep(1)
        assert listeners.problems() == []


async def test_nothing_changes_once_the_gateway_stops(autojump_clock: MockClock) -> None:
    pool = Pool()
    async with following(pool, A) as listeners:
        listeners.stop()
        listeners.want(ListenPlan((B,)))
        await trio.sleep(1)
        assert pool.bound == [("127.0.0.1", 8443)]


async def test_address_that_cannot_be_had_at_the_start_ends_the_gateway() -> None:
    listeners = listeners_of(Pool(failing={B.address: errno.EACCES}))
    with pytest.raises(CommandError, match=r"cannot bind b=127\.0\.0\.2:8443: Permission denied"):
        listeners.bind((A, B))


# --- the registration --------------------------------------------------------------------------------------------


@dataclass
class Kept:
    keeper: GatewayRegistration
    model: Model
    pool: Pool
    replans: list[tuple[bool, Locality]] = field(default_factory=list)

    async def merged(self, **config: Any) -> None:
        """Central configuration changes, and the agent merges it."""
        held = self.model.agent["mesh-gateway"]
        self.model.agent["mesh-gateway"] = replace(held, config=config)
        self.model.change()
        await trio.sleep(2)


@asynccontextmanager
async def kept(down: ConsulError | None = None, **values: str) -> AsyncIterator[Kept]:
    settings = Settings.load(environ={"MESHGATE_MAX_CONNECTIONS": "100"} | values)
    pool, model, replans = Pool(), Model(), list[tuple[bool, Locality]]()
    model.fail(down)
    keeper = GatewayRegistration(
        settings,
        cast("ConsulClient", model),
        WatchRegistry(),
        cast("RelayPool", pool),
        lambda *options: replans.append(options),
    )
    keeper.bind()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.listeners.run)
        nursery.start_soon(keeper.registrar.follow_limits)
        nursery.start_soon(keeper.registrar.run)
        await trio.sleep(1)
        yield Kept(keeper, model, pool, replans)
        nursery.cancel_scope.cancel()


async def test_listeners_and_limits_follow_central_configuration(autojump_clock: MockClock) -> None:
    async with kept() as it:
        assert it.pool.bound == [("", 8443)]
        extra = {"extra": {"address": "127.0.0.9", "port": 9443}}
        key = "envoy_gateway_remote_tcp"
        await it.merged(
            envoy_gateway_bind_addresses=extra,
            connect_timeout_ms=250,
            **{f"{key}_enable_keepalive": True, f"{key}_keepalive_time": 33},
        )
        assert it.pool.bound == [("", 8443), ("127.0.0.9", 9443)]
        assert it.pool.limits.connect_timeout == 0.25
        assert it.pool.limits.remote_keepalive == Keepalive(33)
        assert it.pool.limits.keepalive == 60
        await it.merged()
        assert it.pool.bound == [("", 8443)]
        assert (it.pool.limits.connect_timeout, it.pool.limits.remote_keepalive) == (5, KEEPALIVE_UNSET)


async def test_what_was_set_here_counts_before_central_configuration(autojump_clock: MockClock) -> None:
    async with kept(MESHGATE_CONNECT_TIMEOUT="3s", MESHGATE_KEEPALIVE="0") as it:
        await it.merged(
            connect_timeout_ms=250,
            envoy_gateway_remote_tcp_enable_keepalive=True,
            envoy_gateway_remote_tcp_keepalive_time=33,
        )
        assert (it.pool.limits.connect_timeout, it.pool.limits.keepalive) == (3, 0)
        assert it.pool.limits.remote_keepalive == KEEPALIVE_UNSET


async def test_limits_of_the_gateways_own_service_defaults_are_followed(autojump_clock: MockClock) -> None:
    async with kept() as it:

        def limits() -> tuple[int, int]:
            return it.pool.limits.max_connections_per_destination, it.pool.limits.max_pending_per_destination

        assert limits() == (0, 0)
        it.model.limits_of["mesh-gateway"] = DestinationLimits(connections=7, pending=3)
        it.model.change()
        await trio.sleep(6)
        assert limits() == (7, 3)
        await it.merged(connect_timeout_ms=250)
        assert limits() == (7, 3)
        it.model.limits_of["mesh-gateway"] = DestinationLimits(pending=4)
        it.model.change()
        await trio.sleep(6)
        assert limits() == (0, 4)
        it.model.limits_of.clear()
        it.model.change()
        await trio.sleep(6)
        assert limits() == (0, 0)


async def test_one_host_name_is_used_only_where_logical_dns_is_set(autojump_clock: MockClock) -> None:
    async with kept() as it:
        await it.merged(envoy_dns_discovery_type="logical_dns")
        assert it.replans == [(True, NOWHERE)]
        await it.merged()
        assert it.replans == [(True, NOWHERE), (False, NOWHERE)]


async def test_locality_of_the_registration_tells_how_far_others_are(autojump_clock: MockClock) -> None:
    async with kept() as it:
        held = it.model.agent["mesh-gateway"]
        here = Locality("us-west-1", "a")
        it.model.agent["mesh-gateway"] = replace(held, locality=here)
        it.model.change()
        await trio.sleep(2)
        assert it.replans == [(False, here)]


async def test_existing_registration_is_waited_for_and_never_taken_back(autojump_clock: MockClock) -> None:
    async with kept(MESHGATE_REGISTER="false") as it:
        assert it.pool.bound == []
        await trio.sleep(3)
        assert it.keeper.problems() == [
            "the agent holds no registration 'mesh-gateway', and MESHGATE_REGISTER is false"
        ]
        it.model.agent["mesh-gateway"] = OwnRegistration(
            "mesh-gateway", "mesh-gateway", "127.0.0.1", 9000, meta={"consul-wan-federation": "1"}
        )
        it.model.change()
        with trio.fail_after(10):
            assert await it.keeper.existing() is True
        assert it.pool.bound == [("127.0.0.1", 9000)]
        assert it.keeper.problems() == []
        assert it.keeper.give_back() is False
    assert it.model.registered == []
    assert it.model.deregistered == []


async def test_without_consul_an_existing_registration_is_replaced_by_the_settings(autojump_clock: MockClock) -> None:
    async with kept(MESHGATE_REGISTER="false", MESHGATE_ADDRESS="127.0.0.1:9100") as it:
        it.keeper.stand_in()
        await trio.sleep(1)
        assert it.pool.bound == [("127.0.0.1", 9100)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "connect-proxy"}, "the registration is of another kind"),
        ({"meta": {"consul-wan-federation": "1"}}, "whether servers are exposed has changed"),
    ],
)
async def test_registration_that_is_not_what_it_should_be_is_told(
    autojump_clock: MockClock, change: dict[str, Any], told: str
) -> None:
    async with kept() as it:
        with capture_logs() as logs:
            held = it.model.agent["mesh-gateway"]
            it.model.agent["mesh-gateway"] = replace(held, **change)
            it.model.change()
            await trio.sleep(2)
        assert [entry["event"].startswith(told) for entry in logs] == [True]


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (
            HealthCheck("_service_maintenance:mesh-gateway", service_id="mesh-gateway", notes="a new\ndisk"),
            "it is in maintenance in Consul, so other gateways send it no new streams: a new\\ndisk",
        ),
        (
            HealthCheck("_node_maintenance"),
            "its node is in maintenance in Consul, so other gateways send it no new streams",
        ),
    ],
    ids=["service", "node"],
)
async def test_maintenance_is_a_problem_and_in_the_log_for_as_long_as_it_lasts(
    autojump_clock: MockClock, check: HealthCheck, words: str
) -> None:
    async with kept() as it:
        with capture_logs() as logs:
            it.model.checks[check.id] = check
            it.model.change()
            await trio.sleep(30)
            assert it.keeper.problems() == [words]
            del it.model.checks[check.id]
            it.model.change()
            await trio.sleep(1)
            assert it.keeper.problems() == []
        assert [entry["event"] for entry in logs] == [
            "held out of service in Consul: maintenance",
            "no longer held out of service in Consul",
        ]


async def test_stop_gives_the_registration_back(autojump_clock: MockClock) -> None:
    async with kept() as it:
        assert it.keeper.give_back() is True
        await trio.sleep(1)
        assert it.model.deregistered == ["mesh-gateway"]


async def test_stop_before_consul_has_answered_registers_nothing_any_more(autojump_clock: MockClock) -> None:
    """The registration of a process that crashed is there still, so its callers have to hear of the stop."""
    async with kept(unreachable()) as it:
        it.keeper.stand_in()
        assert it.keeper.give_back() is True
        it.model.fail(None)
        await trio.sleep(60)
        assert it.model.registered == []


async def test_a_critical_check_of_the_gateway_is_a_problem_and_in_the_log(autojump_clock: MockClock) -> None:
    async with kept() as it:
        check = HealthCheck("service:mesh-gateway", "mesh-gateway listening", "critical", "x\n" * 1000, "mesh-gateway")
        with capture_logs() as logs:
            it.model.checks[check.id] = check
            it.model.change()
            await trio.sleep(5)
        said = "its check 'mesh-gateway listening' is critical in Consul, so other gateways send it no new streams: "
        assert it.keeper.problems() == [said + "x\\n" * 100]
        assert [entry["event"] for entry in logs] == ["a check of the gateway is critical in Consul"]
        it.model.checks[check.id] = HealthCheck(check.id, status="passing", service_id="mesh-gateway")
        it.model.change()
        await trio.sleep(1)
        assert it.keeper.problems() == []


async def test_registration_that_was_left_behind_on_another_node_is_a_problem(autojump_clock: MockClock) -> None:
    async with kept(MESHGATE_ADDRESS="127.0.0.1:8443") as it:
        it.model.catalog = [OwnInstance("other", OwnRegistration("mesh-gateway", "mesh-gateway", "127.0.0.1", 8443))]
        it.model.change()
        await trio.sleep(1)
        assert it.keeper.problems() == ["it is registered on node other too: use consul services deregister there"]


async def test_gateway_whose_id_another_process_lives_by_does_not_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        keeper = GatewayRegistration(
            Settings.load(environ={"MESHGATE_ADDRESS": "127.0.0.1:8443"}),
            model := Model(),
            WatchRegistry(),
            cast("RelayPool", Pool()),
            lambda *_args, **_more: None,
        )
        await keeper.refuse_rival()
        model.agent["mesh-gateway"] = OwnRegistration("mesh-gateway", "mesh-gateway", "127.0.0.1", port)
        with pytest.raises(CommandError, match=f"is registered at 127.0.0.1:{port} by another process"):
            await keeper.refuse_rival()
        # Whose address is a host name is another machine, or nobody.
        model.agent["mesh-gateway"] = OwnRegistration("mesh-gateway", "mesh-gateway", "nobody.invalid", port)
        await keeper.refuse_rival()
        # What cannot be found out now is found out when the registration is made.
        model.fail(unreachable())
        await keeper.refuse_rival()


async def test_another_address_is_registered_once_it_is_listened_on(autojump_clock: MockClock) -> None:
    async with kept(MESHGATE_ADDRESS="127.0.0.1:8443") as it:
        it.pool.failing["127.0.0.2"] = errno.EADDRINUSE
        settings = Settings.load(environ={"MESHGATE_ADDRESS": "127.0.0.2:9443"})
        it.keeper.use(settings)
        await trio.sleep(2)
        assert it.keeper.problems() == ["cannot bind default=127.0.0.2:9443: Address already in use"]
        it.pool.failing.clear()
        await trio.sleep(10)
        assert it.pool.bound == [("127.0.0.2", 9443)]
        assert (it.model.agent["mesh-gateway"].address, it.model.agent["mesh-gateway"].port) == ("127.0.0.2", 9443)
        assert it.pool.steps == ["+127.0.0.1", "+127.0.0.2", "-127.0.0.1"]


async def test_an_address_that_cannot_be_registered_changes_nothing(autojump_clock: MockClock) -> None:
    async with kept(MESHGATE_ADDRESS="127.0.0.1:8443") as it:
        with pytest.raises(RegistrationError, match="cannot be bound here"):
            it.keeper.use(Settings.load(environ={"MESHGATE_ADDRESS": "192.0.2.77:8443"}))
        await trio.sleep(2)
        assert it.pool.steps == ["+127.0.0.1"]
        assert it.model.agent["mesh-gateway"].address == "127.0.0.1"


async def test_an_address_that_is_not_registered_here_stops_no_reload(autojump_clock: MockClock) -> None:
    values = {"MESHGATE_REGISTER": "false", "MESHGATE_ADDRESS": "192.0.2.77:8443", "MESHGATE_IDLE_TIMEOUT": "7s"}
    async with kept(MESHGATE_REGISTER="false") as it:
        it.keeper.use(Settings.load(environ=values))
        assert it.pool.limits.idle_timeout == 7
