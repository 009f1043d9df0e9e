"""What needs no traffic: reading a hello, looking a name up, and replacing the table while streams go on."""

import gzip
import json
import time
import timeit
from collections.abc import Mapping
from functools import partial
from statistics import median

from meshgate.core.hello import parse_hello

from .gateway import table_of
from .peers import SCRIPTS, Place, Relay, Subject, Target, ask, sni
from .processes import BenchError, on_core
from .traffic import hostile_hello

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


def hellos(place: Place) -> Mapping[str, float]:
    """What reading a hello takes, each one many times over."""
    data = SCRIPTS.parent / "tests" / "data" / "hellos"
    with gzip.open(data / "corpus.jsonl.gz", "rt", encoding="ascii") as lines:
        corpus = [bytes.fromhex(json.loads(line)["hex"]) for line in lines]
    resumed = {
        row["client"].split()[0].lower(): bytes.fromhex(row["hex"])
        for row in map(json.loads, (data / "resumed.jsonl").read_text(encoding="ascii").splitlines())
    }
    with on_core(place.cores.relay):
        return {
            "corpus_us": median(_reading(hello, 5) for hello in corpus),
            **{f"{client}_us": _reading(hello, 50) for client, hello in resumed.items()},
            "flood_us": _reading(hostile_hello(), 5),
        }


def _reading(hello: bytes, turns: int) -> float:
    """The least of some measurements, in µs: whatever else happens only adds to it."""
    return min(timeit.repeat(lambda: parse_hello(hello), number=20, repeat=turns)) / 20 * 1e6


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
