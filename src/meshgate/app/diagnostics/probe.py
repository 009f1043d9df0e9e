"""`meshgate probe`: one call into the mesh as a sidecar would make it, through a gateway, and how far it got.

The identity is a real leaf of the agent's, the handshake a real one of TLS 1.3 with the name that Consul gives the
service. Not a byte of the application's protocol is sent unless it is asked for. The leaf's key stays in memory here;
the agent keeps it too, see `core.prerequisites.gives_keys_away`.
"""

import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NoReturn

import trio
from cryptography import x509

from meshgate.adapters.consul.api import (
    SEE_PEERINGS,
    ConsulClient,
    ConsulError,
    Instances,
    Intention,
    PermissionDeniedError,
    Rule,
    Tenant,
)
from meshgate.adapters.error_words import words_of
from meshgate.adapters.mesh_tls import (
    NO_TLS,
    Peer,
    RefusedError,
    UntrustedError,
    WrongPeerError,
    connect,
    listen,
    mesh_context,
    peer_of,
    shake_hands,
)
from meshgate.app.diagnostics.inspection import gateways_in, healthy, refusal
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import HostPort
from meshgate.core.endpoint_maker import best_address
from meshgate.core.reasons import meaning_of
from meshgate.core.sni import DEFAULT, ServiceSni

LAN: Final = "lan"
WAN: Final = "wan"
# A destination judges the caller's certificate and its intentions after the caller is through (RFC 8446 section 4.4).
# What it has against the caller arrives one round trip later; silence for this long, in seconds, is no objection.
CONSENT_SECONDS: Final = 0.5
# What an Envoy sidecar answers to a request that its intentions deny.
_DENIED_REQUEST: Final = b"RBAC: access denied"


class Verdict(StrEnum):
    ACCEPTED = "accepted"
    DENIED = "denied"
    REFUSED = "refused"
    WRONG_IDENTITY = "wrong_identity"
    UNREACHABLE = "unreachable"
    NOT_CALLED = "not_called"


