"""Which bytes can be a public key of a group; keys made by OpenSSL are the reference."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, x448, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meshgate.core.hello_key_share import is_public_key

CURVES = {23: ec.SECP256R1(), 24: ec.SECP384R1(), 25: ec.SECP521R1()}
PRIMES = {
    23: 2**256 - 2**224 + 2**192 + 2**96 - 1,
    24: 2**384 - 2**128 - 2**96 + 2**32 - 1,
    25: 2**521 - 1,
}
SIZES = {29: 32, 30: 56, 256: 256, 257: 384, 258: 512, 259: 768, 260: 1024}
SIZES |= {512: 800, 513: 1184, 514: 1568, 0x11EB: 1249, 0x11EC: 1216, 0x11ED: 1665}


def holds(group: int, key: bytes) -> bool:
    found = is_public_key(group, b"before" + key + b"behind", 6, 6 + len(key))
    assert is_public_key(group, memoryview(key), 0, len(key)) is found
    return found


def point(group: int, scalar: int, form: PublicFormat = PublicFormat.UncompressedPoint) -> bytes:
    return ec.derive_private_key(scalar, CURVES[group]).public_key().public_bytes(Encoding.X962, form)


@pytest.mark.parametrize("group", CURVES)
def test_points_that_openssl_makes_are_keys(group: int) -> None:
    for scalar in (*range(1, 40), 2**250 - 1):
        assert holds(group, point(group, scalar))


@pytest.mark.parametrize("group", CURVES)
def test_points_off_the_curve_are_no_keys(group: int) -> None:
    for scalar in range(1, 10):
        key = bytearray(point(group, scalar))
        for at in range(0, len(key), 7):
            changed = key.copy()
            changed[at] ^= 1
            assert not holds(group, bytes(changed))
    assert not holds(group, bytes((4, *bytes(len(point(group, 1)) - 1))))


@pytest.mark.parametrize("group", CURVES)
def test_other_forms_of_a_point_are_no_keys(group: int) -> None:
    key = point(group, 5)
    assert not holds(group, point(group, 5, PublicFormat.CompressedPoint))
    assert not holds(group, b"\x06" + key[1:])
    assert not holds(group, b"\0")
    assert not holds(group, key + b"\0")
    assert not holds(group, key[:-1])


def test_coordinates_outside_the_field_are_no_keys() -> None:
    """On P-521 there is room for them: the same point with p added to a coordinate solves the equation too."""
    p, width = PRIMES[25], 66
    key = point(25, 3)
    x, y = int.from_bytes(key[1 : 1 + width]), int.from_bytes(key[1 + width :])
    assert holds(25, b"\4" + x.to_bytes(width) + y.to_bytes(width))
    assert not holds(25, b"\4" + (x + p).to_bytes(width) + y.to_bytes(width))
    assert not holds(25, b"\4" + x.to_bytes(width) + (y + p).to_bytes(width))


@pytest.mark.parametrize(("group", "size"), SIZES.items())
def test_keys_of_other_groups_have_their_length(group: int, size: int) -> None:
    assert holds(group, bytes(size))
    assert not holds(group, bytes(size - 1))
    assert not holds(group, bytes(size + 1))


def test_lengths_are_those_of_real_keys() -> None:
    assert holds(29, x25519.X25519PrivateKey.generate().public_key().public_bytes_raw())
    assert holds(30, x448.X448PrivateKey.generate().public_key().public_bytes_raw())


@pytest.mark.parametrize("group", [0, 0x1A1A, 0x6399, 0xFFFF])
def test_unknown_groups_take_anything(group: int) -> None:
    assert holds(group, b"\0")
    assert holds(group, bytes(5000))
