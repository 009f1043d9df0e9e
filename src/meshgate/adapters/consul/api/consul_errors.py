"""What can go wrong with Consul, in our own words: nothing outside this package sees an exception of a library.

Each error is one clear line and never holds a token. `status` is its label in metrics: the HTTP status, or one of
`unreachable`, `timeout`, `invalid`, `not_ready`, `blocked`, `disabled`. (The registrar adds `taken` and `other_agent`,
which no answer of Consul stands for.)
"""

import re
import socket
import ssl
from dataclasses import dataclass
from typing import Final

from meshgate.adapters.error_words import causes, words_of
from meshgate.core.prerequisites import stops_without

# Consul 1.8: "Permission denied: Missing service:write on web"; later: "... lacks permission 'service:read' on "web"".
_LACKS: Final = re.compile(r"(?:lacks permission '|Missing )(\w+):(\w+)'?(?: on \"?([^\"\s]+)\"?)?")
_UNKNOWN_TOKEN: Final = re.compile(r"ACL not found|token does not exist", re.IGNORECASE)
# Of Consul's filter language; 1.8 says it with status 500.
_NO_FILTER: Final = "boolean expression evaluator"
# Of an agent with `http_config { block_endpoints }`: Consul 1.0 and later, `agent/http.go`.
_BLOCKED: Final = "Endpoint is blocked by agent configuration"
# Resources of Consul's ACL language whose rule takes no name.
_NAMELESS: Final = frozenset(("acl", "keyring", "mesh", "operator", "peering"))


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of Consul's ACL language. With `prefix` it holds for all names that begin with `name`."""

    resource: str
    name: str = ""
    access: str = "read"
    prefix: bool = False

    def __str__(self) -> str:
        if self.resource in _NAMELESS:
            return f'{self.resource} = "{self.access}"'
        kind = f"{self.resource}_prefix" if self.prefix else self.resource
        return f'{kind} "{self.name}" {{ policy = "{self.access}" }}'

    @property
    def grants(self) -> str:
        verb = "register" if (self.resource, self.access) == ("service", "write") else self.access
        every = self.prefix and not self.name
        name = f"every {self.resource}" if every else f'{self.resource} "{self.name}"'
        return f"{verb} {self.resource if self.resource in _NAMELESS else name}"


class ConsulError(Exception):
    """The root: a request to Consul did not bring what was asked for."""

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


class ConsulUnreachableError(ConsulError):
    """No whole answer came: refused, reset, cut off, timed out, TLS failed."""


class InvalidAnswerError(ConsulError):
    """An answer came that is not what Consul sends: no JSON, a wrong shape, no index where one belongs."""


class NotReadyError(ConsulError):
    """Consul answers, but does not know yet: a datacenter whose certificate authority is not initialized."""


class NotFoundError(ConsulError):
    """404: there is none, or this Consul is too old to have the endpoint."""


class BadRequestError(ConsulError):
    """400, or any status that says a filter does not compile (Consul 1.8 answers 500 there)."""


class RateLimitedError(ConsulError):
    """429: too many connections from this client, or Consul's own rate limit."""


class ServerError(ConsulError):
    """5xx. Its status is `disabled` where Consul switches a feature off as long as older servers are about."""


class UnexpectedStatusError(ConsulError):
    """Any other status: a redirect, 401, 405 and the like; mostly something else than Consul answers there."""


class PermissionDeniedError(ConsulError):
    """403, or an answer that shows that the token may not see what was asked for.

    `missing_rule` is the rule to add to the token's policy; None where no rule would help, since Consul does not know
    the token at all (`unknown_token`) or the agent blocks the endpoint (`EndpointBlockedError`).
    """

    def __init__(self, answer: str, asked: Rule | None = None, status: str = "403") -> None:
        """Args: Consul's own words, and the rule that the request needs, for where those words name none."""
        self.answer = answer
        self.unknown_token = _UNKNOWN_TOKEN.search(answer) is not None
        self.missing_rule = None if self.unknown_token else rule_named_in(answer) or asked
        if self.unknown_token:
            message = f"Consul does not know the token: deleted, expired or not replicated yet ({answer})"
        elif self.missing_rule is None:
            message = f"not permitted: {answer}"
        else:
            message = f"token may not {self.missing_rule.grants}: add {self.missing_rule} ({answer})"
        super().__init__(message, status)

    def for_want_of(self, rule: Rule | None) -> "PermissionDeniedError":
        return type(self)(self.answer, rule, self.status)


