"""Telling systemd how the process is doing (sd_notify(3)): a datagram to `$NOTIFY_SOCKET`.

Nothing here ever raises or waits: a supervisor that does not listen must not disturb the gateway.
"""

import os
import socket
import time
from collections.abc import Mapping

import trio


class Notifier:
    """Sends states to the socket at `address` (a leading `@` is Linux' abstract namespace); "" sends nothing.

    `watchdog_seconds` is how often `watchdog` should be called: half of what systemd allows, None if it does not ask.
    """

    def __init__(self, address: str = "", watchdog_seconds: float | None = None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Notifier":
        """By `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`, which may name another process."""
        microseconds = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        asked = ours and microseconds.isdecimal() and int(microseconds) > 0
        return cls(environ.get("NOTIFY_SOCKET", ""), int(microseconds) / 2e6 if asked else None)

    def ready(self) -> bool:
        return self._send("READY=1")

    def reloading(self) -> bool:
        """A reload has begun; `ready` ends it. The time tells systemd which of its requests is meant."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        return self._send("STOPPING=1")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`; what else is in the text becomes part of it."""
        return self._send("STATUS=" + " ".join(text.split()))

    def watchdog(self) -> bool:
        return self._send("WATCHDOG=1")

    async def ping_watchdog(self) -> None:
        """Tell again and again that the process is alive, where systemd asks for it; runs until cancelled."""
        if self.watchdog_seconds is None:
            return
        while True:
            self.watchdog()
            await trio.sleep(self.watchdog_seconds)

    def _send(self, state: str) -> bool:
        """Whether the datagram was taken."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode("utf-8", "replace"), self._address)
        except (OSError, ValueError):
            return False
        return True
