"""Which bytes are a distinguished name; `cryptography` makes one for comparison."""

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from meshgate.core.hello_ca_name import is_distinguished_name

CN = bytes.fromhex("0603550403")
TEXT = b"\x0c\x03apa"


def tagged(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes((size,)) if size < 128 else b"\x81" + size.to_bytes(1) if size < 256 else b"\x82" + size.to_bytes(2)
    return bytes((tag,)) + length + content


def name(*attributes: bytes) -> bytes:
    return tagged(0x30, b"".join(tagged(0x31, tagged(0x30, attribute)) for attribute in attributes))


def holds(data: bytes) -> bool:
    return is_distinguished_name(b"before" + data + b"behind", 6, 6 + len(data))


@pytest.mark.parametrize(
    "data",
    [
        name(),
        name(CN + TEXT),
        name(CN + TEXT, CN + b"\x13\x02US"),
        name(CN + tagged(0x0C, b"a" * 127)),
        name(CN + tagged(0x0C, b"a" * 200)),
        name(CN + tagged(0x0C, b"a" * 5000)),
        name(CN + tagged(0x0C, "bücher".encode())),
        name(CN + tagged(0x14, b"b\xfccher")),
        name(CN + tagged(0x1E, "bücher".encode("utf-16-be"))),
        name(CN + tagged(0x1C, "bücher".encode("utf-32-be"))),
        name(CN + b"\x0c\0"),
        name(bytes.fromhex("060a0992268993f22c640119") + b"\x16\x03com"),
        tagged(0x30, tagged(0x31, tagged(0x30, CN + TEXT) * 2)),
    ],
)
def test_names_are_known(data: bytes) -> None:
    assert holds(data)


def test_names_of_a_real_encoder_are_known() -> None:
    attributes = [
        x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Grün & Söhne" * 5),
        x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "consul"),
        x509.NameAttribute(NameOID.COMMON_NAME, "Consul CA 7"),
    ]
    assert holds(x509.Name(attributes).public_bytes())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        b"\x31\0",
        b"\x30\x80\0\0",
        b"\x30\x83\0\0\0",
        b"\x30\x81",
        b"\x30\x82\0",
        name() + b"\0",
        name() + name(),
        name(CN + TEXT)[:-1],
        tagged(0x30, tagged(0x30, tagged(0x30, CN + TEXT))),
        tagged(0x30, tagged(0x31, tagged(0x31, CN + TEXT))),
        tagged(0x30, tagged(0x31, CN + TEXT)),
        name(b""),
        name(CN),
        name(CN + TEXT + TEXT),
        name(TEXT + CN),
        name(b"\x06\0" + TEXT),
        name(b"\x06\x02\x55\x84" + TEXT),
        name(b"\x06\x03\x55\x80\x01" + TEXT),
        name(CN + b"\x02\x01\x05"),
        name(CN + b"\x2c\x05" + TEXT),
        name(CN + b"\x0c\x01\xff"),
        name(CN + b"\x13\x01\xff"),
        name(CN + b"\x1e\x03abc"),
        name(CN + b"\x1c\x04\xff\0\0\0"),
        name(CN + b"\x0c\x04apa"),
    ],
)
def test_other_bytes_are_no_name(data: bytes) -> None:
    assert not holds(data)
