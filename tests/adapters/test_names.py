"""Host names are resolved beside the data path, and what they were last outlives a failing DNS."""

import socket

import pytest
import trio
from trio.testing import MockClock

from meshgate.adapters.names import REFRESH_SECONDS, NameKeeper

Answers = dict[str, list[str] | OSError | None]  # None: nobody answers


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Resolver(trio.abc.HostnameResolver):
    """Answers what the test says."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def getaddrinfo(self, host, *_args, **_options):  # type: ignore[no-untyped-def]
        name = host.decode()
        await trio.sleep(0.02 if name == "two.example" else 0)
        self.asked.append(name)
        answer = self.answers[name]
        if answer is None:
            await trio.sleep_forever()
        if isinstance(answer, OSError):
            raise answer
        return [(family(address), socket.SOCK_STREAM, 6, "", (address, 0)) for address in answer]

    async def getnameinfo(self, sockaddr, flags):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@pytest.fixture
def answers() -> Answers:
    answers: Answers = {"one.example": ["192.0.2.2", "192.0.2.1", "192.0.2.2"], "two.example": ["192.0.2.9"]}
    return answers


async def test_all_addresses_of_a_new_name_are_known_at_once(answers: Answers, nursery: trio.Nursery) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(answers))
    changed = trio.Event()
    keeper = NameKeeper(changed.set)
    nursery.start_soon(keeper.run)
    await trio.testing.wait_all_tasks_blocked()
    keeper.want({"one.example"})
    with trio.fail_after(20):
        await changed.wait()
    assert keeper.addresses == {"one.example": ("192.0.2.1", "192.0.2.2")}


async def test_addresses_of_both_families_are_known(
    answers: Answers, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    answers["one.example"] = ["2001:db8::1", "192.0.2.1", "2001:db8::2"]
    trio.socket.set_custom_hostname_resolver(Resolver(answers))
    keeper = NameKeeper(lambda: None)
    keeper.want({"one.example"})
    nursery.start_soon(keeper.run)
    await trio.sleep(1)
    assert keeper.addresses == {"one.example": ("192.0.2.1", "2001:db8::1", "2001:db8::2")}


async def test_name_that_nobody_answers_for_holds_up_no_other(
    answers: Answers, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    answers["dead.example"] = None
    trio.socket.set_custom_hostname_resolver(Resolver(answers))
    keeper = NameKeeper(lambda: None)
    keeper.want({"one.example", "dead.example"})
    nursery.start_soon(keeper.run)
    await trio.sleep(1)
    assert keeper.addresses == {"one.example": ("192.0.2.1", "192.0.2.2")}
    answers["one.example"] = ["192.0.2.7"]
    keeper.want({"one.example", "dead.example", "two.example"})
    await trio.sleep(REFRESH_SECONDS + 1)
    assert keeper.addresses == {"one.example": ("192.0.2.7",), "two.example": ("192.0.2.9",)}


async def test_answers_that_come_together_are_one_change(
    answers: Answers, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(answers))
    changes: list[float] = []
    keeper = NameKeeper(lambda: changes.append(trio.current_time()))
    keeper.want({"one.example", "two.example"})
    nursery.start_soon(keeper.run)
    await trio.sleep(5 * REFRESH_SECONDS)
    assert len(changes) == 1


async def test_last_answer_is_kept_when_dns_fails_and_replaced_when_it_is_back(
    answers: Answers, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    resolver = Resolver(answers)
    trio.socket.set_custom_hostname_resolver(resolver)
    changes: list[float] = []
    keeper = NameKeeper(lambda: changes.append(trio.current_time()))
    keeper.want({"one.example"})
    nursery.start_soon(keeper.run)
    await trio.sleep(1)
    answers["one.example"] = socket.gaierror(-3, "Temporary failure in name resolution")
    await trio.sleep(5 * REFRESH_SECONDS)
    assert keeper.addresses == {"one.example": ("192.0.2.1", "192.0.2.2")}
    assert len(changes) == 1
    answers["one.example"] = ["192.0.2.7"]
    await trio.sleep(REFRESH_SECONDS + 1)
    assert keeper.addresses == {"one.example": ("192.0.2.7",)}
    assert len(changes) == 2
    assert len(resolver.asked) == 7


async def test_name_no_longer_wanted_is_forgotten(
    answers: Answers, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(answers))
    keeper = NameKeeper(lambda: None)
    keeper.want({"one.example", "two.example"})
    nursery.start_soon(keeper.run)
    await trio.sleep(1)
    keeper.want({"two.example"})
    assert keeper.addresses == {"two.example": ("192.0.2.9",)}


async def test_without_names_nothing_is_asked(
    answers: Answers, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    resolver = Resolver(answers)
    trio.socket.set_custom_hostname_resolver(resolver)
    nursery.start_soon(NameKeeper(lambda: None).run)
    await trio.sleep(3600)
    assert resolver.asked == []
