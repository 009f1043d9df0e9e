"""Nearer endpoints get all streams that they can take; farther ones the rest."""

from meshgate.core.routes import Endpoint

from .streams import WEB, backend, endpoint, hello_for, named, receive_exactly, running, table_of

HELLO = hello_for(WEB)


def at(port: int, distance: int) -> Endpoint:
    return Endpoint("127.0.0.1", port, True, 1, "n1", f"gw-{port}", distance=distance)


async def test_streams_go_to_the_near_one_and_to_the_far_one_when_that_refuses() -> None:
    async with backend(named(b"near")) as near, backend(named(b"far!")) as far, running({}) as it:
        it.relay.install(table_of({WEB: [at(far, 1), at(near, 0)]}))
        for _ in range(5):
            async with await it.dial() as client:
                await client.send_all(HELLO)
                assert await receive_exactly(client, 4) == b"near"
        it.relay.install(table_of({WEB: [at(far, 1), at(1, 0), endpoint(2, healthy=False)]}))
        async with await it.dial() as client:
            await client.send_all(HELLO)
            assert await receive_exactly(client, 4) == b"far!"
