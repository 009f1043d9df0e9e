"""The state file: whole or not at all, and believed only if it is whole, ours and safe."""

import copy
import dataclasses
import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from meshgate.adapters import state as state_file
from meshgate.adapters.state import NAME, StateFileError, decode, encode, read, sweep, write
from meshgate.app.admin.views import routes_view
from meshgate.core.addresses import LOCAL_CLASSES, DeniedAddresses, OwnAddresses
from meshgate.core.explain import explain
from meshgate.core.load_balancer import HostSet, LoadBalancer
from meshgate.core.routes import RouteTable, difference
from meshgate.core.warm_start import PendingSources, merge_last_known
from tests.core.samples import plan

from .catalogs import kept

WHOLE = b"".join(encode(kept()))


def refusal(folder: Path) -> str:
    with pytest.raises(StateFileError) as refused:
        read(folder)
    line = str(refused.value)
    assert line.startswith(f"the state file {folder / NAME} is not used: ")
    assert "\n" not in line
    return line.partition("is not used: ")[2]


def store(folder: Path, content: bytes) -> Path:
    (folder / NAME).write_bytes(content)
    (folder / NAME).chmod(0o600)
    return folder


def sealed(*lines: object) -> bytes:
    """A file whose checksum is right, whatever it holds."""
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return text + json.dumps({"sha256": hashlib.sha256(text).hexdigest()}).encode() + b"\n"


def test_what_is_written_is_read_field_by_field(tmp_path: Path) -> None:
    write(tmp_path, kept())
    assert read(tmp_path) == kept()


def test_no_field_of_a_catalog_is_left_out() -> None:
    """A field that is added to the catalog has to be in the catalog of these tests too."""
    only_in_enterprise = {"partition", "namespace"}
    differing: set[tuple[str, str]] = set()
    every: set[tuple[str, str]] = set()
    waiting: list[object] = [kept().snapshot]
    while waiting:
        record = waiting.pop()
        if isinstance(record, tuple):
            waiting += record
        elif dataclasses.is_dataclass(record) and not isinstance(record, type):
            for field in dataclasses.fields(record):
                value = getattr(record, field.name)
                waiting.append(value)
                every.add((type(record).__name__, field.name))
                if value != field.default:
                    differing.add((type(record).__name__, field.name))
    assert {name for name in every - differing if name[1] not in only_in_enterprise} == set()


def test_file_of_an_older_meshgate_that_knew_less_is_read(tmp_path: Path) -> None:
    """Fields with defaults may be added without another version, to a catalog and to all that is in it."""
    write(tmp_path, kept())
    *lines, _ = map(json.loads, (tmp_path / NAME).read_bytes().splitlines())
    for name in ("partitions", "exports", "imports", "peer_servers", "peer_through"):
        del lines[0]["catalog"][name]
    del lines[1]["instances"][0]["peer_sni"]
    found = read(store(tmp_path, sealed(*lines)))
    assert found is not None
    older = replace(kept().snapshot, partitions=(), exports=(), imports=(), peer_servers=(), peer_through=False)
    web = older.services[0]
    instances = (replace(web.instances[0], peer_sni=()), *web.instances[1:])
    assert found.snapshot == replace(older, services=(replace(web, instances=instances), *older.services[1:]))


def test_without_a_file_or_a_folder_there_is_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    assert read(tmp_path / "missing") is None


def test_file_and_folder_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    write(folder, kept())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / NAME).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_mode_of_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    write(tmp_path, kept())
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


def test_data_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def replaced(self: Path, target: Path) -> Path:
        steps.append("replace")
        assert self.parent == target.parent
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write(tmp_path, kept())
    assert steps == ["file", "replace", "folder"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write(tmp_path, kept())

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync", fails) if failing == "fsync" else (Path, "replace", fails)))
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, kept(services=9))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert read(tmp_path) == kept()


def test_process_that_is_killed_while_it_writes_leaves_a_whole_file(tmp_path: Path) -> None:
    """Killed at random moments, among them in the middle of the temporary file."""
    program = (
        "import sys; from pathlib import Path; from meshgate.adapters.state import write, read\n"
        "folder = Path(sys.argv[1]); kept = read(folder); print('go', flush=True)\n"
        "while True: write(folder, kept)"
    )
    write(tmp_path, kept(services=3000))
    for round_ in range(4):
        with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"go\n"
            time.sleep(0.02 + 0.013 * round_)
            writer.kill()
        assert read(tmp_path) == kept(services=3000)


