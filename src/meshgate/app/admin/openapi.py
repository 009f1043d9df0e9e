"""The description of the admin address for tools (OpenAPI 3.1), made from the pages' answers (`answers`).

Imported when it is asked for: a gateway runs for months without.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args

import msgspec

from meshgate.adapters.admin.http_server import JSON, TEXT
from meshgate.app.admin import answers
from meshgate.app.admin.dashboard import Sort
from meshgate.app.settings.setting_types import LOG_LEVELS

_METRICS: Final = (
    "text/plain; version=0.0.4; charset=utf-8",
    "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
)
_INFO: Final = {
    "title": "meshgate admin address",
    "version": "1",
    "summary": "What a running gateway tells and can be told.",
    "description": "Plain HTTP on `MESHGATE_ADMIN_BIND` (127.0.0.1:19000, or a unix socket). There are no credentials: "
    "whoever can connect may ask, and may drain the gateway. `HEAD` comes with each `GET`. No answer holds a token, "
    "key or secret.",
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}
_TAGS: Final = {
    "health": "For probes and load balancers.",
    "routing": "Where streams go and why.",
    "numbers": "What is counted.",
    "gateway": "The process itself.",
    "dashboard": "The page for people.",
}
# What the server itself may answer to any request.
_ALWAYS: Final = {
    "400": "The request is not HTTP, its query has too many fields, or a field is missing or not valid.",
    "403": "A page of another site has sent it.",
    "408": "It did not come in time.",
    "413": "Its body is too large.",
    "421": "The Host header has a name that this machine is not known by.",
    "431": "Its header is too large.",
    "500": "A fault of the gateway, which its log tells of.",
    "501": "Its Transfer-Encoding is none that is supported.",
    "503": "Too many requests are being answered.",
    "505": "It is not HTTP/1.0 or HTTP/1.1.",
}
# Of fields of a query, or of a path, what is more than any text.
_SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "format": {"enum": ["text", "json"], "default": "text"},
    "sort": {"enum": get_args(Sort), "default": "busy"},
    "level": {"enum": LOG_LEVELS},
    "file": {"pattern": "^[a-z_]+[.](js|css|svg)$"},
}
# What has to be given.
_EXAMPLES: Final = {
    "sni": ("web.default.dc2.internal.00000000-0000-0000-0000-000000000000.consul", "", "10.0.0.7"),
    "name": ("web",),
    "file": ("main.js", "style.css", "icon.svg"),
}


@dataclass(frozen=True, slots=True)
class _Page:
    """What a page answers: in JSON, or of which other types; fields of its query; other statuses; own headers."""

    tag: str
    summary: str
    answer: Any = None
    types: tuple[str, ...] = ()
    query: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)


_READY: Final = _Page(
    "health", "Whether new streams are served; with 503 they are not, and `problems` says why.", answers.Readiness
)
PAGES: Final = {
    "GET /livez": _Page("health", "The process answers.", types=(TEXT,)),
    "GET /readyz": _READY,
    "GET /ready": _READY,
    "GET /metrics": _Page("numbers", "Metrics for Prometheus, in the format that `Accept` asks for.", types=_METRICS),
    "GET /stats/prometheus": _Page("numbers", "The same under Envoy's name.", types=_METRICS),
    "GET /routes": _Page("routing", "The route table: all routes with all known endpoints.", answers.Routes),
    "GET /explain": _Page(
        "routing",
        "What happens to a stream that asks for a name, step by step.",
        answers.Explanation,
        query={"sni": "The server name as a client sends it; empty for a client that sends none."},
    ),
    "GET /explain/name": _Page(
        "routing",
        "The same for a service.",
        answers.Explanation,
        query={
            "name": "A service (`web`, or `team/web` in a namespace), or a server name as `/explain` takes it.",
            "dc": "The datacenter of the service in `name`; the gateway's own without it.",
        },
    ),
    "GET /whatif": _Page(
        "routing",
        "What breaks if something goes away, from the catalog; Consul is asked for what no watch brings.",
        answers.WhatIf,
        query={
            "node": "Only this node.",
            "dc": "Only the gateways of this datacenter; with `node`, where that is.",
        },
        others={"404": "No such node or datacenter is known."},
    ),
    "GET /names": _Page(
        "routing",
        "Names that may be asked about, for completion: at most 50 of each kind.",
        answers.Names,
        query={"text": "What the names have to hold, in any case."},
    ),
    "GET /clusters": _Page(
        "routing",
        "The routes as Envoy shows clusters: lines of text, or JSON.",
        answers.Clusters,
        (TEXT,),
        {"format": "Envoy's names."},
    ),
    "GET /connections": _Page(
        "numbers",
        "The streams that are open now, up to 100,000 of each relay worker.",
        list[answers.Stream],
        headers={
            answers.WORKERS_SILENT: {
                "description": "Numbers of the relay workers whose streams are missing, because they did not answer in "
                "time, or are of another version. Left out where there are none.",
                "schema": {"type": "string", "pattern": "^[0-9]+(,[0-9]+)*$"},
            }
        },
    ),
    "GET /connections/ended": _Page(
        "numbers", "Streams that were refused or did not end in order, the newest first.", answers.EndedStreams
    ),
    "GET /config_dump": _Page(
        "gateway", "Effective settings, registration, limits, watches and table; no secrets.", answers.ConfigDump
    ),
    "GET /server_info": _Page(
        "gateway", "Version, state and uptime, under Envoy's names too; the last upgrade.", answers.ServerInfo
    ),
    "GET /logging": _Page("gateway", "The log level in force.", answers.Logging),
    "POST /logging": _Page(
        "gateway",
        "Change the log level.",
        answers.Logging,
        query={"level": "In any case; Envoy's `warning` and `critical` are taken too. Without it nothing changes."},
    ),
    "POST /drain": _Page(
        "gateway",
        "Stop in order: deregister, take no new streams, let the open ones run out. Asking again changes nothing.",
        answers.Draining,
    ),
    "POST /upgrade": _Page(
        "gateway",
        "Have the gateway go on as the version that is installed now, with every open stream. It is tried first, and "
        "goes on once this is answered; that cuts the connection.",
        answers.Upgrade,
        query={
            "python": "Absolute path of the Python whose installation is to go on; all on the way to it belongs to "
            "root or the gateway's user, and nobody else may write there. Default: the one that runs."
        },
        others={"409": "It could not go on, or not now; nothing has changed."},
    ),
    "GET /openapi.json": _Page("gateway", "This document.", dict[str, Any]),
    "GET /": _Page("dashboard", "The dashboard.", types=("text/html; charset=utf-8",)),
    "GET /dashboard/{file}": _Page(
        "dashboard",
        "A file of the dashboard.",
        types=("text/css; charset=utf-8", "text/javascript; charset=utf-8", "image/svg+xml"),
        query={"file": "Its name."},
        others={"404": "There is no such file."},
    ),
    "GET /dashboard/state": _Page(
        "dashboard",
        "What the dashboard shows: a bounded part of the gateway's world.",
        answers.DashboardState,
        query={
            "filter": "Part of a destination's name, kind or server name.",
            "sort": "Which destinations come first.",
        },
    ),
    "GET /dashboard/history": _Page(
        "dashboard",
        "The last hour by the minute, as the gateway kept it, with the 200 destinations that were busiest.",
        answers.History,
    ),
}


def openapi_document() -> bytes:
    shapes = [page.answer for page in PAGES.values() if page.answer is not None]
    found, components = msgspec.json.schema_components(
        [answers.Error, *shapes], ref_template="#/components/schemas/{name}"
    )
    error, schemas = found[0], iter(found[1:])
    for name, schema in components.items():
        _strict(schema, getattr(answers, name, None))
    paths: dict[str, dict[str, Any]] = {}
    for place, page in PAGES.items():
        method, path = place.split()
        content = {kind: {"schema": {"type": "string"}} for kind in page.types}
        if page.answer is not None:
            content[JSON] = {"schema": next(schemas)}
        responses = {
            status: {"description": means, "content": {JSON: {"schema": error}}}
            for status, means in {**_ALWAYS, **page.others}.items()
        }
        if page is _READY:
            responses["503"] = {"description": page.summary, "content": content}
        responses["200"] = {"description": page.summary, "content": content, "headers": page.headers}
        paths.setdefault(path, {})[method.lower()] = {
            "operationId": "_".join([method.lower(), *re.findall(r"\w+", path)]),
            "summary": page.summary,
            "tags": [page.tag],
            "parameters": [_parameter(path, name, help_) for name, help_ in page.query.items()],
            "responses": dict(sorted(responses.items())),
        }
    document = {
        "openapi": "3.1.0",
        "info": _INFO,
        "servers": [{"url": "http://127.0.0.1:19000"}],
        "tags": [{"name": name, "description": means} for name, means in _TAGS.items()],
        "paths": paths,
        "components": {"schemas": components},
    }
    return json.dumps(document).encode()


def _parameter(path: str, name: str, help_: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path" if f"{{{name}}}" in path else "query",
        "required": name in _EXAMPLES,
        "schema": {"type": "string"} | _SCHEMAS.get(name, {}),
        "description": help_,
        "examples": {f"example{number}": {"value": each} for number, each in enumerate(_EXAMPLES.get(name, ()))},
    }


def _strict(schema: dict[str, Any], shape: Any) -> None:  # noqa: ANN401 - a struct's class
    """An answer has what is declared, all of it, and nothing else."""
    if schema.get("type") == "object":
        schema["additionalProperties"] = False
        if not shape.__struct_config__.omit_defaults:
            schema["required"] = list(schema["properties"])
        for each in schema["properties"].values():
            each.pop("default", None)
