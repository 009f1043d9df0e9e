"""The setup of a stream, step by step and without a socket: what it is told, and what it says to do."""

import errno
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.circuit_breakers import CircuitBreakers, Ticket
from meshgate.adapters.relay.counters import Counters
from meshgate.adapters.relay.on_demand import OnDemand
from meshgate.adapters.relay.shared_counts import SharedCounts
from meshgate.adapters.relay.stream_setup import (
    GONE,
    LATER,
    MAX_ATTEMPTS,
    RACE_SECONDS,
    WAIT,
    Connected,
    Outcome,
    Pending,
    Refused,
    StreamSetup,
)
from meshgate.core.load_balancer import LoadBalancer
from meshgate.core.outlier_detection import Address
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint
from tests.core.hellos import records

from .streams import WEB, hello_for, table_of

if TYPE_CHECKING:
    from meshgate.adapters.relay.context import Context

HELLO = hello_for(WEB)
NOW = 100.0


class FakeLeg:
    """A connection that does what its network says."""

    def __init__(self, network: "Network", address: Address) -> None:
        self._network = network
        self.address = address
        self.closed = False
        self.sent = b""

    def send(self, data: bytes | bytearray) -> int:
        state = self._network.states.get(self.address, "stands")
        if state == "silent":
            raise BlockingIOError
        if state == "refuses":
            raise OSError(errno.ECONNREFUSED, "")
        taken = data[: self._network.takes]
        self.sent += taken
        return len(taken)

    def watch_writable(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@dataclass(eq=False)
class Network:
    """What becomes of connections, by address; `full` is the errno of a machine that has no socket left."""

    states: dict[Address, str] = field(default_factory=dict)
    takes: int = 1 << 20
    full: int = 0
    legs: list[FakeLeg] = field(default_factory=list)
    client_address: tuple[str, int] = ("192.0.2.7", 1)

    def dial(self, endpoint: Endpoint) -> tuple[Any, int]:
        if self.full:
            raise OSError(self.full, "no socket")
        leg = FakeLeg(self, (endpoint.address, endpoint.port))
        self.legs.append(leg)
        return leg, errno.EINPROGRESS

    @property
    def open(self) -> list[str]:
        return [leg.address[0] for leg in self.legs if not leg.closed]


class Case:
    """A setup with all that is around it."""

    def __init__(self, *endpoints: Endpoint, limits: Limits | None = None, stale: bool = False) -> None:
        self.now = NOW
        self.network = Network()
        self.asked: list[str] = []
        self.reported: list[tuple[str, str]] = []
        breakers = CircuitBreakers(SharedCounts(), lambda: self.context.table)
        self.balancer = LoadBalancer(breakers.loads, lambda: 0.0)
        self.context = cast(
            "Context[Network]",
            SimpleNamespace(
                reactor=SimpleNamespace(now=NOW, clock=lambda: self.now, forget=lambda _: None),
                table=table_of({WEB: endpoints}, stale=[WEB] if stale else []),
                limits=limits or Limits(),
                breakers=breakers,
                load_balancer=self.balancer,
                on_demand=OnDemand[object](lambda name, _: self.asked.append(name), patience=1.5),
                overload=SimpleNamespace(free_descriptors=lambda: False),
                counters=Counters(),
                report=lambda _, address, why: self.reported.append((address[0], why)),
            ),
        )
        ticket = breakers.admit("192.0.2.7", self.context.limits, lambda _: True)
        assert isinstance(ticket, Ticket)
        self.setup = StreamSetup(self.network, self.context, ticket)

    def wait(self, outcome: Outcome) -> Outcome:
        """Let the time pass that the setup waits for, and say that it has."""
        self.now = self.context.reactor.now = self.now + seconds(outcome)
        return self.setup.on_deadline()


def seconds(outcome: Outcome) -> float:
    assert isinstance(outcome, Pending)
    assert outcome.seconds is not None
    return outcome.seconds


def at(address: str, host_name: str = "") -> Endpoint:
    return Endpoint(address, 443, True, 1, "n1", address, host_name=host_name)


A, B, C = (at(f"10.0.0.{number}") for number in (1, 2, 3))


def test_hello_in_pieces_is_waited_for_and_sent_whole() -> None:
    case = Case(A)
    assert case.setup.received(HELLO[:100]) is WAIT
    assert not case.setup.connecting
    outcome = case.setup.received(HELLO[100:])
    assert isinstance(outcome, Connected)
    assert outcome.rest == b""
    assert case.network.legs[0].sent == HELLO
    assert (case.setup.server_name, case.setup.endpoint, case.setup.attempts) == (WEB, A, 1)


@pytest.mark.parametrize("first", [0, 3, 9])
def test_hello_that_is_cut_into_records_is_read_when_there_is_time_for_it(first: int) -> None:
    case, cut = Case(A), records(HELLO[5:], [60])
    if first:
        # Too little to tell, or enough.
        assert case.setup.received(cut[:first]) is (WAIT if first < 9 else LATER)
        if first == 9:
            assert case.setup.read_on() is WAIT
    assert case.setup.received(cut[first:200]) is LATER
    before, outcome, after = case.setup.late, case.setup.read_on(), case.setup.late
    assert (before, outcome is WAIT, after) == (cut[first:200], True, b"")
    assert case.setup.received(cut[200:]) is LATER
    assert isinstance(case.setup.read_on(), Connected)
    assert case.network.legs[0].sent == cut
    assert case.setup.read_on() is WAIT


def test_what_the_kernel_did_not_take_of_the_hello_is_left_to_be_sent() -> None:
    case = Case(A)
    case.network.takes = 10
    outcome = case.setup.received(HELLO)
    assert isinstance(outcome, Connected)
    assert outcome.rest == HELLO[10:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", Reason.NOT_TLS),
        (hello_for(None), Reason.NO_SNI),
        (hello_for("no.such.name"), Reason.UNKNOWN_SNI),
    ],
)
def test_what_cannot_be_routed_is_refused_with_its_reason(data: bytes, reason: Reason) -> None:
    outcome = Case(A).setup.received(data)
    assert isinstance(outcome, Refused)
    assert outcome.reason is reason


