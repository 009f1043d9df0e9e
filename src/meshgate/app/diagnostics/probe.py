"""`meshgate probe`: one call into the mesh as a sidecar would make it, through a gateway, and how far it got.

The identity is a real leaf of the agent's, the handshake a real one of TLS 1.3 with the name that Consul gives the
service. Not a byte of the application's protocol is sent. The leaf's key
stays in memory.
"""

import ssl
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NoReturn

import trio
from cryptography import x509

from meshgate.adapters.consul import GATEWAY_KIND, CaRoots, ConsulClient, ConsulError, PermissionDeniedError
from meshgate.adapters.mesh_tls import (
    RefusedError,
    WrongPeerError,
    connect,
    listen,
    mesh_context,
    peer_of,
    shake_hands,
)
from meshgate.app.diagnostics.inspection import gateways_in, healthy, refusal
from meshgate.core.alerts import meaning_of
from meshgate.core.health import best_address
from meshgate.core.host_port import HostPort
from meshgate.core.sni import DEFAULT, ServiceSni

LAN: Final = "lan"
WAN: Final = "wan"
# A destination judges the caller's certificate and its intentions after the caller is through (RFC 8446 section 4.4).
# What it has against the caller arrives one round trip later; silence for this long, in seconds, is consent.
CONSENT_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Question:
    """What is probed. `via` is `lan`, `wan` or an address; "" for `datacenter` is the agent's own."""

    service: str
    identity: str
    datacenter: str = ""
    via: str | HostPort = LAN
    gateway_service: str = GATEWAY_KIND
    namespace: str = DEFAULT
    partition: str = DEFAULT
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step that was taken; `seconds` is None where it took no time worth telling."""

    step: str
    ok: bool
    detail: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Met:
    """Whom the probe met."""

    spiffe_id: str
    expires: datetime
    tls_version: str
    cipher: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What ended the probe: at which step, the TLS alert if one came, and what it means."""

    step: str
    detail: str
    alert: str | None = None
    meaning: str = ""


