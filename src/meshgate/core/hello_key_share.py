"""Whether the bytes of a TLS 1.3 key share can be a public key of its group (RFC 8446 section 4.2.8).

An endpoint makes these checks before it uses a share, and OpenSSL makes them before it looks at the server name: the
length, and for the NIST curves that the point is on its curve. The insides of X25519, X448, finite field and ML-KEM
keys are not looked at.
"""

from typing import Final, TypeAlias

__all__ = ["X25519", "Bytes", "is_public_key"]

Bytes: TypeAlias = bytes | bytearray | memoryview

X25519: Final = 29
_UNCOMPRESSED: Final = 4

_SIZES: Final = {
    23: 65,  # secp256r1
    24: 97,  # secp384r1
    25: 133,  # secp521r1
    X25519: 32,
    30: 56,  # x448
    256: 256,  # ffdhe2048
    257: 384,  # ffdhe3072
    258: 512,  # ffdhe4096
    259: 768,  # ffdhe6144
    260: 1024,  # ffdhe8192
    512: 800,  # MLKEM512
    513: 1184,  # MLKEM768
    514: 1568,  # MLKEM1024
    0x11EB: 1249,  # SecP256r1MLKEM768
    0x11EC: 1216,  # X25519MLKEM768
    0x11ED: 1665,  # SecP384r1MLKEM1024
}

# y² = x³ - 3x + b modulo p, by group: (p, b) of FIPS 186-4 appendix D.1.2.
_CURVES: Final = {
    23: (
        2**256 - 2**224 + 2**192 + 2**96 - 1,
        int("5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b", 16),
    ),
    24: (
        2**384 - 2**128 - 2**96 + 2**32 - 1,
        int("b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875ac656398d8a2ed19d2a85c8edd3ec2aef", 16),
    ),
    25: (
        2**521 - 1,
        int(
            "51953eb9618e1c9a1f929a21a0b68540eea2da725b99b315f3b8b489918ef1"
            "09e156193951ec7e937b1652c0bd3bb1bf073573df883d2c34f1ef451fd46b503f00",
            16,
        ),
    ),
}


def is_public_key(group: int, data: Bytes, start: int, end: int) -> bool:
    """Whether data[start:end] can be a public key of the group. Of a group that is not known, anything can."""
    if end - start != _SIZES.get(group, end - start):
        return False
    return group not in _CURVES or _is_on_curve(group, data, start, end)


def _is_on_curve(group: int, data: Bytes, start: int, end: int) -> bool:
    """RFC 8446 section 4.2.8.2: uncompressed, coordinates in the field, and the curve's equation holds."""
    p, b = _CURVES[group]
    middle = (start + end + 1) // 2
    x, y = int.from_bytes(data[start + 1 : middle]), int.from_bytes(data[middle:end])
    return data[start] == _UNCOMPRESSED and x < p and y < p and (y * y - x * x * x + 3 * x - b) % p == 0