def test_client_that_leaves_without_a_word_is_gone_and_one_that_leaves_inside_its_hello_is_refused() -> None:
    case = Case(A)
    assert case.setup.client_left() is GONE
    case.setup.received(HELLO[:100])
    assert case.setup.client_left() == (Reason.HELLO_MALFORMED, "the client closed inside its hello")


def test_time_of_the_hello() -> None:
    case = Case(A, limits=Limits(hello_timeout=3.0))
    case.setup.received(HELLO[:100])
    assert case.setup.on_deadline() == (Reason.HELLO_TIMEOUT, "no complete hello within 3 s")


def test_attempt_gets_a_part_of_the_time_while_another_endpoint_is_left_and_the_last_one_all_of_it() -> None:
    case = Case(A, B)
    case.network.states = {(A.address, 443): "silent", (B.address, 443): "silent"}
    first = case.setup.received(HELLO)
    assert first == Pending(1.0)
    second = case.wait(first)
    assert seconds(second) == pytest.approx(4.0)
    outcome = case.wait(second)
    assert isinstance(outcome, Refused)
    assert outcome.reason is Reason.CONNECT_TIMEOUT
    assert case.now == pytest.approx(NOW + 5.0)
    assert case.setup.attempts == 2
    assert case.network.open == []
    assert {why for _, why in case.reported} == {"timed out"}
    assert case.context.breakers.pending == 0


def test_endpoint_that_is_known_to_fail_is_none_that_is_left() -> None:
    case = Case(A, B)
    case.balancer.failed((A.address, 443))
    case.network.states = {(B.address, 443): "silent"}
    assert case.setup.received(HELLO) == Pending(5.0)


def test_where_all_attempts_together_get_little_the_first_gets_half_of_it() -> None:
    case = Case(A, B, limits=Limits(connect_timeout=0.5))
    case.network.states = {(A.address, 443): "silent", (B.address, 443): "silent"}
    assert case.setup.received(HELLO) == Pending(0.25)


def test_attempts_without_a_time_of_their_own_take_all_of_it() -> None:
    case = Case(A, B, limits=Limits(per_try_timeout=0.0))
    case.network.states = {(A.address, 443): "silent", (B.address, 443): "silent"}
    outcome = case.wait(case.setup.received(HELLO))
    assert isinstance(outcome, Refused)
    assert case.setup.attempts == 1


def test_all_attempts_together_are_bounded() -> None:
    endpoints = [at(f"10.0.1.{number}") for number in range(9)]
    case = Case(*endpoints)
    case.network.states = {(each.address, 443): "silent" for each in endpoints}
    outcome = case.setup.received(HELLO)
    while isinstance(outcome, Pending):
        outcome = case.wait(outcome)
    assert isinstance(outcome, Refused)
    assert case.now == pytest.approx(NOW + 5.0)
    assert case.setup.attempts == MAX_ATTEMPTS


def test_endpoint_that_refuses_is_passed_over_at_once_and_told_of() -> None:
    case = Case(A, B, C)
    case.network.states = {(A.address, 443): "refuses", (B.address, 443): "refuses"}
    outcome = case.setup.received(HELLO)
    assert isinstance(outcome, Connected)
    assert case.setup.endpoint == C
    assert case.balancer.ejected.keys() == {
        address for address in case.network.states if (address[0], "connection refused") in case.reported
    }


def test_ejected_endpoint_that_takes_a_stream_is_told_to_be_well() -> None:
    case = Case(A)
    case.balancer.failed((A.address, 443))
    assert isinstance(case.setup.received(HELLO), Connected)
    assert case.reported == [(A.address, "")]
    assert case.balancer.ejected == {}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_a_socket_no_other_endpoint_is_tried_and_none_is_blamed(number: int) -> None:
    case = Case(A, B)
    case.network.full = number
    outcome = case.setup.received(HELLO)
    assert isinstance(outcome, Refused)
    assert (case.setup.attempts, case.reported) == (1, [])


