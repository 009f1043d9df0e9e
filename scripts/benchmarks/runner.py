"""Does the work items: starts the peers, gives them work in turn, round after round, and notes what came of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from .items import ROUTES, Item
from .peers import Peer, Place, Relay, Subject, Target, sni
from .results import OURS, Measurement, Results


class Runner:
    """Use it as a context: the peers that most items share run from their first use to its end.

    Args:
        place: where everything runs.
        peers: all that may take part.
        product: the whole product with so many workers.
        targets: the server names that streams are sent to; what else an item wants in the table is made up.
        results: where the numbers go.
    """

    def __init__(
        self,
        place: Place,
        peers: Sequence[Peer],
        product: Callable[[int], Peer],
        targets: Sequence[Target],
        results: Results,
    ) -> None:
        self._place = place
        self._peers = peers
        self._product = product
        self._targets = targets
        self._results = results
        self._standing: dict[str, Subject] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def do(self, item: Item, rounds: int) -> None:
        """All rounds of an item.

        Raises:
            BenchError: something did not start, or bytes were lost.
        """
        measurement = self._results.measurement(item)
        for _ in range(1 if item.once else rounds):
            if item.alone is not None:
                measurement.add(OURS, item.alone(self._place))
            if item.work is not None:
                self._round(item, measurement)

    def _round(self, item: Item, measurement: Measurement) -> None:
        assert item.work is not None
        for peer in self._taking_part(item):
            with self._subject(peer, item) as subject:
                measurement.add(peer.name, item.work(self._place, subject))

    def _taking_part(self, item: Item) -> list[Peer]:
        if not item.workers:
            peers = [peer for peer in self._peers if item.relay or peer.name != Relay.name]
            return [peer for peer in peers if not item.peers or peer.name.partition("-")[0] in item.peers]
        sharing = [self._product(number) for number in item.workers]
        self._results.peers.update((peer.name, peer.title) for peer in sharing)
        return sharing

    @contextmanager
    def _subject(self, peer: Peer, item: Item) -> Iterator[Subject]:
        """The running peer: an item's own if it wants a fresh one or other routes, else the one that stands."""
        if item.fresh or item.routes != ROUTES:
            subject = self._start(peer, item)
            try:
                yield subject
            finally:
                subject.stop()
            return
        if peer.name not in self._standing:
            self._standing[peer.name] = self._start(peer, item)
            self._stack.callback(self._standing[peer.name].stop)
        yield self._standing[peer.name]

    def _start(self, peer: Peer, item: Item) -> Subject:
        made_up = (f"filler-{number}" for number in range(item.routes - len(self._targets)))
        return peer.start(
            self._place, [*self._targets, *(Target(sni(name), self._targets[0].port) for name in made_up)]
        )
