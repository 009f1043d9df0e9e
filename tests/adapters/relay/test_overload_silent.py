"""Clients that connect and say nothing: they have to go when slots or descriptors run short, and nobody else."""

import itertools

import pytest
import trio

from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.overload import Overload
from meshgate.core.reasons import Reason

from .gateway_process import gateway_process
from .streams import WEB, backend, echo, endpoint, hello_for, receive_all, receive_exactly, running
from .test_pool import pool_of

HELLO = hello_for(WEB)
LIMITS = Limits(max_connections=20, hello_timeout=600.0)


async def ended(stream: trio.SocketStream) -> bool:
    """Whether the gateway has cut a client; waits until it has."""
    try:
        return await stream.receive_some() == b""
    except trio.BrokenResourceError:
        return True


async def test_more_silent_clients_than_slots_keep_no_one_from_being_served() -> None:
    slots = LIMITS.max_connections
    async with backend(echo) as port, running({WEB: [endpoint(port)]}, LIMITS) as gateway:
        silent = [await gateway.dial() for _ in range(slots)]
        await gateway.until(lambda: gateway.active == slots, 20)
        with trio.fail_after(30):
            for _ in range(3 * slots):
                silent.append(await gateway.dial())
                async with await gateway.dial() as client:
                    await client.send_all(HELLO)
                    assert await receive_exactly(client, len(HELLO)) == HELLO
        assert {refusal.reason for refusal in gateway.refused} == {Reason.HELLO_TIMEOUT}
        assert gateway.counters().internal_errors == 0
        for client in silent:
            await client.aclose()
        await gateway.until(lambda: gateway.active == 0, 20)


async def test_who_has_been_silent_longest_goes_first_and_half_a_hello_is_silence() -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port)]}, Limits(max_connections=3)) as gateway:
        first, second, third = await gateway.dial(), await gateway.dial(), await gateway.dial()
        await first.send_all(HELLO[:100])
        await gateway.until(lambda: gateway.counters().accepted == 3, 20)
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO
            with trio.fail_after(20):
                assert await ended(first)
            for late in (second, third):
                await late.send_all(HELLO[:1])
            await third.send_all(HELLO[1:])
            with trio.fail_after(20):
                assert await receive_exactly(third, len(HELLO)) == HELLO
        for stream in (first, second, third):
            await stream.aclose()


async def test_streams_that_are_carried_are_never_cut_for_new_ones() -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port)]}, Limits(max_connections=4)) as gateway:
        carried = [await gateway.dial() for _ in range(4)]
        for client in carried:
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO
            await client.send_all(b"x")
            assert await receive_exactly(client, 1) == b"x"
        for _ in range(5):
            async with await gateway.dial() as late:
                assert await receive_all(late) == b""
        assert [refusal.reason for refusal in gateway.refused] == [Reason.MAX_CONNECTIONS] * 5
        for client in carried:
            await client.send_all(b"alive")
            assert await receive_exactly(client, 5) == b"alive"
            await client.aclose()


async def test_refused_clients_that_linger_make_room_too() -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port)]}, Limits(max_connections=2)) as gateway:
        refused = [await gateway.dial() for _ in range(2)]
        for client in refused:
            await client.send_all(hello_for("no.such.name"))
        await gateway.until(lambda: len(gateway.refused) == 2, 20)
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO
        assert {refusal.reason for refusal in gateway.refused} == {Reason.UNKNOWN_SNI}
        for client in refused:
            await client.aclose()


@pytest.mark.parametrize("workers", [1, 2])
async def test_silent_clients_of_one_worker_make_room_for_the_clients_of_another(workers: int) -> None:
    """Each worker cuts its own only; one without any is served by what the others leave free within a moment."""
    slots = 32
    limits = Limits(max_connections=slots, hello_timeout=600.0)
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers, limits) as pool:
        silent = [await pool.dial() for _ in range(slots)]
        with trio.fail_after(30):
            while (await pool.relay.counters()).active >= limits.overload_from:
                await trio.sleep(0.05)
            for _ in range(50):
                async with await pool.dial() as client:
                    await client.send_all(HELLO)
                    assert await receive_exactly(client, len(HELLO)) == HELLO
        reasons = (await pool.relay.counters()).refused
        assert reasons.keys() == {Reason.HELLO_TIMEOUT}
        for client in silent:
            await client.aclose()


async def test_silent_clients_give_up_their_descriptors() -> None:
    async with backend(echo) as port, gateway_process(port, descriptors=12) as gateway:
        silent = [await gateway.dial() for _ in range(40)]
        with trio.fail_after(30):
            for _ in range(40):
                silent.append(await gateway.dial())
                async with await gateway.dial() as client:
                    await client.send_all(HELLO)
                    assert await receive_exactly(client, len(HELLO)) == HELLO
        assert (await gateway.state()).errors == 0
        for client in silent:
            await client.aclose()


class Silent:
    """A client that has said nothing since it came."""

    silent_since: float | None = 0.0

    def shed(self) -> None:
        self.silent_since = None


def test_a_search_that_others_have_interrupted_delays_the_next_one_by_what_it_took_itself() -> None:
    now, spent = itertools.count(100.0), itertools.count(0.0, 0.001)  # A second between two looks at the clock.
    clients = [Silent(), Silent()]
    overload = Overload(lambda: clients, lambda: next(now), lambda: (0, 2), lambda: next(spent))
    assert overload.free_descriptors()
    clients += [Silent(), Silent()]
    assert overload.free_descriptors()
