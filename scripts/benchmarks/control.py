"""The control plane's share: looking a name up, and replacing the table while streams go on."""

import time
from collections.abc import Mapping
from functools import partial

from .gateway import table_of
from .peers import Place, Relay, Subject, Target, ask, sni
from .processes import BenchError, on_core

LOOKUPS = 20_000


def lookup(place: Place, *, routes: int) -> Mapping[str, float]:
    """The time to find a route, by its exact name; and to find out that there is none."""
    with on_core(place.cores.relay):
        names = [sni(f"service-{number}") for number in range(routes)]
        table = table_of(dict.fromkeys(names, 1))
        known = [names[number * 7919 % routes] for number in range(LOOKUPS)]
        unknown = [f"{name}.elsewhere" for name in known]
        begun = time.thread_time_ns()
        found = sum(table.find(name) is not None for name in known)
        middle = time.thread_time_ns()
        found -= sum(table.find(name) is None for name in unknown)
        done = time.thread_time_ns()
    if found:
        raise BenchError("a route was not found, or one too many was")
    return {"hit_ns": (middle - begun) / LOOKUPS, "miss_ns": (done - middle) / LOOKUPS}


def update(place: Place, *, services: int, seconds: float) -> Mapping[str, float]:
    """The longest round trip among 32 streams: with no change, with a whole new catalog, with one service changed.

    It is our relay alone that is told of them: what Consul adds is in the item about a large catalog.
    """
    subject = Relay().start(place, [Target(sni("web"), place.load.backend_port)])
    try:
        return _update(place, subject, services, seconds)
    finally:
        subject.stop()


def _update(place: Place, subject: Subject, services: int, seconds: float) -> Mapping[str, float]:
    ask(subject.running, {"do": "learn", "services": services})
    options = {"streams": 32, "seconds": seconds}
    run = partial(place.load.run, subject.running, subject.port, "ping", options, own_backend=True)
    steps: dict[str, float] = {}

    def change(what: str) -> None:
        time.sleep(seconds / 2)
        steps.update(ask(subject.running, {"do": what}))

    calm = run()
    whole = run(meanwhile=partial(change, "update"))
    one_changed = run(meanwhile=partial(change, "change"))
    return {
        "whole_max_ms": whole.max_us / 1e3,
        "one_max_ms": one_changed.max_us / 1e3,
        "calm_max_ms": calm.max_us / 1e3,
        **steps,
    }
