"""What one version of the gateway hands over to the next at an upgrade, and how it gets there.

Everything lies in a sealed memory file (memfd_create(2)) that only this process and those it starts can open, because
secrets are in it: the environment, the command line, a token that was obtained by logging in. Beside it the next
program inherits the descriptors that the record names. Where the file is stands in the environment variable VARIABLE;
on the command line and in the environment that others can see, secrets are masked.

A field with a default needs no new FORMAT; one that goes or changes its meaning does. A version that does not know the
format says so on trial, and the upgrade is refused.
"""

import fcntl
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from meshgate.adapters.consul import RegistrarLeft, WatchLeft
from meshgate.adapters.error_words import words_of
from meshgate.adapters.relay import Destination, Refused, StreamRecord
from meshgate.adapters.relay.pool import PoolLeft
from meshgate.adapters.sd_notify import Notifier
from meshgate.app.errors import CommandError
from meshgate.app.gateway.hardening import forbid_core_dumps
from meshgate.core.catalog import Snapshot
from meshgate.core.proxy_config import BindAddress
from meshgate.core.routes import Endpoint
from meshgate.core.text import printable

FORMAT: Final = 1
VARIABLE: Final = "_MESHGATE_HAND_OVER"
# Why the version that was to go on could not, where it gave everything back.
FAILED: Final = "_MESHGATE_HAND_OVER_FAILED"
TRIAL: Final = "trial"
"""What a program is called with that is to try whether it could go on, and no more."""
PATIENCE: Final = 20
"""Seconds after which a version that is not in charge gives everything back: sooner than a supervisor's watchdog."""
_TRIAL_ALONE: Final = 120
"""Seconds after which a trial ends whose gateway has died, whatever it does."""
_NAME: Final = "meshgate-hand-over"
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Upgrade(msgspec.Struct, kw_only=True):
    """An upgrade and what came of it; times are Unix time. `version_after` is "" before it is known.

    Of `streams` that were open some were `handed_over`, some `kept` by workers of before, and some `lost`.
    """

    number: int
    started: float
    python: str
    version_before: str
    version_after: str = ""
    result: str = "under_way"
    reason: str = ""
    seconds: float | None = None
    streams: int = 0
    handed_over: int = 0
    kept: int = 0
    lost: int = 0


class ProcessLeft(msgspec.Struct, frozen=True, kw_only=True):
    """How the process was started, and since when it runs: Unix time, and CLOCK_MONOTONIC.

    `secrets` are those of its arguments and environment that others may not see.
    """

    python: str
    arguments: list[str]
    environment: dict[str, str]
    secrets: list[str]
    started: float
    since: float


class CatalogLeft(msgspec.Struct, frozen=True, kw_only=True):
    """The catalog in use, and what was seen of it over time.

    `age` is how many seconds ago it was last known to be Consul's present one, and `stale` whether that is long ago.
    `unhealthy` has for each route, by its SNI, an endpoint, for how many seconds it is unhealthy, and whether it was
    seen healthy before.
    """

    snapshot: Snapshot
    addresses: dict[str, tuple[str, ...]]
    stale: bool
    age: float
    unhealthy: list[tuple[str, Endpoint, float, bool]] = []


class ConsulLeft(msgspec.Struct, frozen=True, kw_only=True):
    """What was between the gateway and Consul. `token` is the one in use; `login_age` seconds old if by a login."""

    token: str
    login_age: float | None
    errors: dict[str, int]
    watches: list[WatchLeft]
    registration: RegistrarLeft


class LogsLeft(msgspec.Struct, frozen=True, kw_only=True):
    """The log level where it is not that of the settings, lines that were lost so far, and how streams ended lately.

    `ended` has the newest first.
    """

    level: str | None
    dropped: int
    access_dropped: int
    refusals: list[tuple[float, Refused]]
    ended: list[StreamRecord] = []


Lived = tuple[int, int, list[int]]
"""Streams that were routed, those that had a route and failed, and first bytes by the slots of FIRST_BYTE_BUCKETS."""


class Minute(msgspec.Struct, frozen=True, array_like=True):
    """What came to pass until `ends` (Unix time). Streams that were `refused` never had a route, or no slot."""

    ends: float
    streams: int
    failed: int
    refused: int
    destinations: list[tuple[Destination, Lived]]


class OnlookersLeft(msgspec.Struct, frozen=True, kw_only=True):
    """What pages and numbers have shown that must not go back, and the admin address: as set, and its descriptor."""

    statsd_dropped: int = 0
    statsd_said: dict[str, dict[str, float]] = {}
    admin: tuple[str, int] | None = None
    history: list[Minute] = []


