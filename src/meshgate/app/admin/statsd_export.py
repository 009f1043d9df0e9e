"""The gateway's numbers sent to the statsd or dogstatsd that Consul names, as its own gateway would.

The keys are those of `Proxy.Config` (`envoy_statsd_url`, `envoy_dogstatsd_url`, `envoy_stats_tags`,
`envoy_stats_flush_interval`), which `proxy-defaults` can set for all gateways, and which may change while this one
runs. What cannot be used is said once; nothing here can hold up a stream.
"""

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import structlog
import trio
from prometheus_client.core import Metric

from meshgate.adapters.admin.http_server import Bind
from meshgate.adapters.admin.statsd import INTERVAL, Exporter, Sender, Target, datagrams, target_of
from meshgate.core.addresses import is_numeric
from meshgate.core.durations import parse_duration

log = structlog.get_logger(module="meshgate.statsd")

_KEYS: Final = {"envoy_statsd_url": False, "envoy_dogstatsd_url": True}
_FOLLOWED: Final = (*_KEYS, "envoy_stats_tags", "envoy_stats_flush_interval")
_SHORTEST: Final = 0.1
_RESOLVE_SECONDS: Final = 3.0
# The pause after which a socket that was full is tried again, and the datagrams between two turns of the others.
_PAUSE: Final = 0.01
_BURST: Final = 16


class StatsdExport:
    """Sends the numbers of `families` while something says where to. A URL may name a variable of `environ`."""

    def __init__(
        self, families: Callable[[], Awaitable[list[Metric]]], environ: Mapping[str, str] = os.environ
    ) -> None:
        self.dropped = 0
        """Datagrams that were not sent."""
        self._families = families
        self._environ = environ
        self._config: dict[str, Any] = {}
        self._targets: tuple[Target, ...] = ()
        self._interval = INTERVAL
        self._changed = trio.Event()
        self._exporters: dict[Target, Exporter] = {}
        self._said: dict[str, dict[str, float]] = {}

    def left(self) -> dict[str, dict[str, float]]:
        """What each target was told, for the version that goes on."""
        return {str(target): dict(exporter.said) for target, exporter in self._exporters.items()}

    def go_on(self, said: Mapping[str, dict[str, float]], dropped: int) -> None:
        """Go on from what the version before has told, so that nothing is left out between the two."""
        self._said, self.dropped = dict(said), dropped

    def follow(self, config: Mapping[str, Any]) -> None:
        """Take what `Proxy.Config` says now."""
        asked = {key: config[key] for key in _FOLLOWED if config.get(key)}
        if asked == self._config:
            return
        self._config = asked
        # Old agents make its one text of a list that has only one.
        tags = asked.get("envoy_stats_tags")
        texts = [tag for tag in (tags if isinstance(tags, list) else [tags]) if isinstance(tag, str)]
        targets = []
        for key, dog in _KEYS.items():
            if key not in asked:
                continue
            try:
                targets.append(target_of(str(asked[key]), self._environ, dog=dog, tags=texts))
                log.info("numbers are sent", to=asked[key], setting=key)
            except ValueError as error:
                log.warning("numbers cannot be sent", setting=key, error=str(error))
        self._targets = tuple(targets)
        self._exporters = {it: exporter for it, exporter in self._exporters.items() if it in targets}
        self._interval = _interval(asked.get("envoy_stats_flush_interval"))
        self._changed.set()

    async def run(self) -> None:
        while True:
            self._changed = trio.Event()
            async with trio.open_nursery() as nursery:
                for target in self._targets:
                    nursery.start_soon(self._export, target)
                await self._changed.wait()
                nursery.cancel_scope.cancel()

    async def _export(self, target: Target) -> None:
        exporter = self._exporters[target] = Exporter(target)
        exporter.said = self._said.pop(str(target), {})
        while True:
            try:
                if exporter.said:
                    await self._export_once(exporter, target.address)
                else:
                    exporter.begin(await self._families())
            except Exception:
                # Whatever it is, streams must not pay for it.
                log.exception("numbers could not be sent, tried again at the next interval")
            await trio.sleep(self._interval)

    async def _export_once(self, exporter: Exporter, to: Bind) -> None:
        lines = await trio.to_thread.run_sync(exporter.lines, await self._families())
        address = await _resolved(to)
        packets = list(datagrams(lines))
        if address is None:
            self.dropped += len(packets)
        else:
            await self._send(Sender(address), packets)

    async def _send(self, sender: Sender, packets: list[bytes]) -> None:
        try:
            for number, packet in enumerate(packets, 1):
                if not sender.send(packet):
                    await trio.sleep(_PAUSE)
                elif not number % _BURST:
                    await trio.lowlevel.checkpoint()
        finally:
            self.dropped += sender.dropped
            sender.close()


def _interval(value: object) -> float:
    """Seconds of a Go duration; Envoy's own where it is none."""
    try:
        return max(_SHORTEST, parse_duration(value)) if isinstance(value, str) else INTERVAL
    except ValueError:
        return INTERVAL


async def _resolved(address: Bind) -> Bind | None:
    """The address in numbers; None while its name leads nowhere."""
    if not isinstance(address, tuple) or is_numeric(address[0]):
        return address
    host, port = address
    with suppress(OSError, UnicodeError), trio.move_on_after(_RESOLVE_SECONDS):
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_DGRAM)
        return str(found[0][4][0]), port
    return None