class EndpointBlockedError(PermissionDeniedError):
    """403 to every token, by `http_config { block_endpoints }` of the agent; the message says what stops working."""

    def __init__(self, path: str) -> None:
        super().__init__(_BLOCKED, status="blocked")
        self.endpoint, stops = stops_without(path)
        self.args = (f"this agent blocks {self.endpoint} for every token (http_config.block_endpoints): {stops}",)

    def for_want_of(self, rule: Rule | None) -> "EndpointBlockedError":
        return self


class LoginError(ConsulError):
    """Consul gives no token to who logs in, or the bearer token cannot be read."""


def error_of(status: int, text: str, path: str) -> ConsulError:
    """The error that an answer without success stands for. `text` is its body as one line, without secrets."""
    if text.startswith("<"):
        text = "a page of HTML, so what answers at CONSUL_HTTP_ADDR may not be Consul"
    if status == 403 and _BLOCKED in text:
        return EndpointBlockedError(path)
    if _NO_FILTER in text:
        return BadRequestError(f"Consul does not understand the filter: {text}", str(status))
    if status == 400:
        # Go's own words where TLS is spoken.
        hint = "; CONSUL_HTTP_ADDR should begin with https://" if "HTTP request to an HTTPS server" in text else ""
        return BadRequestError(f"Consul refuses the request: {text}{hint}", "400")
    if status == 403:
        return PermissionDeniedError(text)
    if status == 404:
        return NotFoundError(f"Consul answered 404 to {path}: {text or 'no such endpoint'}", "404")
    if status == 429:
        return RateLimitedError(f"too many requests or connections for Consul: {text}", "429")
    if 500 <= status < 600:
        disabled = "currently disabled" in text
        return ServerError(f"Consul failed: {status} {text}", "disabled" if disabled else str(status))
    if 400 <= status < 500:
        return UnexpectedStatusError(f"Consul answered {status}: {text}", str(status))
    return UnexpectedStatusError(f"not an answer of Consul: status {status}", str(status))


def rule_named_in(text: str) -> Rule | None:
    """The rule that an answer of Consul says is missing, in the words of 1.8 and of later versions."""
    found = _LACKS.search(text)
    if found is None:
        return None
    resource, access, name = found.groups()
    return Rule(resource, name or "", access, prefix=not name)


_TIMEOUTS: Final = {
    "ConnectTimeout": "no connection in time: is it running, and does a firewall let this machine through?",
    "ReadTimeout": "no answer in time",
    "WriteTimeout": "it does not take the request in time",
}
_NOT_TLS: Final = frozenset(("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"))


def reason_of(error: BaseException) -> str:
    """Why no answer came, in words for people, with the flag that helps where one does."""
    # Both httpx and httpcore name them so, mostly without a text.
    if told := _TIMEOUTS.get(type(error).__name__):
        return told
    *_, root = causes(error)
    if isinstance(root, OSError) and (advice := _advice(root)):
        return advice
    return words_of(error).replace("Server disconnected without sending a response.", "it hung up without an answer")


def _advice(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        if "mismatch" in error.verify_message or "not valid for" in error.verify_message:
            return f"{error.verify_message}; --tls-server-name says which name its certificate has"
        return f"its certificate is not trusted ({error.verify_message}); --ca-file names the CA to trust"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        if reason in _NOT_TLS:
            return "what answers there speaks no TLS; CONSUL_HTTP_ADDR should begin with http://"
        if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
            return "it wants a client certificate: --client-cert and --client-key"
        if "EOF" in reason:
            return "it hung up before TLS stood"
        return f"TLS failed: {reason.replace('_', ' ').lower()}"
    if isinstance(error, socket.gaierror):
        return "the name does not resolve"
    return words_of(error).lower() if error.errno else ""
