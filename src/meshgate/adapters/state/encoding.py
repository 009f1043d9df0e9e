"""What a state file holds, and how: lines of JSON that an operator can read and a damaged disk cannot fake.

The first line names the format and says to whom the catalog belongs; then follow one line for each service and each
remote datacenter, and a last line with the SHA-256 of all lines before it. One record a line also means that other
threads get their turn while a large catalog is encoded.

A record is what `core.catalog` says it is. A new field with a default needs no new version; a field that goes or
changes its meaning does.
"""

import gc
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import msgspec

from meshgate.core.catalog import RemoteDatacenter, Service, Snapshot

FORMAT: Final = "meshgate-state"
VERSION: Final = 1

T = TypeVar("T")


class StateFileError(Exception):
    """A state file that is not to be used. One line that says why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The content of a state file.

    `gateway_service` is the service name of the gateway that wrote it, `saved` the Unix time at which the catalog was
    last known to be Consul's, and `addresses` what its host names stood for then.
    """

    snapshot: Snapshot
    gateway_service: str
    saved: float
    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class _Head(msgspec.Struct):
    """The first line. Of another version only these two fields are read."""

    format: str
    version: int


class _Header(_Head):
    saved: float
    gateway_service: str
    addresses: dict[str, tuple[str, ...]]
    services: int
    remotes: int
    # Without its services and remote datacenters.
    catalog: Snapshot


class _Seal(msgspec.Struct):
    sha256: str


def encode(kept: Kept) -> Iterator[bytes]:
    """The lines of the file, each with its end of line."""
    snapshot = kept.snapshot
    header = _Header(
        FORMAT,
        VERSION,
        kept.saved,
        kept.gateway_service,
        dict(kept.addresses),
        len(snapshot.services),
        len(snapshot.remotes),
        replace(snapshot, services=(), remotes=()),
    )
    digest = hashlib.sha256()
    for record in (header, *snapshot.services, *snapshot.remotes):
        line = msgspec.json.encode(record) + b"\n"
        digest.update(line)
        yield line
    yield msgspec.json.encode(_Seal(digest.hexdigest())) + b"\n"


def decode(content: bytes) -> Kept:
    """The content of a file.

    Raises:
        StateFileError: it is empty, foreign, of another version or damaged.
    """
    if not content:
        raise StateFileError("it is empty")
    first = content.partition(b"\n")[0]
    try:
        head = msgspec.json.decode(first, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError):
        head = None
    if head is None or head.format != FORMAT:
        raise StateFileError("it is no state file of meshgate")
    if head.version != VERSION:
        raise StateFileError(f"it has format version {head.version}, and this meshgate reads version {VERSION}")
    *lines, sealed = content.splitlines(keepends=True)
    if not sealed.endswith(b"\n") or _seal(sealed) != hashlib.sha256(b"".join(lines)).hexdigest():
        raise StateFileError("it is damaged or cut off: its checksum is wrong")
    try:
        return _kept(lines)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateFileError(f"it does not hold a catalog: {error}") from None


def _seal(line: bytes) -> str:
    try:
        return msgspec.json.decode(line, type=_Seal).sha256
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _kept(lines: list[bytes]) -> Kept:
    header = msgspec.json.decode(lines[0], type=_Header)
    services, remotes = lines[1 : header.services + 1], lines[header.services + 1 :]
    if len(services) != header.services or len(remotes) != header.remotes:
        raise StateFileError("it does not hold what its first line says")
    snapshot = replace(header.catalog, services=_each(services, Service), remotes=_each(remotes, RemoteDatacenter))
    return Kept(snapshot, header.gateway_service, header.saved, header.addresses)


def _each(lines: list[bytes], shape: type[T]) -> tuple[T, ...]:
    decoder = msgspec.json.Decoder(shape)
    collects = gc.isenabled()
    # Of a large catalog everything stays, and looking through it again and again takes most of the time.
    gc.disable()
    try:
        return tuple(decoder.decode(line) for line in lines)
    finally:
        if collects:
            gc.enable()
