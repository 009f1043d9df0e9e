"""`meshgate demo`: two datacenters, a gateway in each, and traffic between them, shown to a person.

Everything it says it has just seen: whom the caller met comes from the peer's certificate, what a gateway carried from
that gateway's own counters, what a wrong name gets from the alert that arrived.
"""

import shlex
import signal
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from rich.console import Console
from rich.live import Live
from rich.text import Text

from meshgate.adapters.consul.policy import acl_policy
from meshgate.adapters.mesh_tls import RefusedError
from meshgate.app.errors import CommandError
from meshgate.core.prerequisites import gives_keys_away
from tests.harness.agent import AgentStoppedError, ConsulError
from tests.harness.caller import Caller
from tests.harness.cluster import Federation, StartError, find_consul, two_datacenters
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.ports import free_ports
from tests.harness.sidecar import sidecar_for
from tests.harness.visit import Visitor, command, visitors_token
from tests.harness.waiting import LateError, until

SERVICE: Final = "web"
CALLER: Final = "shop"
_LATENCIES_KEPT: Final = 100
_PLAIN_LINE_EVERY: Final = 5.0
# Who uses the bandwidth, which endpoint is bad, why a stream was cut, what would break without the other datacenter.
_LATER: Final = (
    ("connections",), ("top", "--once", "--page", "endpoints"), ("connections", "--ended"), ("whatif", "--dc", "dc2"),
)  # fmt: skip
_CHUNK: Final = bytes(20_000)


@dataclass(frozen=True, slots=True)
class Stage:
    """What is on the stage once everything has come up."""

    federation: Federation
    local: GatewayProcess
    remote: GatewayProcess
    caller: Caller
    visitor: Visitor
    sni: str

    @property
    def expected(self) -> str:
        """Whom the caller must meet."""
        return f"spiffe://{self.federation.trust_domain}/ns/default/dc/dc2/svc/{SERVICE}"


class MismatchError(CommandError):
    """The demo saw something else than it promises."""


def run_demo(*, once: bool) -> int | None:
    """Show it, until Ctrl-C or, with `once`, until all was seen. Everything is stopped and removed at the end.

    Raises:
        CommandError: there is no Consul, something did not come up, or what was seen is not what should be.
    """
    console = Console(highlight=False, soft_wrap=True)
    try:
        binary = find_consul()
    except FileNotFoundError as error:
        raise CommandError(str(error)) from None
    finished = trio.run(_until_signal, console, binary, once)
    if not finished:
        console.print("Stopped; everything that was started is gone.", style="dim")
    return 0 if finished or not once else 130


async def _until_signal(console: Console, binary: str, once: bool) -> bool:
    """Run the show; False when a signal ended it."""
    finished = False
    async with trio.open_nursery() as nursery:

        async def show() -> None:
            nonlocal finished
            await _show(console, binary, once)
            finished = True
            nursery.cancel_scope.cancel()

        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            nursery.start_soon(show)
            async for _ in signals:
                nursery.cancel_scope.cancel()
    return finished


async def _show(console: Console, binary: str, once: bool) -> None:
    started = time.monotonic()
    try:
        async with _stage(console, binary) as stage:
            console.print(f"Everything is up after {time.monotonic() - started:.1f} s.\n", style="bold")
            _show_world(console, stage)
            await _show_mode(console, stage, "local")
            await _show_mode(console, stage, "remote")
            await _show_keys(console, stage)
            await _show_wrong_name(console, stage)
            await _show_questions(console, stage, once)
            if once:
                console.print("\nAll as promised.", style="bold green")
            else:
                await _show_traffic(console, stage)
    except (StartError, LateError, AgentStoppedError, ConsulError) as error:
        problem, *details = str(error).splitlines()
        for line in details:
            console.print(f"  {line}", style="dim", markup=False)
        raise CommandError(f"the demo did not come up: {problem}") from None
    except RefusedError as error:
        raise MismatchError(f"a call was refused: {error}") from None


