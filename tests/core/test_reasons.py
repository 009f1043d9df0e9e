"""The reasons are a contract, and so is the alert that a client gets for each."""

import pytest

from meshgate.core.reasons import Alert, Reason, StreamEnd, alert_in, alert_record, envoy_flags

UNRECOGNIZED_NAME, DECODE_ERROR, INTERNAL_ERROR = 112, 50, 80

ALERTS = {
    "not_tls": None,
    "hello_malformed": DECODE_ERROR,
    "hello_too_large": DECODE_ERROR,
    "hello_timeout": None,
    "no_sni": UNRECOGNIZED_NAME,
    "unknown_sni": UNRECOGNIZED_NAME,
    "no_healthy_endpoint": INTERNAL_ERROR,
    "connect_failed": INTERNAL_ERROR,
    "connect_timeout": INTERNAL_ERROR,
    "max_connections": INTERNAL_ERROR,
    "max_connections_per_client": None,
    "draining": INTERNAL_ERROR,
}


def test_the_names_are_the_contracts() -> None:
    assert [str(reason) for reason in Reason] == list(ALERTS)


@pytest.mark.parametrize(("name", "alert"), ALERTS.items())
def test_what_the_client_is_told(name: str, alert: int | None) -> None:
    # A record of type alert, version 3.3, two bytes long: fatal, and the description.
    expected = b"" if alert is None else b"\x15\x03\x03\x00\x02\x02" + bytes([alert])
    assert alert_record(Reason(name)) == expected


@pytest.mark.parametrize(
    ("data", "alert"),
    [
        ("15 0303 0002 02 70", Alert.UNRECOGNIZED_NAME),
        ("15 0301 0002 01 00 and more", Alert.CLOSE_NOTIFY),
        ("15 0303 0002 02 0a", Alert.OTHER),
        ("15 0303 0002 02", None),
        ("15 0303 0013 02 70", None),  # Encrypted.
        ("17 0303 0002 02 70", None),
    ],
)
def test_an_alert_is_told_by_its_name_where_it_can_be_read(data: str, alert: Alert | None) -> None:
    assert alert_in(bytes.fromhex(data.removesuffix(" and more")) + b"and more" * ("more" in data)) is alert


def test_the_flags_are_those_that_envoy_writes_for_the_like() -> None:
    flags = {str(reason): envoy_flags(reason, StreamEnd.REFUSED) for reason in Reason}
    protocol_error = ("not_tls", "hello_malformed", "hello_too_large", "hello_timeout")
    assert flags == dict.fromkeys(protocol_error, "DPE") | {
        "no_sni": "NR",
        "unknown_sni": "NR",
        "no_healthy_endpoint": "UH",
        "connect_failed": "UF",
        "connect_timeout": "UF",
        "max_connections": "UO",
        "max_connections_per_client": "UO",
        "draining": "",
    }
