"""Who is at the other end of a connection to the admin address: a worker gets no answer, everybody else does."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from meshgate.adapters.admin.confined_clients import is_confined

# Connects, does what is asked for, says so, and waits.
CLIENT = """
import ctypes, os, socket, struct, sys, threading, time
how, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
if "confined" in how:
    from meshgate.adapters.relay.sandbox import confine
    assert confine() == []
if "user" in how:
    os.setuid(65534)
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
sock.connect((host, port))
sock.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
if "resets" in how:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
if "closes" in how or "resets" in how:
    sock.close()
if "holds" in how:
    # In a system call, and in no table of descriptors.
    descriptor = sock.detach()
    threading.Thread(target=lambda: ctypes.CDLL(None).recv(descriptor, ctypes.create_string_buffer(1), 1, 0)).start()
    time.sleep(0.2)
    os.close(descriptor)
if "flies" in how:
    one, other = socket.socketpair()
    socket.send_fds(one, [b"x"], [sock.fileno()])
    sock.close()
os.write(1, b"ready\\n")
os.read(0, 1)
os._exit(0)
"""


@contextmanager
def client(how: str, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Our end of a connection whose other end is a process of this user that is no child of this one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = str(server.getsockname()[1])
        # A shell between, so that the client is not a child of this process, as no honest one is of a gateway.
        command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", CLIENT, how, host, port]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            sock, _ = server.accept()
            with sock:
                yield sock
        finally:
            process.communicate(b"x")


def hosts() -> list[str]:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return ["127.0.0.1", "::1"]
    except OSError:
        return ["127.0.0.1"]


@pytest.mark.parametrize("host", hosts())
def test_commands_of_the_same_user_are_no_workers(host: str) -> None:
    with client("plain", host) as sock:
        assert not is_confined(sock)


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("how", ["confined", "confined closes", "confined resets", "confined holds"])
def test_a_process_without_rights_is_taken_for_a_worker_whatever_it_does_with_the_socket(how: str, host: str) -> None:
    with client(how, host) as sock:
        assert is_confined(sock)


@pytest.mark.parametrize("how", ["closes", "holds", "flies"])
def test_a_socket_that_no_process_has_is_nobodys(how: str) -> None:
    with client(how) as sock:
        assert is_confined(sock)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_other_users_are_not_looked_at() -> None:
    with client("user") as sock:
        assert not is_confined(sock)
    with client("user holds") as sock:
        assert not is_confined(sock)


def test_a_child_is_a_worker_on_kernels_that_count_no_filters() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = [sys.executable, "-c", CLIENT, "plain", "127.0.0.1", port]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
            sock, _ = server.accept()
            with sock:
                assert is_confined(sock)
            child.communicate(b"x")


def test_who_talks_to_itself_is_no_client() -> None:
    """The gateway does not ask its own admin address; a worker that could hand its socket over might seem to be it."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        sock, _ = server.accept()
        with sock:
            assert is_confined(sock)
