"""`meshgate drain`."""

import json
import time
from pathlib import Path
from typing import Final

import click

from meshgate.app.admin_client import NoGatewayError, ask, decoded, tell
from meshgate.app.cli.admin_answers import DashboardState
from meshgate.app.cli.setting_options import Command, with_settings
from meshgate.app.settings.settings import Settings
from meshgate.core.host_port import HostPort

_INTERVAL: Final = 1.0
# A gateway without streams is gone a second after it deregistered: look more often, so as not to wait for nothing.
_LOOK: Final = 0.2
# No route has this in its name, so the answer has no rows that nobody reads.
_NOTHING: Final = "no route, please"


@click.command(cls=Command, short_help="Stop the running gateway gracefully.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@with_settings({"MESHGATE_ADMIN_BIND"})
def drain(settings: Settings, *, as_json: bool) -> None:
    """Stop the running gateway gracefully, and wait until it is gone.

    It deregisters, takes no new clients, and lets open streams end until its drain timeout. Prints each second how
    many are left. Ctrl-C ends the waiting, not the drain.
    """
    bind = settings.admin_bind
    before = _look(bind)
    tell(bind, "/drain")
    _say(f"draining: {_streams(before)}", {"state": "draining", "streams": before.totals.open}, as_json=as_json)
    told = started = time.monotonic()
    while (now := _still_there(bind, before)) is not None:
        if time.monotonic() - told >= _INTERVAL:
            told = time.monotonic()
            _say(f"{_streams(now)} left", {"state": "draining", "streams": now.totals.open}, as_json=as_json)
        time.sleep(_LOOK)
    seconds = time.monotonic() - started
    _say(
        f"the gateway is gone, after {seconds:.1f} s", {"state": "gone", "seconds": round(seconds, 3)}, as_json=as_json
    )


def _look(bind: HostPort | Path | None) -> DashboardState:
    return decoded(ask(bind, "/dashboard/state", filter=_NOTHING), DashboardState)


def _still_there(bind: HostPort | Path | None, before: DashboardState) -> DashboardState | None:
    """How the gateway is that was asked to drain; None where it is gone, even if another took its place."""
    try:
        now = _look(bind)
    except NoGatewayError:
        return None
    return now if now.gateway.started == before.gateway.started else None


def _streams(state: DashboardState) -> str:
    return f"{state.totals.open} stream{'' if state.totals.open == 1 else 's'}"


def _say(words: str, facts: dict[str, object], *, as_json: bool) -> None:
    click.echo(json.dumps(facts) if as_json else words)
