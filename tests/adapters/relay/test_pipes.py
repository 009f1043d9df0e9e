"""Pipes are lent empty, and one that holds bytes never reaches another stream."""

import os

import pytest

from meshgate.adapters.relay import pump
from meshgate.adapters.relay.pump import Pipe, PipePool

from .streams import open_descriptors


def test_empty_pipe_is_lent_again() -> None:
    pool = PipePool(2)
    pipe = pool.take()
    assert pipe is not None
    pool.give(pipe)
    assert pool.take() is pipe
    pool.give(pipe)
    pool.close()


def test_pipe_with_bytes_inside_is_closed() -> None:
    descriptors = open_descriptors()
    pool = PipePool(2)
    pipe = pool.take()
    assert pipe is not None
    pipe.inside = os.write(pipe.writer, b"of one stream")
    pool.give(pipe)
    assert open_descriptors() == descriptors


def test_no_more_than_the_limit_is_lent() -> None:
    pool = PipePool(1)
    pipe = pool.take()
    assert pipe is not None
    assert pool.take() is None
    pool.give(pipe)
    assert pool.take() is pipe
    pool.give(pipe)
    pool.close()


def test_pipe_smaller_than_useful_is_not_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = open_descriptors()
    monkeypatch.setattr(pump, "PIPE_BYTES", 4096)
    assert PipePool(1).take() is None
    assert open_descriptors() == descriptors


def test_pool_without_descriptors_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor(_flags: int) -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe2", no_descriptor)
    assert PipePool(1).take() is None


def test_pipe_is_as_large_as_the_kernel_allows() -> None:
    pipe = Pipe()
    assert pipe.capacity >= pump.USEFUL_PIPE_BYTES
    pipe.close()