class _FailedError(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


@dataclass(slots=True)
class Probe:
    """A probe under way, and afterwards what it found."""

    question: Question
    datacenter: str = ""
    sni: str = ""
    caller: str = ""
    gateway: str = ""
    address: HostPort | None = None
    met: Met | None = None
    failure: Failure | None = None
    steps: list[Step] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the right service was met, and it accepted the caller."""
        return self.failure is None

    async def run(self, client: ConsulClient) -> None:
        """Take all steps, or those up to the first that fails.

        Raises:
            ConsulError: Consul does not even tell where it is and what the mesh is called.
        """
        try:
            await self._run(client)
        except _FailedError as error:
            self.failure = error.failure

    async def _run(self, client: ConsulClient) -> None:
        own = (await client.agent_facts()).datacenter
        roots = (await client.ca_roots()).value
        self.datacenter = self.question.datacenter or own
        self.sni = str(
            ServiceSni(
                self.question.service,
                self.datacenter,
                roots.trust_domain,
                self.question.namespace,
                self.question.partition,
            )
        )
        context = await self._leaf(client, roots)
        address = await self._gateway(client, own)
        transport = await self._connect(address)
        async with trio.SSLStream(transport, context, server_hostname=self.sni) as stream:
            await self._shake_hands(stream)
            self._identify(stream, roots)
            await self._await_consent(stream)

    # --- the steps -----------------------------------------------------------------------------------------------

    async def _leaf(self, client: ConsulClient, roots: CaRoots) -> ssl.SSLContext:
        started = trio.current_time()
        try:
            leaf = await client.leaf(self.question.identity)
        except ConsulError as error:
            name = self.question.identity
            advice = f'add service "{name}" {{ policy = "write" }} to its policy, or name another identity with --as'
            denied = isinstance(error, PermissionDeniedError)
            why = f"only a token with service:write on {name} gets its certificate: {advice}" if denied else ""
            self._fail(Failure("leaf", refusal(client, error), meaning=why))
        self.caller = leaf.spiffe_id
        context = mesh_context(leaf.certificates, leaf.private_key, roots.roots)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        expires = x509.load_pem_x509_certificate(leaf.certificates.encode()).not_valid_after_utc
        self._done("leaf", f"valid until {expires:%Y-%m-%d %H:%M} UTC", trio.current_time() - started)
        return context

    async def _gateway(self, client: ConsulClient, own: str) -> HostPort:
        via = self.question.via
        if isinstance(via, HostPort):
            self.gateway, self.address = "the given address", via
            return via
        place = own if via == LAN else self.datacenter
        try:
            found = await gateways_in(client, place, guess=self.question.gateway_service)
        except ConsulError as error:
            self._fail(Failure("gateway", refusal(client, error)))
        if not found:
            self._fail(
                Failure("gateway", f"{place} has no mesh gateway that the token can see: start one, or use --via")
            )
        chosen = found[0]
        self.address = HostPort(*best_address(chosen, wan=via == WAN))
        self.gateway = f"{chosen.id} of {place}, {via.upper()} address"
        self._done("gateway", f"{self.gateway}{'' if healthy(chosen) else ' (unhealthy for Consul)'}")
        return self.address

    async def _connect(self, address: HostPort) -> trio.SocketStream:
        started = trio.current_time()
        try:
            stream = await connect(address.host, address.port, seconds=self.question.timeout)
        except RefusedError as error:
            self._refused("connect", error, "nobody listens there, or a firewall is in between")
        self._done("connect", str(address), trio.current_time() - started)
        return stream

    async def _shake_hands(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        started = trio.current_time()
        try:
            await shake_hands(stream, seconds=self.question.timeout)
        except RefusedError as error:
            self._refused("handshake", error, "the gateway or the destination cut the connection without a TLS alert")
        cipher = stream.cipher()
        detail = f"{stream.version()} {cipher[0] if cipher else ''}"
        self._done("handshake", detail, trio.current_time() - started)

    def _identify(self, stream: trio.SSLStream[trio.SocketStream], roots: CaRoots) -> None:
        question = self.question
        place = "" if question.partition in ("", DEFAULT) else f"/ap/{question.partition}"
        expected = (
            f"spiffe://{roots.trust_domain}{place}/ns/{question.namespace or DEFAULT}"
            f"/dc/{self.datacenter}/svc/{question.service}"
        )
        try:
            peer = peer_of(stream)
        except WrongPeerError as error:
            self._fail(Failure("identity", str(error)))
        self.met = Met(peer.spiffe_id, peer.certificate.not_valid_after_utc, peer.tls_version, peer.cipher)
        if peer.spiffe_id.lower() != expected.lower():
            self._fail(Failure("identity", f"met {peer.spiffe_id} instead of {expected}"))
        self._done("identity", "verified against the CA roots")

    async def _await_consent(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        started = trio.current_time()
        try:
            data = await listen(stream, seconds=CONSENT_SECONDS)
        except RefusedError as error:
            self._refused("consent", error, "the destination hung up after the handshake: no intention allows the call")
        waited = trio.current_time() - started
        if data == b"":
            why = "the destination hung up after the handshake: no intention allows the call, or the service is down"
            self._fail(Failure("consent", "the connection was closed in order", meaning=why))
        self._done("consent", "the service spoke first" if data else "no objection", waited)

    # --- what became of them -------------------------------------------------------------------------------------

    def _done(self, step: str, detail: str, seconds: float | None = None) -> None:
        self.steps.append(Step(step, True, detail, seconds))

    def _refused(self, step: str, error: RefusedError, otherwise: str) -> NoReturn:
        if error.alert:
            self._fail(Failure(step, f"TLS alert {error.alert}", error.alert, meaning_of(error.alert)))
        self._fail(Failure(step, str(error).removeprefix(f"{error.stage}: "), meaning=otherwise))

    def _fail(self, failure: Failure) -> NoReturn:
        self.steps.append(Step(failure.step, False, failure.detail))
        raise _FailedError(failure)
