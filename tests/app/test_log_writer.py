import os
import select
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from meshgate.app.logs import log_writer
from meshgate.app.logs.log_writer import LogWriter


@pytest.fixture
def pipe() -> Any:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        with suppress(OSError):
            os.close(fd)


@pytest.fixture
def writer(pipe: Any) -> Any:
    made = []

    def make() -> Any:
        made.append(LogWriter(pipe[1], lambda count: f"dropped {count}"))
        return made[-1]

    yield make
    for each in made:
        each.close(1.0)


def read_until(fd: Any, wanted: Any, seconds: Any = 5.0) -> Any:
    data, deadline = b"", time.monotonic() + seconds
    while wanted not in data:
        assert time.monotonic() < deadline, data[-200:]
        data += os.read(fd, 1 << 20)
    return data


def until(condition: Any, seconds: Any = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_lines_come_out_in_order_and_close_waits_for_them(pipe: Any, writer: Any) -> None:
    log = writer()
    for number in range(500):
        log.write(f"line {number}")
    log.close(5.0)
    assert os.read(pipe[0], 1 << 20).decode().splitlines() == [f"line {number}" for number in range(500)]
    assert log.dropped == 0


def test_a_blocked_reader_blocks_no_caller_and_the_loss_is_reported(
    pipe: Any, writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "QUEUE_LINES", 100)
    log = writer()
    # Larger than the pipe holds: once its first bytes are there, the thread is stuck in this very line.
    log.write("x" * (1 << 20))
    until(lambda: select.select([pipe[0]], [], [], 0)[0])
    for number in range(1000):  # Nobody reads: whoever waited here would wait for ever.
        log.write(f"line {number}")
    assert log.dropped == 900
    data = read_until(pipe[0], b"line 99\n")
    assert data.splitlines()[1:] == [b"dropped 900", *(b"line %d" % number for number in range(100))]
    log.write("and on")
    assert read_until(pipe[0], b"and on\n") == b"and on\n"


def test_close_gives_up_on_a_blocked_reader_after_its_time(pipe: Any, writer: Any) -> None:
    log = writer()
    log.write("x" * (1 << 20))
    started = time.monotonic()
    log.close(0.2)  # Without a limit it would never return.
    assert time.monotonic() - started > 0.15
    os.close(pipe[0])  # frees the thread: EPIPE


def test_a_descriptor_made_nonblocking_by_somebody_else_loses_nothing(pipe: Any, writer: Any) -> None:
    os.set_blocking(pipe[1], False)
    log = writer()
    log.write("x" * (1 << 20))
    log.write("end")
    assert read_until(pipe[0], b"end\n") == b"x" * (1 << 20) + b"\nend\n"


def test_a_reader_that_has_gone_costs_lines_and_nothing_else(pipe: Any, writer: Any) -> None:
    os.close(pipe[0])
    log = writer()
    log.write("nobody reads this")
    until(lambda: log.dropped == 1)
    assert log._thread.is_alive()


def test_lines_after_close_are_counted_as_dropped(writer: Any) -> None:
    log = writer()
    log.close(1.0)
    log.write("late")
    assert log.dropped == 1


def test_many_threads_may_write(pipe: Any, writer: Any) -> None:
    log = writer()
    threads = [threading.Thread(target=lambda: [log.write("y" * 40) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close(5.0)
    assert os.read(pipe[0], 1 << 20).decode().splitlines() == ["y" * 40] * 400


def test_half_a_surrogate_pair_does_not_stop_the_writer(pipe: Any, writer: Any) -> None:
    log = writer()
    log.write("a\ud800b")
    assert read_until(pipe[0], b"\n") == b"a\\ud800b\n"
