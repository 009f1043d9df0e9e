"""Keeping web pages of others away from the admin address.

A browser on an operator's machine runs pages that can send requests to 127.0.0.1. Two things stop them:

- DNS rebinding: a page's own name is made to resolve to the admin address, so that the page may read what it answers.
  Such a request carries that name in `Host`. Only IP addresses (a rebound request cannot carry one, the browser sends
  the name), `localhost`, and names this machine is known by are answered.
- Cross-site requests: reads are useless to the page, as no answer allows another origin. Requests that change
  something are refused when `Origin` or `Sec-Fetch-Site` (W3C Fetch Metadata) says that another site's page sent them.
"""

import ipaddress
from collections.abc import Collection
from typing import Final

from .messages import Request, Response, error_response

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def refusal(request: Request, names: Collection[str] | None) -> Response | None:
    """The answer to a request that a stranger's page may have sent; None for all others.

    Args:
        request: the request.
        names: host names, lower case, that may be in `Host`. None where `Host` says nothing: on a unix socket, which
            no page can reach.
    """
    host = request.headers.get("host", "")
    # A client of HTTP/1.0 may send no Host; browsers always send one.
    if names is not None and host and not _is_known(host, names):
        return error_response(421, "unknown name in the Host header; use the IP address or localhost")
    if request.method not in _SAFE_METHODS and not _is_same_site(request, host):
        return error_response(403, "cross-origin request")
    return None


def _is_known(host: str, names: Collection[str]) -> bool:
    name = _without_port(host)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower().removesuffix(".") in names
    return True


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_same_site(request: Request, host: str) -> bool:
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    origin = request.headers.get("origin")
    return origin is None or origin.lower() == f"http://{host.lower()}"
