"""The first stream of a service that the gateway does not follow closely, or has not heard of: it is served."""

import contextlib
import itertools
from contextlib import AsyncExitStack

import pytest
import trio

from tests.adapters.relay.streams import hello_for
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.native import native_service

from .world import World

pytestmark = pytest.mark.consul

# One held query is left for services: all others are cold.
SCARCE = {"MESHGATE_CATALOG_WATCHES": "6"}
MANY = {"MESHGATE_CATALOG_WATCHES": "100"}


async def refused(gateway: GatewayProcess) -> float:
    return await gateway.counter("meshgate_refused_total")


@pytest.mark.parametrize("settings", [SCARCE, MANY])
async def test_a_service_that_was_just_registered_is_served_at_once(world: World, settings: dict[str, str]) -> None:
    dc2, folder = world.federation.dc2, world.federation.folder
    caller = await world.caller()
    async with gateway_beside(dc2, world.token, **settings) as gateway:
        for name in ("new-1", "new-2", "new-3", "new-4"):
            # It is called as soon as Consul has it; whether the gateway has heard of it by then is chance.
            async with native_service(dc2, name, folder, named=True):
                answer = await caller.call(gateway.address, world.sni(name), b"hi", expect=world.spiffe(name))
                assert answer.data == name.encode() + b"\nhi"
        assert await refused(gateway) == 0


async def invent_names(gateway: GatewayProcess, source: str, rate: float, name: str, domain: str) -> None:
    """A stranger: hellos for services that nobody has, or not yet, so many a second, until cancelled."""

    async def hello(number: int) -> None:
        with contextlib.suppress(OSError), trio.socket.socket() as sock:
            await sock.bind((source, 0))
            await sock.connect(gateway.address)
            await sock.send(hello_for(f"{name.format(number, number % 5)}.{domain}"))
            while await sock.recv(64):
                pass

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in itertools.count():
            nursery.start_soon(hello, number)
            await trio.sleep_until(began + number / rate)


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("source", "rate", "invented", "settings"),
    [
        pytest.param("127.0.0.7", 40, "made-up-{0}", SCARCE, id="some-scarce"),
        pytest.param("127.0.0.7", 40, "made-up-{0}", MANY, id="some-many", marks=LONG),
        pytest.param("127.0.0.7", 371, "made-up-{0}", SCARCE, id="many-scarce", marks=LONG),
        pytest.param("127.0.0.7", 371, "made-up-{0}", MANY, id="many-many"),
        pytest.param("127.0.0.1", 371, "made-up-{0}", SCARCE, id="of-the-callers-address-scarce"),
        pytest.param("127.0.0.1", 371, "made-up-{0}", MANY, id="of-the-callers-address-many", marks=LONG),
        pytest.param("127.0.0.7", 371, "first-{1}", SCARCE, id="the-very-names-scarce"),
        pytest.param("127.0.0.7", 371, "first-{1}", MANY, id="the-very-names-many"),
    ],
)
async def test_whatever_names_strangers_invent_the_first_stream_of_a_new_service_is_served(
    world: World, source: str, rate: float, invented: str, settings: dict[str, str]
) -> None:
    dc2, folder = world.federation.dc2, world.federation.folder
    caller = await world.caller()
    domain = world.sni("x").partition(".")[2]
    async with gateway_beside(dc2, world.token, **settings) as gateway, trio.open_nursery() as nursery:
        nursery.start_soon(invent_names, gateway, source, rate, invented, domain)
        with trio.fail_after(60):
            while await gateway.counter("meshgate_on_demand_streams_total") < 60:  # More than anybody may ask for.
                await trio.sleep(0.1)
        for name in (f"first-{number}" for number in range(5)):
            async with native_service(dc2, name, folder, named=True):
                answer = await caller.call(gateway.address, world.sni(name), b"hi", expect=world.spiffe(name))
                assert answer.data == name.encode() + b"\nhi"
        assert await refused(gateway) > 0
        nursery.cancel_scope.cancel()


async def test_a_cold_service_that_moved_is_served_where_it_is_now(world: World) -> None:
    dc2, folder = world.federation.dc2, world.federation.folder
    caller = await world.caller()
    names = [f"cold-{number}" for number in range(4)]
    async with AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(native_service(dc2, name, folder))
        async with gateway_beside(dc2, world.token, **SCARCE) as gateway:
            for name in names:
                assert await gateway.endpoints(world.sni(name))
                # The same node and the same checks: no list and no summary shows that the port is another one.
                async with native_service(dc2, name, folder, named=True):
                    answer = await caller.call(gateway.address, world.sni(name), b"hi", expect=world.spiffe(name))
                    assert answer.data == name.encode() + b"\nhi"
            assert await refused(gateway) == 0
            assert await gateway.counter("meshgate_on_demand_streams_total") == len(names)


async def test_what_explain_says_is_what_a_stream_of_that_moment_gets(world: World) -> None:
    dc2, folder = world.federation.dc2, world.federation.folder
    async with gateway_beside(dc2, world.token, **SCARCE) as gateway:
        for name in ("asked-1", "asked-2", "asked-3"):
            async with native_service(dc2, name, folder) as service:
                explanation = await gateway.ask(f"/explain?sni={world.sni(name)}")
                assert explanation["decision"] == "routed"
                assert [endpoint["port"] for endpoint in explanation["endpoints"]] == [service.port]


async def test_a_name_that_nobody_has_is_refused_and_told_why(world: World) -> None:
    caller = await world.caller()
    async with gateway_beside(world.federation.dc2, world.token, **SCARCE) as gateway:
        explanation = await gateway.ask(f"/explain?sni={world.sni('nobody')}")
        assert (explanation["decision"], explanation["reason"]) == ("refused", "unknown_sni")
        with pytest.raises(Exception, match="unrecognized_name"):
            await caller.call(gateway.address, world.sni("nobody"))
        assert await gateway.counter("meshgate_refused_total", reason="unknown_sni") == 1
