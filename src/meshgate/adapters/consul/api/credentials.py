"""What the client shows to the agent, and by what it knows it: the ACL token, and the context of TLS.

Both may come from files, which are read again when they have changed: Consul's own tools read them once, here a rotated
token or certificate takes effect with the next request. A file that vanishes, turns empty or cannot be used leaves in
use what was read before, and is reported. The token leaves this module by `header()`, and by `secret()` at
an upgrade.
"""

import base64
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio

from meshgate.adapters.error_words import words_of

from .address import ConsulAddress, ConsulConfigError
from .consul_errors import LoginError

log = structlog.get_logger(module="meshgate.consul")

# Seconds between two looks at the files of TLS: there may be hundreds in a CA path.
_TLS_POLL: Final = 1.0

_Stamp = tuple[int, int, int]


class _Files:
    """What was read from files. `problem` says in one line why they cannot be used at present; "" otherwise."""

    def __init__(self, what: str) -> None:
        self.problem = ""
        self._what = what

    def _report(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("what was read before stays in use", files=self._what, problem=problem)
        elif self.problem and not problem:
            log.info("files are usable again", files=self._what)
        self.problem = problem


class TokenSource(_Files):
    """Gives each request its credentials.

    The token is used while there is no file or the file is empty; it may be empty (anonymous). `http_auth` is user and
    password for a proxy before the agent.

    Raises:
        ConsulConfigError: at the start, the file cannot be read, or it or `token` holds what can be no token.
    """

    def __init__(self, token: str = "", file: str = "", http_auth: tuple[str, str] | None = None) -> None:
        super().__init__("token file")
        self._version = 0
        self._token = _checked(token, "the token")
        self._basic = "" if http_auth is None else base64.b64encode(":".join(http_auth).encode()).decode("ascii")
        self._file = Path(file) if file else None
        self._stamp: _Stamp | None = None
        if self._file is not None:
            try:
                self._read(self._file)
            except OSError as error:
                raise ConsulConfigError(f"the token file {file} cannot be read: {words_of(error)}") from error

    @property
    def version(self) -> int:
        """Grows whenever the token has changed; looks at the file."""
        self.refresh()
        return self._version

    @property
    def given(self) -> bool:
        """Whether there is a token at all; without one Consul takes a request for the anonymous token's."""
        return bool(self._token)

    def header(self) -> dict[str, str]:
        """The headers that carry the credentials of a request.

        The token goes as `Authorization: Bearer`, which HTTP libraries hide when they print headers. With basic
        authentication that header is taken, and the token goes as `X-Consul-Token`.
        """
        self.refresh()
        if self._basic:
            headers = {"Authorization": f"Basic {self._basic}"}
            return headers | {"X-Consul-Token": self._token} if self._token else headers
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def secret(self) -> str:
        """The token itself, for the program that goes on with this process, and for nobody else."""
        return self._token

    def replace(self, token: str) -> None:
        """Use another token from now on, where it does not come from a file; ConsulConfigError if it can be none."""
        if self._file is None and _checked(token, "the token") != self._token:
            self._token = token
            self._version += 1

    def refresh(self) -> None:
        """Read the file again if it is another one than before (one stat while it is not)."""
        if self._file is None:
            return
        try:
            if _stamp(self._file) != self._stamp:
                self._read(self._file)
        except OSError as error:
            self._stamp = None  # It may come back as it was.
            self._report(f"the token file {self._file} cannot be read, the last token stays in use: {words_of(error)}")
        except ConsulConfigError as error:
            self._report(f"{error}; the last token stays in use")

    def redact(self, text: str) -> str:
        """`text` without the credentials, should whoever answered have repeated them."""
        for secret in (self._token, self._basic):
            if secret:
                text = text.replace(secret, "(token)")
        return text

    def _read(self, file: Path) -> None:
        # Stamp first: a change during the read shows as a newer stamp at the next look.
        stamp = _stamp(file)
        text = file.read_text(encoding="utf-8", errors="replace").strip()
        self._stamp = stamp
        token = _checked(text, f"the token file {file}")
        if not token:
            self._report(f"the token file {file} is empty, what was known before stays in use")
            return
        self._report("")
        if token != self._token:
            self._token = token
            self._version += 1


@dataclass(frozen=True, slots=True)
class Login:
    """How to obtain a token from an auth method, as `consul login` does: in exchange for the token in a file.

    `unknown_for` is the seconds that a new token may take to reach all of Consul.
    """

    auth_method: str
    bearer_token_file: str
    unknown_for: float = 5.0


class LoginToken(TokenSource):
    """A token that is obtained by logging in, and again when Consul no longer knows it.

    `log_in` makes the request: it gets the auth method and the bearer token, and returns the token. The file is read
    for each login, since whoever wrote it may have put a newer one there.

    Raises:
        ConsulConfigError: at the start, the file cannot be read or is empty.
    """

    def __init__(self, login: Login, http_auth: tuple[str, str] | None = None) -> None:
        super().__init__(http_auth=http_auth)
        self._login = login
        self._lock = trio.Lock()
        self._had_at = float("-inf")
        self._bearer = self._read_bearer()

    @property
    def age(self) -> float:
        return time.monotonic() - self._had_at

    def adopt(self, token: str, age: float) -> None:
        super().replace(token)
        self._had_at = time.monotonic() - age

    async def version_in_use(self, log_in: Callable[[str, str], Awaitable[str]]) -> int:
        """The version of the token that a request is to be made with; logs in where there is none."""
        async with self._lock:
            if not self.given:
                await self._renew(log_in)
            return self._version

    async def renewed(self, version: int, log_in: Callable[[str, str], Awaitable[str]]) -> bool:
        """Log in again, as Consul does not know this version any more; whether there is another one."""
        async with self._lock:
            if self._version == version:
                if time.monotonic() - self._had_at < self._login.unknown_for:
                    return False
                await self._renew(log_in)
            return True

    def replace(self, token: str) -> None:
        """Nothing: the settings have no token."""

    def redact(self, text: str) -> str:
        return super().redact(text.replace(self._bearer, "(token)"))

    async def _renew(self, log_in: Callable[[str, str], Awaitable[str]]) -> None:
        try:
            self._bearer = self._read_bearer()
        except ConsulConfigError as error:
            raise LoginError(str(error), "403") from None
        token = await log_in(self._login.auth_method, self._bearer)
        self._had_at = time.monotonic()
        super().replace(token)
        log.info("logged in to Consul", auth_method=self._login.auth_method)

    def _read_bearer(self) -> str:
        file = self._login.bearer_token_file
        try:
            bearer = Path(file).read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            raise ConsulConfigError(f"the bearer token file {file} cannot be read: {words_of(error)}") from error
        if not bearer:
            raise ConsulConfigError(f"the bearer token file {file} is empty")
        return bearer


def _stamp(file: Path | str) -> _Stamp:
    status = os.stat(file)  # noqa: PTH116 (called before each request: no detour by Path)
    return status.st_mtime_ns, status.st_size, status.st_ino


def _checked(token: str, where: str) -> str:
    # A header with other characters would be refused by the HTTP library, with the token in its message.
    if not all("!" <= character <= "~" for character in token):
        raise ConsulConfigError(f"{where} holds characters that no token has")
    return token


class TlsContext(_Files):
    """The TLS context of all connections, made anew when one of its files has changed.

    `version` grows each time that `context` is another one. Making one reads the system's authorities (tens of
    milliseconds), so they are shared.

    Raises:
        ConsulConfigError: at the start, a file cannot be read, or holds no certificate or no matching key.
    """

    def __init__(self, address: ConsulAddress) -> None:
        super().__init__("TLS files")
        self.version = 0
        self._address = address
        self._stamps = self._look()
        self._looked = time.monotonic()
        self.context = tls_context(address)

    def refresh(self, *, at_once: bool = True) -> None:
        """Look at the files; without `at_once` only if the last look is a while ago."""
        now = time.monotonic()
        if not at_once and now - self._looked < _TLS_POLL:
            return
        self._looked = now
        # Stamps first: a change during the read shows as newer ones at the next look.
        stamps = self._look()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self.context = tls_context(self._address)
        except ConsulConfigError as error:
            # A certificate whose key is not there yet, as a rule: the two are not replaced at the same moment.
            self._report(f"{error}; what was read before stays in use")
            return
        self.version += 1
        self._report("")
        log.info("TLS files of the agent's address have changed and are read again")

    def _look(self) -> dict[str, _Stamp]:
        address = self._address
        files = [file for file in (address.ca_file, address.client_cert, address.client_key) if file]
        if address.ca_path and not address.ca_file:
            try:
                files += sorted(entry.path for entry in os.scandir(address.ca_path))
            except OSError:
                files.append(address.ca_path)
        stamps: dict[str, _Stamp] = {}
        for file in files:
            with suppress(OSError):
                stamps[file] = _stamp(file)
        return stamps


def tls_context(address: ConsulAddress) -> ssl.SSLContext:
    """The context that the settings ask for.

    Over plain HTTP, without any TLS file, it is an empty one. Authorities come from the CA file, else from every file
    in the CA path, else from the system (Consul's `rootcerts.ConfigureTLS`). Files are read even where the address is
    plain HTTP, so a wrong path shows at once, as it does in Consul's tools.

    Raises:
        ConsulConfigError: a file cannot be read, or holds no certificate or no matching key.
    """
    files = (address.ca_file, address.ca_path, address.client_cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if address.scheme != "https" and not any(files):
        return context
    _load_authorities(context, address)
    if address.client_cert:
        with _reading("client certificate and key", address.client_cert):
            # A password callback that gives nothing keeps OpenSSL from asking on the terminal for an encrypted key.
            context.load_cert_chain(address.client_cert, address.client_key, password=lambda: "")
    if not address.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load_authorities(context: ssl.SSLContext, address: ConsulAddress) -> None:
    if address.ca_file:
        with _reading("CA file", address.ca_file):
            context.load_verify_locations(cafile=address.ca_file)
    elif address.ca_path:
        # OpenSSL's own capath wants hashed names; Consul takes each file in the folder.
        with _reading("CA path", address.ca_path):
            files = sorted(file for file in Path(address.ca_path).iterdir() if file.is_file())
        for file in files:
            with _reading("CA file", str(file)):
                context.load_verify_locations(cafile=file)
    else:
        context.load_default_certs()


@contextmanager
def _reading(what: str, path: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise ConsulConfigError(f"{what} {path} cannot be used: {words_of(error)}") from error
    except OSError as error:
        raise ConsulConfigError(f"{what} {path} cannot be read: {words_of(error)}") from error
