"""A hand-written double of systemd's side of sd_notify(3)."""

import trio


class Systemd:
    """Collects what arrives; `until` waits for a message that begins with the given line."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self.seen: list[str] = []

    async def until(self, begins: str) -> str:
        with trio.fail_after(30):
            while True:
                message = (await self._sock.recv(4096)).decode()
                self.seen.append(message)
                if message.startswith(begins):
                    return message
