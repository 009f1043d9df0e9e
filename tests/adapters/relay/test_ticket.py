"""Whatever a stream counted for is given back exactly once, whatever happens in between."""

from hypothesis import given, strategies as st

from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.circuit_breakers import CircuitBreakers, Ticket
from meshgate.adapters.relay.shared_counts import SharedCounts
from meshgate.core.load_balancer import HostSet
from meshgate.core.reasons import Reason
from meshgate.core.routes import Policy, Route, RouteKind

from .streams import endpoint, table_of

HOSTS = [
    HostSet(Route(name, RouteKind.SERVICE, name, (endpoint(1), endpoint(2)), policy=Policy.LEAST_REQUEST))
    for name in ("web", "api")
]
KEYS = [f"{what} {hosts.sni}" for what in ("to", "waiting for") for hosts in HOSTS]

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "charge", "wait", "settle", "carry", "release", "limits"]),
        st.integers(0, 4),
        st.integers(0, 1),
        st.integers(0, 1),
    ),
    max_size=60,
)
LIMITS = st.sampled_from([0, 1, 3])


def nothing_open(breakers: CircuitBreakers) -> bool:
    counted = [
        breakers.counts.active,
        breakers.pending,
        *map(breakers.counts.keyed, [*KEYS, "192.0.2.7", "lately from 192.0.2.7"]),
    ]
    return not any(counted) and not breakers._pending and not breakers.loads


@given(STEPS, st.data())
def test_all_is_given_back_once_whatever_the_limits_are_by_then(
    steps: list[tuple[str, int, int, int]], data: st.DataObject
) -> None:
    breakers = CircuitBreakers(SharedCounts(), lambda: table_of({}))
    limits, tickets = Limits(), list[Ticket]()
    for step, which, name, position in steps:
        hosts = HOSTS[name]
        if step == "limits":
            limits = Limits(
                max_connections_per_client=data.draw(LIMITS),
                max_connection_rate_per_client=data.draw(LIMITS),
                max_connections_per_destination=data.draw(LIMITS),
                max_pending_per_destination=data.draw(LIMITS),
            )
        elif step == "admit":
            ticket = breakers.admit("192.0.2.7", limits, lambda _: False)
            if isinstance(ticket, Ticket):
                tickets.append(ticket)
            else:
                assert ticket[0] is Reason.MAX_CONNECTIONS_PER_CLIENT
        elif tickets:
            ticket = tickets[which % len(tickets)]
            if step == "charge" and not ticket._destination:
                ticket.charge(hosts, limits)
            elif step == "wait":
                ticket.wait(hosts, hosts.address_of[position], limits)
            elif step == "settle":
                ticket.settle(hosts.address_of[position])
            elif step == "carry" and ticket._load is None:
                ticket.carry(hosts, hosts.address_of[position])
            elif step == "release":
                ticket.release()
    for ticket in tickets:
        ticket.release()
    breakers.forget_old(1.0)
    assert nothing_open(breakers)


def test_what_happens_after_the_end_counts_for_nothing() -> None:
    breakers, limits = (
        CircuitBreakers(SharedCounts(), lambda: table_of({})),
        Limits(max_connections_per_destination=1),
    )
    ticket = breakers.admit("192.0.2.7", limits, lambda _: False)
    assert isinstance(ticket, Ticket)
    ticket.release()
    ticket.release()
    assert ticket.charge(HOSTS[0], limits) is None
    ticket.wait(HOSTS[0], ("127.0.0.1", 1), limits)
    ticket.settle(("127.0.0.1", 1))
    ticket.carry(HOSTS[0], ("127.0.0.1", 1))
    assert nothing_open(breakers)


def test_connections_of_one_stream_are_counted_one_by_one_and_its_waiting_once() -> None:
    breakers, limits = (
        CircuitBreakers(SharedCounts(), lambda: table_of({})),
        Limits(max_pending_per_destination=5),
    )
    ticket = breakers.admit("192.0.2.7", limits, lambda _: False)
    assert isinstance(ticket, Ticket)
    (hosts, _), (one, other) = HOSTS, HOSTS[0].address_of
    for address in (one, other):
        ticket.wait(hosts, address, limits)
    assert (breakers.pending, breakers.counts.keyed("waiting for web")) == (2, 1)
    assert breakers.full(hosts, 1) == (0, 1)
    ticket.settle(one)
    ticket.settle(one)
    assert (breakers.pending, breakers.counts.keyed("waiting for web")) == (1, 1)
    assert (breakers.full(hosts, 1), breakers.full(hosts, 2)) == ((1,), ())
    ticket.settle(other)
    assert (breakers.pending, breakers.counts.keyed("waiting for web")) == (0, 0)
