"""The caller: what a sidecar does to reach a service of the mesh, with a real leaf and a TLS 1.3 handshake.

It sends the SNI that names the service (Consul's built-in proxy sends none of a mesh), and believes the other side only
when its certificate leads to the mesh's roots and names a SPIFFE ID of the mesh.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self, TypeAlias

import trio

from meshgate.adapters.mesh_tls import RefusedError, WrongPeerError, connect, peer_of
from tests.harness.agent import Consul
from tests.harness.tls import TlsStream, mesh_context, shake_hands

Address: TypeAlias = tuple[str, int]

_DEADLINE: Final = 10.0


@dataclass(frozen=True, slots=True)
class Met:
    """Whom a caller met, and how: times in seconds, `expires` in UTC."""

    spiffe_id: str
    expires: datetime
    tls_version: str
    cipher: str
    connect_seconds: float
    handshake_seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one message, and from whom."""

    met: Met
    data: bytes


class Conversation(TlsStream):
    """An open connection of a caller; `met` says who is at the other end."""

    met: Met


class Caller:
    """One identity of the mesh that opens connections: `service` by name, `spiffe_id` in full."""

    def __init__(self, service: str, identity: str, trust_domain: str, context: ssl.SSLContext) -> None:
        self.service = service
        self.spiffe_id = identity
        self.trust_domain = trust_domain
        self._context = context

    @classmethod
    async def of(cls, consul: Consul, service: str, folder: Path, *, token: str | None = None) -> Self:
        """A caller that is `service` in the datacenter of `consul`; its leaf comes from the agent.

        `token` needs `service:write` on `service`; the master token where None. The key passes through `folder`.

        Raises:
            ConsulError: no leaf for it.
        """
        leaf = await consul.get(f"/v1/agent/connect/ca/leaf/{service}", token=token)
        roots = await consul.get("/v1/agent/connect/ca/roots", token=token)
        return cls(service, leaf["ServiceURI"], roots["TrustDomain"], mesh_context(leaf, roots, folder))

    @asynccontextmanager
    async def connect(
        self, address: Address, sni: str | None, *, expect: str | None = None, seconds: float = _DEADLINE
    ) -> AsyncIterator[Conversation]:
        """An open connection to `address` after a handshake with `sni` (None: without one); closed with the block.

        `expect` is the full SPIFFE ID that the other side must prove; where None, any of the same trust domain.

        Raises:
            RefusedError: no connection or no handshake within `seconds`; `alert` names the alert if one came.
            WrongPeerError: somebody else was met.
        """
        started = trio.current_time()
        transport = await connect(*address, seconds=seconds)
        connected = trio.current_time()
        conversation = Conversation(transport, self._context, sni=sni)
        async with conversation:
            await shake_hands(conversation, seconds=seconds)
            conversation.met = self._meet(conversation.tls, connected - started, trio.current_time() - connected)
            if expect not in (None, conversation.met.spiffe_id):
                raise WrongPeerError(f"expected {expect}, met {conversation.met.spiffe_id}")
            yield conversation

    async def call(
        self, address: Address, sni: str | None, message: bytes = b"hello\n", *, expect: str | None = None
    ) -> Answer:
        """Sends `message` to an echoing service and returns all that came up to its echo; ends in order on both sides.

        Raises:
            RefusedError: as `connect`, and when the other side ends the connection before the echo is whole: a
                destination that judges the caller's certificate or an intention does so after the handshake.
            WrongPeerError: as `connect`.
        """
        answer = bytearray()
        async with self.connect(address, sni, expect=expect) as conversation:
            with trio.move_on_after(_DEADLINE) as deadline:
                # Where sending fails the answer says why.
                with suppress(trio.BrokenResourceError):
                    await conversation.send_all(message)
                while not answer.endswith(message):
                    data = await conversation.receive_some()
                    if not data:
                        raise RefusedError("stream", None, f"ended after {len(answer)} bytes")
                    answer += data
                with suppress(trio.BrokenResourceError):
                    await conversation.send_eof()
                # The echo is whole. Consul's built-in proxy sometimes ends a connection without close_notify.
                with suppress(RefusedError):
                    while await conversation.receive_some():
                        pass
            if deadline.cancelled_caught:
                raise RefusedError("stream", None, f"no end of the answer within {_DEADLINE:g} s")
            return Answer(conversation.met, bytes(answer))

    def _meet(self, tls: ssl.SSLObject, connect_seconds: float, handshake_seconds: float) -> Met:
        peer = peer_of(tls)
        if not peer.spiffe_id.startswith(f"spiffe://{self.trust_domain}/"):
            raise WrongPeerError(f"{peer.spiffe_id} is of another trust domain")
        return Met(
            spiffe_id=peer.spiffe_id,
            expires=peer.expires,
            tls_version=peer.tls_version,
            cipher=peer.cipher,
            connect_seconds=connect_seconds,
            handshake_seconds=handshake_seconds,
        )