def test_temporary_files_of_the_dead_are_swept_and_others_are_not(tmp_path: Path) -> None:
    for name, age in ((f"{NAME}.abc.tmp", 120), (f"{NAME}.now.tmp", 0), ("other.tmp", 120), (NAME, 120)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{NAME}.now.tmp", "other.tmp", NAME}
    sweep(tmp_path / "missing")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\x00" * 4096, "it is no state file of meshgate"),
        (b"{}\n", "it is no state file of meshgate"),
        (b"\xff\xfe\n", "it is no state file of meshgate"),
        (b'{"format":"other","version":1}\n', "it is no state file of meshgate"),
        (b'{"format":"meshgate-state","version":"1"}\n', "it is no state file of meshgate"),
        (
            WHOLE.replace(b'"version":1', b'"version":2', 1),
            "it has format version 2, and this meshgate reads version 1",
        ),
        (WHOLE[: len(WHOLE) // 2], "it is damaged or cut off: its checksum is wrong"),
        (WHOLE[:-1], "it is damaged or cut off: its checksum is wrong"),
        (WHOLE.rpartition(b"{")[0], "it is damaged or cut off: its checksum is wrong"),
        (WHOLE + b"\n", "it is damaged or cut off: its checksum is wrong"),
        (WHOLE + WHOLE, "it is damaged or cut off: its checksum is wrong"),
        (WHOLE.replace(b"21000", b"21001", 1), "it is damaged or cut off: its checksum is wrong"),
        (sealed({"format": "meshgate-state", "version": 1}), "it does not hold a catalog: "),
        (sealed(json.loads(WHOLE.splitlines()[0]), {"name": 7}), "it does not hold what its first line says"),
        (sealed(json.loads(WHOLE.splitlines()[0]), *[{"name": 7}] * 4), "it does not hold a catalog: "),
    ],
)
def test_damaged_or_foreign_file_is_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    assert refusal(store(tmp_path, content)).startswith(reason)


@given(at=st.integers(0, len(WHOLE) - 1), flip=st.integers(1, 255))
@example(at=0, flip=1)
@example(at=len(WHOLE) - 1, flip=1)
def test_one_changed_byte_anywhere_is_refused(at: int, flip: int) -> None:
    changed = bytearray(WHOLE)
    changed[at] ^= flip
    with pytest.raises(StateFileError):
        decode(bytes(changed))


@given(end=st.integers(0, len(WHOLE) - 1))
def test_a_file_that_is_cut_anywhere_is_refused(end: int) -> None:
    with pytest.raises(StateFileError):
        decode(WHOLE[:end])


@given(st.binary(max_size=300), st.sampled_from([b"", WHOLE.splitlines(keepends=True)[0]]))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_whatever_a_file_holds_nothing_but_a_refusal_comes_of_it(content: bytes, before: bytes) -> None:
    with pytest.raises(StateFileError):
        decode(before + content)


def test_a_field_that_this_version_does_not_know_is_skipped() -> None:
    lines = [json.loads(line) for line in WHOLE.splitlines()[:-1]]
    lines[0]["later"] = lines[1]["later"] = {"any": ["thing"]}
    assert decode(sealed(*lines)) == kept()


@pytest.mark.parametrize(("mode", "bad"), [(0o620, True), (0o602, True), (0o666, True), (0o644, False), (0o600, False)])
def test_file_that_others_may_write_to_is_refused(tmp_path: Path, mode: int, bad: bool) -> None:
    write(tmp_path, kept())
    (tmp_path / NAME).chmod(mode)
    if bad:
        assert refusal(tmp_path) == "others than its owner may write to it"
    else:
        assert read(tmp_path) == kept()


def test_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, kept())
    owner = (tmp_path / NAME).stat().st_uid
    if owner == 0:
        os.chown(tmp_path / NAME, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert refusal(tmp_path) == "it belongs to another user"


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "link").mkdir()
    write(tmp_path, kept())
    (tmp_path / "link" / NAME).symlink_to(tmp_path / NAME)
    assert refusal(tmp_path / "link") == "it is a symbolic link"
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / NAME, 0o600)
    assert refusal(tmp_path / "pipe") == "it is no regular file"
    (tmp_path / "folder" / NAME).mkdir(parents=True)
    assert refusal(tmp_path / "folder") == "it is no regular file"
    (tmp_path / "plain").touch()
    assert refusal(tmp_path / "plain") == "Not a directory"


def test_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    store(tmp_path, b"")
    os.truncate(tmp_path / NAME, (64 << 20) + 1)
    assert refusal(tmp_path) == "it is larger than 67108864 bytes"


def test_a_catalog_that_would_make_it_so_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "LARGEST", len(WHOLE) + 10)
    write(tmp_path, kept())
    with pytest.raises(OSError, match="larger than"):
        write(tmp_path, kept(services=3))
    assert read(tmp_path) == kept()


