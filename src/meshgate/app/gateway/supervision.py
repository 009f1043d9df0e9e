"""What the process hears from its supervisor and tells it: signals, and the watchdog's pings.

SIGTERM and SIGINT ask to stop, SIGHUP asks to read and open again what may have changed (systemd's `Type=notify-reload`
wants the begin and the end of that told, sd_notify(3)).
"""

import signal
from collections.abc import Callable

import trio

from meshgate.adapters.sd_notify import Notifier


async def obey_signals(stop: Callable[[signal.Signals], None], reload: Callable[[], None]) -> None:
    """Call `stop` with each signal that asks for it, and `reload` for each SIGHUP, until cancelled."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number == signal.SIGHUP:
                reload()
            else:
                stop(signal.Signals(number))


async def ping_watchdog(notifier: Notifier) -> None:
    """Tell systemd again and again that the process is alive, where it asks for it; runs until cancelled."""
    if notifier.watchdog_seconds is None:
        return
    while True:
        notifier.watchdog()
        await trio.sleep(notifier.watchdog_seconds)
