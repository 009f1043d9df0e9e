import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from meshgate.adapters.admin.http_server import listening


@pytest.fixture
def path(tmp_path: Path) -> Any:
    return tmp_path / "admin.sock"


def left_behind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(path))
        sock.listen()


def test_a_free_port_is_told() -> None:
    with listening(("127.0.0.1", 0)) as (listener, bound):
        assert isinstance(bound, tuple)
        assert bound[0] == "127.0.0.1"
        assert bound[1] > 0
        assert listener.socket.getsockname() == bound


def test_the_mode_does_not_depend_on_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        with listening(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_socket_left_behind_is_replaced(path: Path) -> None:
    left_behind(path)
    with listening(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


def test_a_socket_that_answers_is_left_alone(path: Path) -> None:
    with listening(path):
        with pytest.raises(OSError, match="another process answers there"), listening(path):
            pass
        assert path.exists()


def test_a_file_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(OSError, match="not a socket"), listening(path):
        pass
    assert path.read_text() == "precious"


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    left_behind(tmp_path / "other.sock")
    path.symlink_to(tmp_path / "other.sock")
    with pytest.raises(OSError, match="not a socket"), listening(path):
        pass
    assert (tmp_path / "other.sock").exists()


def test_a_socket_that_somebody_else_put_there_is_not_removed(path: Path) -> None:
    with listening(path):
        path.unlink()
        left_behind(path)
    assert path.exists()


def test_a_socket_removed_by_somebody_else_is_no_error(path: Path) -> None:
    with listening(path):
        path.unlink()


def test_a_directory_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), listening(tmp_path / "no" / "admin.sock"):
        pass
