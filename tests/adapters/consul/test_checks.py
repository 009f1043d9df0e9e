import pytest
import trio
from trio.testing import MockClock

from meshgate.adapters.consul import Checks
from meshgate.adapters.consul.api import ConsulUnreachableError, HealthCheck
from meshgate.adapters.consul.api.records import decode_node_checks

from .connected import connected

OWN = HealthCheck("service:web-1", "Web", "critical", "connection refused", "web-1")
NODE = HealthCheck("serfHealth", "Serf", "passing", "Agent alive")
OTHER = HealthCheck("service:api-1", "Api", "critical", "no", "api-1")


class Consul:
    def __init__(self, *, hangs: bool = False) -> None:
        self.asked: list[tuple[str, str]] = []
        self.down = False
        self._hangs = hangs

    async def node_checks(self, node: str, *, datacenter: str = "") -> tuple[HealthCheck, ...]:
        self.asked.append((node, datacenter))
        await trio.sleep(1e9 if self._hangs else 0)
        if self.down:
            raise ConsulUnreachableError("cannot reach Consul", "unreachable")
        return (OWN, NODE, OTHER)


async def test_the_checks_of_an_instance_are_its_own_and_its_nodes(autojump_clock: MockClock) -> None:
    assert await Checks(Consul().node_checks).of("n1", "web-1", datacenter="dc2") == (OWN, NODE)


async def test_an_answer_is_repeated_for_a_while_instead_of_asking_again(autojump_clock: MockClock) -> None:
    consul = Consul()
    checks = Checks(consul.node_checks)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(checks.of, "n1", "web-1")
    await checks.of("n1", "api-1")
    await checks.of("n1", "api-1", datacenter="dc2")
    assert consul.asked == [("n1", ""), ("n1", "dc2")]
    await trio.sleep(5.1)
    consul.down = True
    assert await checks.of("n1", "web-1") == "cannot reach Consul"


async def test_a_consul_that_hangs_keeps_nobody_waiting_for_long(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    assert await Checks(Consul(hangs=True).node_checks).of("n1", "web-1") == "Consul does not answer"
    assert trio.current_time() - start == pytest.approx(3)


async def test_the_memory_is_bounded(autojump_clock: MockClock) -> None:
    checks = Checks(Consul().node_checks)
    for number in range(200):
        await checks.of(f"n{number}", "web-1")
    assert len(checks._questions._answers) == 64


async def test_consul_is_asked_for_the_node_in_its_datacenter() -> None:
    async with connected() as (double, client):
        double.set(
            "/v1/health/node/n1?dc=dc2",
            [
                {"CheckID": "serfHealth", "Name": "Serf", "Status": "passing", "Output": "Agent alive"},
                {"CheckID": "service:web-1", "Name": "", "Status": "critical", "ServiceID": "web-1"},
            ],
        )
        assert await client.node_checks("n1", datacenter="dc2") == (
            HealthCheck("serfHealth", "Serf", "passing", "Agent alive"),
            HealthCheck("service:web-1", "", "critical", "", "web-1"),
        )
        assert double.seen[-1].query["dc"] == "dc2"


def test_no_checks_are_no_checks() -> None:
    assert decode_node_checks(b"null") == ()
