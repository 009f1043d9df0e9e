"""The gateway's own metrics page, read back: samples of one moment, asked for by name and labels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from meshgate.app.cli.admin_client import ask
from meshgate.app.errors import CommandError
from meshgate.app.settings.setting_types import HostPort


@dataclass(frozen=True, slots=True)
class Metrics:
    """A page. Names are whole, with `meshgate_` and `_total`."""

    samples: Mapping[str, list[tuple[Mapping[str, str], float]]]

    @classmethod
    def fetch(cls, bind: HostPort | Path | None) -> "Metrics":
        """The page of the gateway whose admin address is `bind`.

        Raises:
            CommandError: as `ask` raises it, or it is no page of metrics.
        """
        return cls.parse(ask(bind, "/metrics"))

    @classmethod
    def parse(cls, body: bytes) -> "Metrics":
        """A page from its text.

        Raises:
            CommandError: it is something else.
        """
        samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        try:
            for family in text_string_to_metric_families(body.decode()):
                for sample in family.samples:
                    samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        except (ValueError, KeyError, IndexError):
            samples.clear()
        if "meshgate_build_info" not in samples:
            raise CommandError("what answers at the admin address is not meshgate")
        return cls(samples)

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of the samples that have these labels; None where there is none."""
        values = [value for found, value in self.all(name) if labels.items() <= found.items()]
        return sum(values) if values else None

    def total(self, name: str, **labels: str) -> float:
        """As `value`; 0 where there is none."""
        return self.value(name, **labels) or 0.0

    def all(self, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """Every sample of that name: labels and value."""
        yield from self.samples.get(name, ())