@asynccontextmanager
async def _stage(console: Console, binary: str) -> AsyncIterator[Stage]:
    def report(message: str) -> None:
        console.print(f"  {message}", style="dim")

    console.print("Starting two Consul datacenters, ACLs default-deny, Connect on:", style="bold")
    async with two_datacenters(binary, report) as federation:
        report("a token for the gateways, with the policy that `meshgate policy` prints")
        token = await federation.create_policy_token(acl_policy(), "mesh-gateway")
        await federation.set_intention(CALLER, SERVICE, "allow")
        report(f"the service {SERVICE} in dc2, with a real sidecar (consul connect proxy)")
        report(f"the service {CALLER} in dc1, whose sidecar has {SERVICE} in dc2 as an upstream in mode local")
        upstream = {
            "DestinationName": SERVICE,
            "Datacenter": "dc2",
            "LocalBindPort": free_ports(1)[0],
            "MeshGateway": {"Mode": "local"},
        }
        async with (
            sidecar_for(federation.dc2, SERVICE, named=True),
            sidecar_for(federation.dc1, CALLER, upstreams=[upstream]),
        ):
            report("a meshgate in each datacenter")
            async with gateway_beside(federation.dc2, token) as remote, gateway_beside(federation.dc1, token) as local:
                caller = await Caller.of(federation.dc1, CALLER, Path(federation.folder))
                sni = f"{SERVICE}.default.dc2.internal.{federation.trust_domain}"
                token = await visitors_token(federation, CALLER)
                visitor = Visitor(federation.dc1, token, local.admin)
                stage = Stage(federation, local, remote, caller, visitor, sni)
                report("the gateways learn of each other")
                await _until_routed(stage)
                yield stage


async def _until_routed(stage: Stage) -> None:
    suffix = f"*.dc2.internal.{stage.federation.trust_domain}"

    async def missing() -> str | None:
        if not any((await stage.local.endpoints(suffix)).values()):
            return "dc1's gateway has no healthy gateway of dc2 yet"
        if not any((await stage.remote.endpoints(stage.sni)).values()):
            return f"dc2's gateway has no healthy instance of {SERVICE} yet"
        return None

    await until("the routes", missing, seconds=30)


def _show_world(console: Console, stage: Stage) -> None:
    federation = stage.federation
    console.print(f"  trust domain  {federation.trust_domain}")
    for consul, gateway in zip(federation.datacenters, (stage.local, stage.remote), strict=True):
        host, port = gateway.address
        console.print(f"  {consul.datacenter}  Consul {consul.http_addr}  gateway {host}:{port}  admin {gateway.admin}")
        console.print(f"       dashboard http://{gateway.admin}/")
    console.print(f"  the caller holds {stage.caller.spiffe_id}\n")


async def _show_mode(console: Console, stage: Stage, mode: str) -> None:
    """Call once, and show whom the caller met and which gateways say that they carried it."""
    first, path = (
        (stage.local, f"{CALLER} -> gateway dc1 -> gateway dc2 -> sidecar of {SERVICE}")
        if mode == "local"
        else (stage.remote, f"{CALLER} -> gateway dc2 -> sidecar of {SERVICE}")
    )
    before = await _carried(stage)
    answer = await stage.caller.call(first.address, stage.sni, b"hello through the mesh\n", expect=stage.expected)
    carried = tuple(now - then for now, then in zip(await _carried(stage), before, strict=True))
    console.print(f"Mode {mode}: {path}", style="bold")
    console.print(f"  met           {answer.met.spiffe_id}", style="green")
    console.print(f"  handshake     {answer.met.tls_version} {answer.met.cipher}, {_ms(answer.met.handshake_seconds)}")
    console.print(f"  answer        {answer.data.decode().strip()!r}")
    console.print(f"  carried by    dc1's gateway: {_streams(carried[0])}, dc2's gateway: {_streams(carried[1])}\n")
    if carried != ((1, 1) if mode == "local" else (0, 1)):
        raise MismatchError(f"mode {mode} should not have taken this way: streams by gateway {carried}")


async def _carried(stage: Stage) -> tuple[float, float]:
    local, remote = [await each.counter("meshgate_connections_total") for each in (stage.local, stage.remote)]
    return local, remote


async def _show_keys(console: Console, stage: Stage) -> None:
    """What the agent answers to whoever asks with the gateway's token for a key of the services that it carries."""
    consul = stage.federation.dc2
    version = ".".join(map(str, consul.version))
    console.print("The gateways hold no key and ask for none. What their token would get:", style="bold")
    given = False
    for service in (SERVICE, CALLER):
        try:
            await consul.get(f"/v1/agent/connect/ca/leaf/{service}", token=stage.remote.token)
        except ConsulError as error:
            if error.status != 403:
                raise
            console.print(f"  leaf of {service:<6} 403 {str(error).removeprefix('403').strip()}")
        else:
            given = True
            console.print(f"  leaf of {service:<6} 200 certificate and key", style="yellow")
    if given and not gives_keys_away(version):
        raise MismatchError(f"Consul {version} gave a service's key to a token without service:write on it")
    if given:
        console.print(
            f"  Consul {version} gives a key that is in the agent's cache to any token, not only to the gateway's.\n"
            "  What helps is in SECURITY.md: block the endpoint, or an agent without sidecars for the gateway."
        )