class HandOver(msgspec.Struct, frozen=True, kw_only=True):
    """All that is handed over. `identity` are the settings that cannot change without another registration."""

    format: int
    identity: dict[str, str]
    process: ProcessLeft
    relay: PoolLeft
    listeners: list[tuple[BindAddress, tuple[str, int]]]
    addresses: list[BindAddress]
    catalog: CatalogLeft
    consul: ConsulLeft
    logs: LogsLeft
    onlookers: OnlookersLeft
    upgrade: Upgrade
    upgrades: dict[str, int]

    @property
    def descriptors(self) -> list[int]:
        return [*self.relay.descriptors, *([self.onlookers.admin[1]] if self.onlookers.admin else [])]


class _Head(msgspec.Struct):
    format: int


def decode(content: bytes) -> HandOver:
    """A record that any version has made; CommandError where this one does not understand it."""
    try:
        head = msgspec.msgpack.decode(content, type=_Head)
        if head.format != FORMAT:
            raise CommandError(f"the hand-over has format {head.format}, and this meshgate takes format {FORMAT}")
        return msgspec.msgpack.decode(content, type=HandOver)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise CommandError(f"the hand-over cannot be read: {words_of(error)}") from None


def memory_of(record: HandOver) -> int:
    """The descriptor of a sealed memory file with the record, the caller's to close; OSError where there is none."""
    content = msgspec.msgpack.encode(record)
    memory = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(memory, rest) :]
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memory)
        raise
    return memory


def arguments_of(process: ProcessLeft) -> Iterator[str]:
    """Its arguments as others may see them: as `hardening.hide_secrets` leaves them."""
    for argument in process.arguments:
        name, equals, value = argument.partition("=")
        if argument in process.secrets:
            yield "*" * len(argument)
        else:
            yield f"{name}={'*' * len(value)}" if equals and value in process.secrets else argument


def environment_of(process: ProcessLeft, memory: int) -> dict[str, str]:
    """The environment of a program that is to find the record, as others may see it."""
    seen = {name: "*" * len(it) if it in process.secrets else it for name, it in process.environment.items()}
    return seen | {VARIABLE: str(memory)}


@contextmanager
def inheritable(descriptors: Iterable[int]) -> Iterator[None]:
    """Have another program in this process find descriptors open; at the end of the block, if there is one, not."""
    changed: list[int] = []
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
            changed.append(descriptor)
        yield
    finally:
        for descriptor in changed:
            with suppress(OSError):
                os.set_inheritable(descriptor, False)


class Taken:
    """What this program was started to go on with.

    `is_trial`: it is to say whether it could, and to touch nothing. `failed` is why another program gave it back.
    """

    def __init__(self) -> None:
        """Take it, and make command line and environment what they were; CommandError as `decode`."""
        forbid_core_dumps()
        self._memory = int(os.environ[VARIABLE])
        self.failed = os.environ.get(FAILED, "")
        self.is_trial = sys.argv[1:] == [TRIAL]
        size = os.fstat(self._memory).st_size
        self.record = decode(os.pread(self._memory, size, 0))
        process = self.record.process
        sys.argv[1:] = process.arguments
        os.environ.clear()
        os.environ.update(process.environment)
        self._notifier = Notifier.from_environment(os.environ)
        self._in_charge = False
        if self.is_trial:
            signal.alarm(_TRIAL_ALONE)
            return
        self._notifier.watchdog()
        for descriptor in (self._memory, *self.record.descriptors):
            os.set_inheritable(descriptor, False)
        signal.signal(signal.SIGALRM, lambda *_: self.give_back(f"it was not in charge after {PATIENCE} s"))
        signal.alarm(PATIENCE)

    def take_charge(self) -> None:
        """From now on nothing can be given back: the descriptors have found their places, and are used."""
        self._in_charge = True
        signal.alarm(0)
        os.close(self._memory)
        del self.record  # It has the whole catalog.

    def give_back(self, why: str) -> None:
        """Have the version before go on, which replaces this program; returns where that cannot be."""
        if self.is_trial or self._in_charge or self.failed:
            return
        # It lives on across the exec, and would end a program that does not expect it.
        signal.alarm(0)
        self._notifier.watchdog()
        process = self.record.process
        environment = environment_of(process, self._memory) | {FAILED: printable(why)}
        command = command_of(process.python, arguments_of(process))
        with suppress(OSError), inheritable((self._memory, *self.record.descriptors)):
            os.execve(process.python, command, environment)  # noqa: S606 - the very program that was here before


def command_of(python: str, arguments: Iterable[str]) -> list[str]:
    """The command line of a version. -P: a module that lies in the current folder is not ours."""
    return [python, "-P", "-m", "meshgate", *arguments]