@pytest.mark.parametrize(
    ("mode", "bad"),
    [(0o770, True), (0o777, True), (0o1777, True), (0o2777, True), (0o755, False), (0o2755, False), (0o700, False)],
)
def test_folder_in_which_others_could_exchange_it_is_not_used(tmp_path: Path, mode: int, bad: bool) -> None:
    write(tmp_path, kept())
    tmp_path.chmod(mode)
    if bad:
        assert refusal(tmp_path).startswith("others than its owner may write to its folder; name a folder inside it")
        with pytest.raises(StateFileError, match="may write to the folder"):
            write(tmp_path, kept())
        write(tmp_path / "inside", kept())
        assert read(tmp_path / "inside") == kept()
    else:
        assert read(tmp_path) == kept()


def test_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "state"
    write(folder, kept())
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert refusal(folder) == "its folder belongs to another user"


# --- whatever it holds, a start goes on ------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [b"[" * 200_000, b'{"a":' * 200_000, b"\n" * 200_000, b'{"format":' * 100_000])
@pytest.mark.parametrize("head", [b"", b'{"format":"meshgate-state","version":1,"x":'])
def test_nothing_is_parsed_before_the_checksum(
    head: bytes, line: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(msgspec.json, "decode", pytest.fail)
    assert refusal(store(tmp_path, head + line + b"\n")) in (
        "it is no state file of meshgate",
        "it is damaged or cut off: its checksum is wrong",
    )


def resealed(*lines: bytes) -> bytes:
    text = b"".join(line + b"\n" for line in lines)
    return text + json.dumps({"sha256": hashlib.sha256(text).hexdigest()}).encode() + b"\n"


# From Python 3.14 on as deep as the stack of the machine allows.
DEEP = 5_000_000


@pytest.mark.parametrize("where", [0, 1, -1])
def test_brackets_without_end_under_a_right_checksum_are_refused(where: int, tmp_path: Path) -> None:
    lines = WHOLE.splitlines()[:-1]
    lines[where] = lines[where][:-1] + b',"later":' + b"[" * DEEP + b"]" * DEEP + b"}"
    assert refusal(store(tmp_path, resealed(*lines))).startswith("it does not hold a catalog: ")


def test_lines_without_number_take_no_memory_beside_the_file(tmp_path: Path) -> None:
    head = json.loads(WHOLE.splitlines()[0]) | {"services": 20_000_000, "remotes": 0}
    store(tmp_path, resealed(json.dumps(head).encode() + b"\n" * 20_000_000))
    tracemalloc.start()
    try:
        assert refusal(tmp_path).startswith("it does not hold a catalog: ")
        assert tracemalloc.get_traced_memory()[1] < 3 * 20_000_000
    finally:
        tracemalloc.stop()


ODD: list[object] = [
    *(0, -1, 1, 1 << 15, 1 << 31, -(1 << 31), 1 << 62, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1, 1 << 64),
    *(1e308, -1e308, 5e-324, -0.0, 0.5, 1e15, True, None, [], {}),
    *(
        "",
        "-",
        ".",
        "*",
        "\n",
        "\0",
        "\x1b[2J",
        "\u202e",
        "\u00fc",
        "::1%x",
        "127.0.0.1",
        "9" * 5000,
        "a" * 70_000,
        "a." * 300,
    ),
]


def leaves(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value that is neither a list nor an object, and to each of those."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))


def exchanged(value: Any, path: tuple[Any, ...], other: object) -> Any:
    if not path:
        return other
    made = copy.copy(value)
    made[path[0]] = exchanged(value[path[0]], path[1:], other)
    return made


def started(content: bytes) -> bool:
    """What a start makes of a file: a table that goes to the workers and to the pages, and a file that is kept."""
    try:
        found = decode(content)
    except StateFileError:
        return False
    age = round(max(0.0, time.time() - found.saved))
    assert age >= 0
    denied, own = DeniedAddresses(frozenset(LOCAL_CLASSES)), OwnAddresses(frozenset({("0.0.0.0", 21000)}))
    table = plan(found.snapshot, addresses=found.addresses, denied=denied, own=own, panic_threshold=50)
    msgspec.msgpack.encode(difference(RouteTable.of("", "", "default", iter(())), table))
    msgspec.json.encode(routes_view(table))
    for route in table:
        hosts = HostSet(route)
        LoadBalancer({}, lambda: 0.5).next(hosts, ())
        explain(table, route.name)
    merge_last_known(found.snapshot, kept().snapshot, PendingSources(resolvers=True))
    return True


def test_no_value_in_it_ends_a_start() -> None:
    lines = [json.loads(line) for line in WHOLE.splitlines()[:-1]]
    assert started(WHOLE)
    outcomes = [started(sealed(*exchanged(lines, path, odd))) for path in leaves(lines) if len(path) > 1 for odd in ODD]
    assert True in outcomes
    assert False in outcomes