async def _show_wrong_name(console: Console, stage: Stage) -> None:
    wrong = stage.sni.replace(SERVICE, "nosuch", 1)
    console.print("\nA wrong name, sent to dc2's gateway:", style="bold")
    try:
        await stage.caller.call(stage.remote.address, wrong)
    except RefusedError as error:
        console.print(f"  the caller got  TLS alert {error.alert}", style="yellow")
        if error.alert != "unrecognized_name":
            raise MismatchError(f"a wrong name should get the alert unrecognized_name, not {error}") from None
    else:
        raise MismatchError("a wrong name was carried")
    explanation = await stage.remote.ask(f"/explain?sni={wrong}")
    console.print(f"  meshgate explain says ({explanation['reason']}):")
    for step in explanation["steps"]:
        console.print(f"    {step['rule']}: {step['outcome']}", soft_wrap=True, markup=False)


async def _show_questions(console: Console, stage: Stage, once: bool) -> None:
    """What can be typed meanwhile, of which the first is tried."""
    title = "What could be asked now, without --once" if once else "Ask for yourself, in another terminal"
    console.print(f"\n{title} (the token reads, and is {CALLER}'s; it ends with the demo):", style="bold")
    question = ("probe", SERVICE, "--dc", "dc2", "--as", CALLER, "--yes")
    asked = [question, ("modes",), ("explain", SERVICE, "--dc", "dc2"), *_LATER]
    for line in (f"cd {shlex.quote(str(Path.cwd()))}", stage.visitor.setting, *(command(*each) for each in asked)):
        console.print(f"    {line}", markup=False)
    code, said = await stage.visitor.ask(*question)
    console.print(f"  {command(*question)} says:")
    for line in said.splitlines():
        console.print(f"    {line}".rstrip(), style="dim", markup=False)
    if code:
        raise MismatchError(f"meshgate {' '.join(question)} should have met {SERVICE}, and ended with {code}")


async def _show_traffic(console: Console, stage: Stage) -> None:
    """Calls in both modes, and one line about them, until cancelled."""
    console.print("\nTraffic goes on; Ctrl-C ends it and removes everything.", style="bold")
    console.print(f"Meanwhile watch it: http://{stage.local.admin}/ (dc1), http://{stage.remote.admin}/ (dc2)")
    console.print(f"or: {command('top', '--admin-bind', stage.local.admin)}\n", style="dim", markup=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_a_stream, stage)
        await _show_calls(console, stage)


async def _keep_a_stream(stage: Stage) -> None:
    """One stream in mode local that stays open and moves bytes, so that there is somebody to be seen."""
    while True:
        with suppress(RefusedError, trio.BrokenResourceError):
            async with stage.caller.connect(stage.local.address, stage.sni, expect=stage.expected) as conversation:
                missing, data = 0, b"-"
                while data:
                    await conversation.send_all(_CHUNK)
                    missing += len(_CHUNK)
                    while missing > 0 and (data := await conversation.receive_some()):
                        missing -= len(data)
                    await trio.sleep(0.2)
        await trio.sleep(1)


async def _show_calls(console: Console, stage: Stage) -> None:
    seconds: dict[str, deque[float]] = {mode: deque(maxlen=_LATENCIES_KEPT) for mode in ("local", "remote")}
    calls = failed = 0
    told = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            for mode, gateway in (("local", stage.local), ("remote", stage.remote)):
                started = time.perf_counter()
                try:
                    await stage.caller.call(gateway.address, stage.sni, expect=stage.expected)
                except RefusedError:
                    failed += 1
                else:
                    seconds[mode].append(time.perf_counter() - started)
                calls += 1
            carried = await _carried(stage)
            line = (
                f"{calls} calls, {failed} failed | median local {_median(seconds['local'])}, "
                f"remote {_median(seconds['remote'])} | streams carried: dc1 {carried[0]:.0f}, dc2 {carried[1]:.0f}"
            )
            if console.is_terminal:
                live.update(Text(line), refresh=True)
            elif time.monotonic() - told >= _PLAIN_LINE_EVERY:
                told = time.monotonic()
                console.print(line)
            await trio.sleep(0.2)


def _median(seconds: "deque[float]") -> str:
    return _ms(statistics.median(seconds)) if seconds else "-"


def _streams(count: float) -> str:
    return f"{count:.0f} stream{'' if count == 1 else 's'}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
