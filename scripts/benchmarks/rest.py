"""Memory with nothing to do: the peers with many routes, and `meshgate run` with the usual number of workers."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from .peers import Place, Subject, Target, sni
from .product import Datacenter, Product

SETTLE_SECONDS = 0.5


def at_rest(place: Place, subject: Subject) -> Mapping[str, float]:
    """What a peer holds that has its routes and has seen no stream."""
    del place
    time.sleep(SETTLE_SECONDS)
    return {"mb": subject.running.memory() / 1e6}


def product_at_rest(place: Place, *, services: int, workers: int) -> Mapping[str, float]:
    """What all processes of `meshgate run` hold that follows a Consul with so many services."""
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        place = replace(place, folder=Path(folder))
        datacenter = Datacenter(place)
        try:
            targets = [Target(sni(f"service-{number}"), 20000 + number) for number in range(services)]
            subject = Product(datacenter, workers=workers).start(place, targets)
            try:
                return at_rest(place, subject)
            finally:
                subject.stop()
        finally:
            datacenter.stop()