@dataclass(frozen=True, slots=True)
class Question:
    """What is probed, by a gateway's settings. `via` is `lan`, `wan` or an address; no `datacenter` is the agent's own.

    `peer` is a peering that the service is imported from. `http` is a path to ask a service of HTTP for.
    """

    service: str
    identity: str
    settings: Settings
    datacenter: str = ""
    via: str | HostPort = LAN
    peer: str = ""
    http: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step that was taken; `seconds` is None where it took no time worth telling."""

    step: str
    ok: bool
    detail: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """What ended the probe: at which step, the TLS alert if one came, and what it means."""

    step: str
    verdict: Verdict
    detail: str
    alert: str | None = None
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class _Destination:
    """Whom to ask for, who may answer, whose roots its certificate leads to, and the gateways of its own side."""

    sni: str
    identities: tuple[str, ...]
    roots: tuple[str, ...]
    remote: Instances = ()


class _FailedError(Exception):
    """Ends a probe, whose `failure` says why."""


@dataclass(slots=True)
class Probe:
    """A probe under way, and afterwards what it found."""

    question: Question
    datacenter: str = ""
    sni: str = ""
    caller: str = ""
    gateway: str = ""
    address: HostPort | None = None
    met: Peer | None = None
    failure: Failure | None = None
    steps: list[Step] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.failure is None

    @property
    def verdict(self) -> Verdict:
        return self.failure.verdict if self.failure else Verdict.ACCEPTED

    async def run(self, client: ConsulClient) -> None:
        """Take all steps, or those up to the first that fails.

        Raises:
            ConsulError: Consul does not even tell where it is and what the mesh is called.
        """
        with suppress(_FailedError):
            await self._run(client)

    async def _run(self, client: ConsulClient) -> None:
        question = self.question
        own = (await client.agent_facts()).datacenter
        self.datacenter = "" if question.peer else question.datacenter or own
        destination = await (self._imported(client) if question.peer else self._federated(client))
        self.sni = destination.sni
        context = await self._leaf(client, destination.roots)
        address = await self._gateway(client, own, destination)
        transport = await self._connect(address)
        async with trio.SSLStream(transport, context, server_hostname=self.sni) as stream:
            await self._shake_hands(stream)
            self._identify(stream, destination)
            if question.http:
                await self._request(stream)
            else:
                await self._await_consent(client, stream)

    # --- the steps -----------------------------------------------------------------------------------------------

    async def _federated(self, client: ConsulClient) -> _Destination:
        question, ca = self.question, (await client.ca_roots()).value
        namespace, partition = question.settings.namespace or DEFAULT, question.settings.partition or DEFAULT
        sni = ServiceSni(question.service, self.datacenter, ca.trust_domain, namespace, partition)
        place = "" if partition == DEFAULT else f"/ap/{partition}"
        identity = f"spiffe://{ca.trust_domain}{place}/ns/{namespace}/dc/{self.datacenter}/svc/{question.service}"
        return _Destination(str(sni), (identity,), ca.roots)

    async def _imported(self, client: ConsulClient) -> _Destination:
        """A service of a peer: its name and identity are those that the exporter gave it."""
        question = self.question
        try:
            # Without the right to it, Consul takes twelve seconds to say so.
            if not all(await client.allowed([SEE_PEERINGS])):
                rule = f"add {SEE_PEERINGS} to its policy"
                self._fail("peer", Verdict.NOT_CALLED, "the token may not read peerings", rule)
            roots = await client.peering_roots(question.peer)
            rows = (await client.at(Tenant(peer=question.peer)).connect_instances(question.service)).value
        except ConsulError as error:
            self._fail("peer", Verdict.NOT_CALLED, refusal(client, error))
        named = [row for row in rows if row.peer_sni and row.peer_identities]
        if not roots or not named:
            what = f"nothing named {question.service} is imported from" if roots else "Consul knows no roots of"
            meaning = "is the peering active, is the service exported to this cluster, and may the token read it?"
            self._fail("peer", Verdict.UNREACHABLE, f"{what} the peer {question.peer}", meaning)
        found = named[0]
        return _Destination(found.peer_sni[0], found.peer_identities, roots, tuple(named))

    async def _leaf(self, client: ConsulClient, roots: tuple[str, ...]) -> ssl.SSLContext:
        started, name = trio.current_time(), self.question.identity
        try:
            leaf = await client.leaf(name)
        except PermissionDeniedError as error:
            if not client.token.given or error.missing_rule is None:
                self._fail("leaf", Verdict.NOT_CALLED, refusal(client, error))
            rule = f"add {Rule('service', name, 'write')} to its policy, or name another identity with --as"
            self._fail("leaf", Verdict.NOT_CALLED, f"the token may not have the certificate of {name}", rule)
        except ConsulError as error:
            self._fail("leaf", Verdict.NOT_CALLED, str(error))
        self.caller = leaf.spiffe_id
        try:
            context = mesh_context(leaf.certificates, leaf.private_key, roots)
        except (ssl.SSLError, ValueError) as error:
            self._fail("leaf", Verdict.NOT_CALLED, f"OpenSSL cannot read what Consul gave: {words_of(error)}")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        expires = x509.load_pem_x509_certificate(leaf.certificates.encode()).not_valid_after_utc
        self._done("leaf", f"valid until {expires:%Y-%m-%d %H:%M} UTC", trio.current_time() - started)
        return context

    async def _gateway(self, client: ConsulClient, own: str, destination: _Destination) -> HostPort:
        via = self.question.via
        if isinstance(via, HostPort):
            self.gateway, self.address = "the given address", via
            return via
        place = own if via == LAN else self.question.peer or self.datacenter
        try:
            if via == WAN and destination.remote:
                found = tuple(sorted(destination.remote, key=lambda gateway: not healthy(gateway)))
            else:
                found = await gateways_in(client, place, guess=self.question.settings.service)
        except ConsulError as error:
            self._fail("gateway", Verdict.UNREACHABLE, refusal(client, error))
        if not found:
            detail = f"{place} has no mesh gateway that the token can see: start one, or use --via"
            self._fail("gateway", Verdict.UNREACHABLE, detail)
        chosen = found[0]
        self.address = HostPort(*best_address(chosen, wan=via == WAN))
        self.gateway = f"{'a gateway' if self.question.peer and via == WAN else chosen.id} of {place}"
        self.gateway += f", {via.upper()} address"
        self._done("gateway", f"{self.gateway}{'' if healthy(chosen) else ' (unhealthy for Consul)'}")
        return self.address

    async def _connect(self, address: HostPort) -> trio.SocketStream:
        started = trio.current_time()
        try:
            stream = await connect(address.host, address.port, seconds=self.question.settings.connect_timeout)
        except RefusedError as error:
            meaning = "nobody listens there, or a firewall is in between"
            self._fail("connect", Verdict.UNREACHABLE, error.detail, meaning)
        self._done("connect", str(address), trio.current_time() - started)
        return stream

    async def _shake_hands(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        started = trio.current_time()
        try:
            await shake_hands(stream, seconds=self.question.settings.connect_timeout)
        except UntrustedError as error:
            meaning = "whoever answers has no certificate of this mesh; or a root was rotated a moment ago"
            self._fail("handshake", Verdict.WRONG_IDENTITY, error.detail, meaning)
        except RefusedError as error:
            meaning = "" if error.alert else "the gateway or the destination cut the connection without a TLS alert"
            if error.detail == NO_TLS:
                meaning = "is that the address of a mesh gateway?"
            self._fail("handshake", Verdict.UNREACHABLE, error.detail, meaning, error.alert)
        cipher = stream.cipher()
        self._done("handshake", f"{stream.version()} {cipher[0] if cipher else ''}", trio.current_time() - started)

    def _identify(self, stream: trio.SSLStream[trio.SocketStream], destination: _Destination) -> None:
        try:
            self.met = peer = peer_of(stream)
        except WrongPeerError as error:
            self._fail("identity", Verdict.WRONG_IDENTITY, str(error))
        if peer.spiffe_id.lower() not in map(str.lower, destination.identities):
            detail = f"met {peer.spiffe_id} instead of {' or '.join(destination.identities)}"
            self._fail("identity", Verdict.WRONG_IDENTITY, detail)
        self._done("identity", "verified against the CA roots")

    async def _await_consent(self, client: ConsulClient, stream: trio.SSLStream[trio.SocketStream]) -> None:
        """What the destination does after the handshake, read together with what Consul's intentions say.

        Native services and Consul's own proxy refuse at once. An Envoy sidecar lets a caller that its intentions deny
        in, and ends the connection at the first byte or answers the first request with 403.
        """
        started = trio.current_time()
        alert = ended = None
        said: bytes | None = None
        try:
            said = await listen(stream, seconds=CONSENT_SECONDS)
        except RefusedError as error:
            alert, ended = error.alert, error.detail
        waited = trio.current_time() - started
        if said:
            self._done("consent", "the service spoke first", waited)
            return
        if said == b"":
            ended = "the connection was closed in order"
        intention = await self._intention(client)
        if ended is not None:
            self._ended(ended, alert, intention)
        if intention is Intention.DENY:
            meaning = "an Envoy sidecar lets the caller in and ends the connection at its first byte or request"
            self._fail("consent", Verdict.DENIED, "no objection yet, but Consul's intentions deny the call", meaning)
        self._done("consent", _SILENT[intention], waited)

    def _ended(self, detail: str, alert: str | None, intention: Intention | None) -> NoReturn:
        if intention is Intention.DENY:
            verdict, meaning = Verdict.DENIED, "Consul's intentions deny the call"
        elif intention is Intention.PERMISSIONS:
            verdict, meaning = Verdict.DENIED, "the intention has L7 permissions, which all but Envoy sidecars deny"
        elif intention is None and alert:
            verdict, meaning = Verdict.DENIED, meaning_of(alert)
        elif intention is None:
            verdict, meaning = Verdict.REFUSED, "no intention allows the call, or the service is down"
        elif alert:
            verdict, meaning = Verdict.REFUSED, f"{meaning_of(alert)}; Consul's intentions allow the call"
        else:
            verdict, meaning = Verdict.REFUSED, "Consul's intentions allow the call, so look at the service's own end"
        self._fail("consent", verdict, detail, meaning, alert)

    async def _intention(self, client: ConsulClient) -> Intention | None:
        """What Consul says of the call; None where it does not tell, as of another cluster's intentions."""
        question = self.question
        if question.peer or {question.settings.namespace, question.settings.partition} - {"", DEFAULT}:
            return None
        try:
            return await client.intention(question.identity, question.service)
        except ConsulError:
            return None

    async def _request(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        """A request of HTTP/1.1: an Envoy sidecar answers one that its intentions deny by itself."""
        started, question, seconds = trio.current_time(), self.question, self.question.settings.connect_timeout
        head = f"GET {question.http} HTTP/1.1\r\nHost: {question.service}\r\nUser-Agent: meshgate-probe\r\n"
        answer: bytes | None = b""
        try:
            with trio.move_on_after(seconds):
                await stream.send_all(f"{head}Connection: close\r\n\r\n".encode())
            answer = await listen(stream, seconds=seconds)
        except RefusedError as error:
            self._fail("request", Verdict.REFUSED, error.detail, "the destination cut the connection", error.alert)
        except trio.BrokenResourceError:
            pass
        status, _, rest = (answer or b"").partition(b"\r\n")
        shown = status.decode("ascii", "replace")
        if answer is None:
            self._fail("request", Verdict.REFUSED, f"no answer within {seconds:g} s")
        if not status.startswith(b"HTTP/"):
            meaning = "no intention allows the call, or the service does not speak HTTP/1.1"
            self._fail("request", Verdict.REFUSED, "the connection ended without an answer of HTTP", meaning)
        if _DENIED_REQUEST in rest:
            self._fail("request", Verdict.DENIED, shown, "the intentions of the destination deny this request")
        self._done("request", shown, trio.current_time() - started)

    # --- what became of them -------------------------------------------------------------------------------------

    def _done(self, step: str, detail: str, seconds: float | None = None) -> None:
        self.steps.append(Step(step, True, detail, seconds))

    def _fail(self, step: str, verdict: Verdict, detail: str, meaning: str = "", alert: str | None = None) -> NoReturn:
        if alert:
            detail, meaning = f"TLS alert {alert}", meaning or meaning_of(alert)
        self.steps.append(Step(step, False, detail))
        self.failure = Failure(step, verdict, detail, alert, meaning)
        raise _FailedError


_SILENT: Final = {
    Intention.ALLOW: "no objection, and Consul's intentions allow the call",
    Intention.PERMISSIONS: "no objection; the intention has permissions, by which each request is judged: see --http",
    None: "no objection; an Envoy sidecar would have one at the first byte only",
}