def test_address_that_cannot_be_dialled_is_passed_over() -> None:
    """As one with a zone that is no interface here."""
    case = Case(A, B)
    dial = case.network.dial

    def dial_one(endpoint: Endpoint) -> tuple[Any, int]:
        if endpoint == A:
            raise OSError(errno.EINVAL, "not a numeric address")
        return dial(endpoint)

    case.network.dial = dial_one  # type: ignore[method-assign]
    for _ in range(2):
        assert isinstance(case.setup.received(HELLO), Connected)
        assert case.setup.endpoint == B
        case.setup = StreamSetup(case.network, case.context, case.setup._ticket)


def test_stale_route_is_asked_about_first_and_then_placed_by_what_there_is() -> None:
    case = Case(A, stale=True)
    assert case.setup.received(HELLO) == Pending(1.5)
    assert (case.asked, case.setup.connecting) == ([WEB], True)
    assert isinstance(case.setup.on_lookup_done(), Connected)
    assert case.setup.on_lookup_done() is WAIT


def test_stream_that_ends_lets_go_of_all_that_it_awaited() -> None:
    case = Case(A, B)
    case.network.states = {(A.address, 443): "silent", (B.address, 443): "silent"}
    case.setup.received(HELLO)
    case.setup.give_up()
    assert (case.network.open, case.context.breakers.pending, case.reported) == ([], 0, [])


# --- both families of one host name ----------------------------------------------------------------------------------

V6, V4 = at("2001:db8::1", "gw.example"), at("192.0.2.1", "gw.example")


def test_family_that_does_not_answer_is_raced_by_the_other_one_which_comes_first_from_then_on() -> None:
    case = Case(V4, V6)
    case.network.states = {(V6.address, 443): "silent"}
    first = case.setup.received(HELLO)
    assert first == Pending(RACE_SECONDS)
    assert case.network.open == [V6.address]
    outcome = case.wait(first)
    assert isinstance(outcome, Connected)
    assert case.setup.endpoint == V4
    case.setup.give_up()
    assert case.network.open == [V4.address]
    # The loser was slower; it did not fail.
    assert case.reported == []
    again = StreamSetup(case.network, case.context, case.setup._ticket)
    assert isinstance(again.received(HELLO), Connected)
    assert (again.endpoint, again.attempts) == (V4, 1)


def test_of_two_that_are_under_way_the_first_that_stands_has_it() -> None:
    case = Case(V4, V6)
    case.network.states = {(V6.address, 443): "silent", (V4.address, 443): "silent"}
    waiting = case.wait(case.setup.received(HELLO))
    assert seconds(waiting) == pytest.approx(5.0 - RACE_SECONDS)
    assert sorted(case.network.open) == [V4.address, V6.address]
    assert case.context.breakers.pending == 2
    slow = next(leg for leg in case.network.legs if leg.address[0] == V6.address)
    assert case.setup.on_leg(cast("Any", slow)) is WAIT
    case.network.states = {(V4.address, 443): "silent"}
    assert isinstance(case.setup.on_leg(cast("Any", slow)), Connected)
    assert case.setup.endpoint == V6
    case.setup.give_up()
    assert (case.network.open, case.context.breakers.pending) == ([V6.address], 0)


def test_rival_that_is_refused_leaves_the_other_its_time() -> None:
    case = Case(V4, V6)
    case.network.states = {(V6.address, 443): "silent", (V4.address, 443): "refuses"}
    outcome = case.wait(case.setup.received(HELLO))
    assert seconds(outcome) == pytest.approx(5.0 - RACE_SECONDS)
    assert case.network.open == [V6.address]
    assert case.reported == [(V4.address, "connection refused")]


def test_rival_for_which_there_is_no_socket_leaves_the_other_its_time() -> None:
    case = Case(V4, V6)
    case.network.states = {(V6.address, 443): "silent"}
    waiting = case.setup.received(HELLO)
    case.network.full = errno.EMFILE
    assert seconds(case.wait(waiting)) == pytest.approx(5.0 - RACE_SECONDS)
    assert case.network.open == [V6.address]


def test_one_of_two_that_breaks_leaves_the_other_one_under_way() -> None:
    case = Case(V4, V6)
    case.network.states = {(V6.address, 443): "silent", (V4.address, 443): "silent"}
    case.wait(case.setup.received(HELLO))
    case.network.states[V6.address, 443] = "refuses"
    slow = next(leg for leg in case.network.legs if leg.address[0] == V6.address)
    assert isinstance(case.setup.on_leg(cast("Any", slow)), Pending)
    assert case.network.open == [V4.address]
    assert case.setup.on_leg(cast("Any", slow)) is WAIT
    case.network.states.clear()
    (fast,) = (leg for leg in case.network.legs if not leg.closed)
    assert isinstance(case.setup.on_leg(cast("Any", fast)), Connected)
